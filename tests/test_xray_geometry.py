"Where the camera is, by a file's tags: against the camera that the X-ray was simulated with"

import json
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import torch

from xvr.batch import Files, register_files
from xvr.cameras import from_geometry
from xvr.conventions import XvrError
from xvr.detector import Detector, backproject, physical_geometry, pose_from_angles, project
from xvr.initialisers import from_dicom
from xvr.renderer import render
from xvr.similarity import ncc
from xvr.simulation import Exposure, angles_from_pose, read_materials, simulate_xray, write_dicom
from xvr.volume import read_volume
from xvr.xray import Reading, read_xray

IDEAL = Exposure(scatter=0, photons=0, blur=0)
MARKS = 60 * torch.cat([torch.eye(3), -torch.eye(3), torch.tensor([[1.0, 2, 3]])])[None]


@pytest.fixture(scope="module")
def ct(case):
    return read_volume(case.ct)


@pytest.fixture(scope="module")
def materials(case):
    return read_materials(case.ct)


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "assumed"])
@pytest.mark.parametrize("angles", [(0, 0), (35, -20), (90, 0), (-160, 10)])
def test_orientation_names_one_camera(ct, materials, tmp_path, angles, stated):
    "Columns run to the patient's left where the file states it; where it does not, column 0 is taken as the left"
    plate, pose = Detector(1020, 64, 5.8, 72, 5.2, reverse_x_axis=stated), pose_from_angles(*angles, 750)
    write_dicom(tmp_path / "x.dcm", simulate_xray(materials, plate, pose, IDEAL), plate, pose, IDEAL)
    if not stated:
        tags = pydicom.dcmread(tmp_path / "x.dcm")
        del tags.PatientOrientation
        tags.save_as(tmp_path / "x.dcm")
    geometry = physical_geometry(plate, pose, torch.zeros(3))
    expected = project(plate, pose, MARKS)
    for orientation in ("PA", "AP"):
        xray = read_xray(tmp_path / "x.dcm", Reading(orientation=orientation))
        assert torch.allclose(project(xray.detector, xray.pose, MARKS), expected, atol=1e-3)
        assert ncc(render(ct, xray.detector, xray.pose), xray.image).item() > 0.98
        same, there = from_geometry(geometry, 64, 72, orientation=orientation)
        assert xray.detector.orientation == same.orientation and xray.detector.reverse_x_axis == same.reverse_x_axis
        assert torch.allclose(xray.pose.matrix, there.matrix.float(), atol=2e-3)
        assert np.allclose(angles_from_pose(there, orientation)[:2], angles, atol=1e-3)
        assert len(xray.notes) == (0 if stated else 1)


def test_the_side_that_is_assumed_can_be_set(case, tmp_path):
    "In both orientations the note names the value of `reverse_x_axis` that moves column 0 to the patient's right"
    tags = pydicom.dcmread(case.xrays[0])
    stated = {side: read_xray(case.xrays[0], Reading(orientation=side)) for side in ("PA", "AP")}
    del tags.PatientOrientation
    tags.save_as(tmp_path / "x.dcm")
    for side, remedy in (("PA", True), ("AP", False)):
        xray = read_xray(tmp_path / "x.dcm", Reading(orientation=side))
        assert xray.detector.reverse_x_axis is not remedy and ("as False" in xray.notes[-1]) is not remedy
        mended = read_xray(tmp_path / "x.dcm", Reading(orientation=side, reverse_x_axis=remedy))
        assert mended.detector == stated[side].detector and mended.notes == []


def test_without_angles_a_frontal_beam_is_the_zero_poses(case, tmp_path):
    tags = pydicom.dcmread(case.xrays[0])
    del tags.PositionerPrimaryAngle
    tags.save_as(tmp_path / "x.dcm")
    for side in ("PA", "AP"):
        xray = read_xray(tmp_path / "x.dcm", Reading(orientation=side))
        assert xray.pose is None and xray.detector.reverse_x_axis  # columns run to the left, seen from either side
        assert len(xray.notes) == (side == "AP") and all("front to back" in note for note in xray.notes)


def test_registration_from_the_tags_in_both_orientations(case, tmp_path):
    true = json.loads(case.xrays[0].with_suffix(".json").read_text())["geometry"]
    for side in ("PA", "AP"):
        reading, files = Reading(orientation=side), Files(verbose=0)
        register_files([case.xrays[0]], case.ct, from_dicom(), tmp_path / side, reading=reading, files=files)
        result = json.loads((tmp_path / side / case.xrays[0].stem / "result.json").read_text())
        assert result["similarity"]["initial"] > 0.93 and result["similarity"]["final"] > 0.93
        assert np.allclose(result["geometry"]["source"], true["source"], atol=1)
        assert np.allclose(result["geometry"]["detector_origin"], true["detector_origin"], atol=1)


OPPOSITE = dict(zip("LRPAHF", "RLAPFH"))


def opposite(letters):
    return "".join(OPPOSITE[c] for c in letters)


def save_changed(path, out, pixels=None, **values):
    "The file with some tags changed, or taken away if None"
    tags = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is not None:
            setattr(tags, keyword, value)
        elif keyword in tags:
            delattr(tags, keyword)
    if pixels is not None:
        (tags.Rows, tags.Columns), tags.PixelData = pixels.shape, np.ascontiguousarray(pixels).tobytes()
    tags.save_as(out)
    return out


def middle_of(detector, pose):
    "The centre of the plate, in the world, mm"
    at = torch.tensor([[[(detector.width - 1) / 2, (detector.height - 1) / 2]]])
    return backproject(detector, pose, at)[0, 0]


@pytest.fixture(scope="module")
def beside(materials, tmp_path_factory):
    "An X-ray whose middle is 42 mm to the right and 30 mm below the beam, as it is displayed, and its true camera"
    path, pose = tmp_path_factory.mktemp("beside") / "x.dcm", pose_from_angles(20, -10, 750)
    true = Detector(1020, 60, 3.4, 80, 3.0, x0=-42.0, y0=-30.0, reverse_x_axis=True)
    write_dicom(path, simulate_xray(materials, true, pose, IDEAL), replace(true, x0=0.0, y0=0.0), pose, IDEAL)
    return path, true, pose


@pytest.mark.parametrize("flip", ["NO", "YES"])
@pytest.mark.parametrize("turns", range(4))
def test_a_part_of_a_panel(ct, beside, tmp_path, turns, flip):
    "The image is a part of the panel, then turned clockwise and flipped as PS3.3 C.8.11.4 defines"
    path, true, pose = beside
    tags = pydicom.dcmread(path)
    pixels, (across, down), spacing = tags.pixel_array, tags.PatientOrientation, [3.0, 3.4]  # delx 3.4, dely 3.0
    for _ in range(turns):
        pixels, across, down, spacing = np.rot90(pixels, -1), opposite(down), across, spacing[::-1]
    if flip == "YES":
        pixels, across = pixels[:, ::-1], opposite(across)
    panel = dict(FieldOfViewRotation=90 * turns, FieldOfViewHorizontalFlip=flip, PatientOrientation=[across, down])
    panel |= dict(ImagerPixelSpacing=spacing, DetectorElementSpacing=[1.5, 1.7])
    # Rows from 60 to 120 + 60, columns from 40 to 40 + 160 elements; the beam meets rows 100 and 95.29
    middle = np.array([60 * 1.5 + 90, 40 * 1.7 + 136])
    beam = middle - [30.0, 42.0]
    places = dict(PhysicalDetectorSize=(2 * beam).tolist()), dict(PositionOfIsocenterProjection=list(beam / [1.5, 1.7]))
    active = dict(DetectorActiveOrigin=[4, 6], DetectorActiveDimensions=(2 * (beam - [6.0, 10.2])).tolist())
    for place in (*places, active):
        for orientation in ("PA", "AP"):
            out = save_changed(path, tmp_path / "x.dcm", pixels, FieldOfViewOrigin=[60, 40], **panel, **place)
            xray = read_xray(out, Reading(orientation=orientation, crop=4))
            assert torch.allclose(middle_of(xray.detector, xray.pose), middle_of(true, pose), atol=1e-2)
            assert ncc(render(ct, xray.detector, xray.pose), xray.image).item() > 0.97
            assert any("`x0` and `y0`" in note and "FieldOfViewOrigin" in note for note in xray.notes)


@pytest.mark.parametrize(
    "place",
    [
        dict(XRayImageReceptorTranslation=[42, -30, -500]),
        dict(XRayImageReceptorTranslation=[28, -20, 0], RTImagePosition=[14 - 3.4 * 39.5, 3.0 * 29.5 - 10]),
        dict(XRayImageReceptorTranslation=[42, -30, -500], RTImagePosition=[42 - 3.4 * 39.5, 3.0 * 29.5 - 30]),
        dict(XRayImageReceptorTranslation=[0, 0, -500], RTImagePosition=[42 - 3.4 * 39.5, 3.0 * 29.5 - 30]),
        dict(XRayImageReceptorTranslation=[30, 42, -500], XRayImageReceptorAngle=90),
        dict(XRayImageReceptorTranslation=[42 * 1.1, -30 * 1.1, -650]),  # the panel beyond the image's plane
        dict(RTImageOrientation=[1, 0, 0, 0, -1, 0], RTImagePosition=[42 - 3.4 * 39.5, 3.0 * 29.5 - 30]),
        dict(RTImageOrientation=[0, 1, 0, 1, 0, 0], RTImagePosition=[30 - 3.0 * 29.5, 42 - 3.4 * 39.5]),
    ],
)
def test_a_receptor_beside_the_beam(beside, tmp_path, place):
    path, true, pose = beside
    plain = dict.fromkeys(("DistanceSourceToDetector", "DistanceSourceToPatient", "ImagerPixelSpacing"))
    tags = plain | dict(
        Modality="RTIMAGE", RTImageSID=1500, RadiationMachineSAD=1000, ImagePlanePixelSpacing=[3.0, 3.4]
    )
    for orientation in ("PA", "AP"):
        xray = read_xray(save_changed(path, tmp_path / "x.dcm", **tags, **place), Reading(orientation=orientation))
        side = 1 if orientation == "PA" else -1
        assert np.allclose((xray.detector.x0, xray.detector.y0), (side * true.x0, true.y0), atol=1e-4)
        assert sum("`x0` and `y0`" in note for note in xray.notes) >= 1
        middle = torch.tensor([[[39.5 - 42 / 3.4, 29.5 - 30 / 3.0]]])  # the pixel that the beam meets
        assert torch.allclose(project(xray.detector, xray.pose, torch.zeros(1, 1, 3)), middle, atol=1e-3)


def test_settings_say_where_the_beam_meets_the_image(beside, tmp_path):
    path, true, pose = beside
    out = save_changed(path, tmp_path / "x.dcm", DetectorActiveOrigin=[10, 20])
    (note,) = read_xray(out).notes
    assert "DetectorActiveOrigin is 10/20 and is not used" in note and "`x0` and `y0`" in note
    assert (read_xray(out).detector.x0, read_xray(out).detector.y0) == (0, 0)
    xray = read_xray(out, Reading(x0=true.x0, y0=true.y0))
    assert xray.detector == true and xray.notes == []
    assert read_xray(out, Reading(x0=0.0)).detector.x0 == 0 and len(read_xray(out, Reading(x0=0.0)).notes) == 1
    size = dict(PhysicalDetectorSize=[180 + 2 * 30 - 60, 272 + 2 * 68 - 84])
    whole = save_changed(out, out, DetectorActiveOrigin=[20, 20], DetectorElementSpacing=[3.0, 3.4], **size)
    xray = read_xray(whole, Reading(x0=1.0))  # one of the two
    assert xray.detector.x0 == 1 and np.isclose(xray.detector.y0, -60 - 90 + 90)
    settings = dict(sdd=1000, delx=0.5)
    np.save(tmp_path / "picture.npy", np.eye(20))
    (tmp_path / "picture.json").write_text(json.dumps(settings | dict(x0=3, y0=4)))
    assert read_xray(tmp_path / "picture.npy").detector.x0 == 3
    assert read_xray(tmp_path / "picture.npy", Reading(x0=5.0)).detector == Detector(1000, 20, 0.5, x0=5.0, y0=4)
    camera = dict(geometry=physical_geometry(true, pose, torch.zeros(3)))
    (tmp_path / "picture.json").write_text(json.dumps(camera))
    assert read_xray(tmp_path / "picture.npy", Reading(y0=6.0)).detector.y0 == 6


def test_mammography_is_not_centred_on_its_panel(beside, tmp_path):
    place = dict(FieldOfViewOrigin=[60, 40], PhysicalDetectorSize=[300, 300], Modality="MG")
    xray = read_xray(save_changed(beside[0], tmp_path / "x.dcm", **place))
    assert (xray.detector.x0, xray.detector.y0) == (0, 0)
    assert any("FieldOfViewOrigin is 60/40 and is not used, because a mammographic" in note for note in xray.notes)


RUN = (-10.0, 5.0, 35.0)  # Primary angles of three frames


@pytest.fixture(scope="module")
def run(materials, tmp_path_factory):
    "A rotational run of three frames, its poses and its detector"
    folder, true = tmp_path_factory.mktemp("run"), Detector(1020, 60, 3.4, 80, 3.0, reverse_x_axis=True)
    poses, frames = [pose_from_angles(angle, 4, 750) for angle in RUN], []
    for pose in poses:
        write_dicom(folder / "x.dcm", simulate_xray(materials, true, pose, IDEAL), true, pose, IDEAL)
        frames.append(pydicom.dcmread(folder / "x.dcm").pixel_array)
    tags = pydicom.dcmread(folder / "x.dcm")
    tags.PositionerPrimaryAngle, tags.NumberOfFrames, tags.PixelData = RUN[0], 3, np.stack(frames).tobytes()
    tags.PositionerPrimaryAngleIncrement = [angle - RUN[0] for angle in RUN]
    tags.save_as(folder / "x.dcm")
    return folder / "x.dcm", poses, true


@pytest.mark.parametrize("orientation", ["PA", "AP"])
def test_each_frame_of_a_run_has_its_own_angle(ct, run, orientation):
    path, poses, true = run
    for n, how in enumerate(("first", 2, "last")):
        xray = read_xray(path, Reading(reducefn=how, orientation=orientation))
        assert np.allclose(xray.angles, (RUN[n], 4)) and len(xray.notes) == 1
        assert torch.allclose(project(xray.detector, xray.pose, MARKS), project(true, poses[n], MARKS), atol=1e-3)
        assert ncc(render(ct, xray.detector, xray.pose), xray.image).item() > 0.97
    for how in ("max", "min", "mean", "median", "sum"):
        xray = read_xray(path, Reading(reducefn=how, orientation=orientation))
        assert np.allclose(xray.angles, (RUN[1], 4))  # the middle one's
        assert any(f"turns by 45 degrees over 3 frames, which are blended by {how}" in note for note in xray.notes)


@pytest.mark.parametrize(
    "start, increments, angles",
    [
        (-10, [0, 15, 45], RUN),  # from the first frame
        (-10, [-10, 5, 35], RUN),  # the angles themselves
        (-10, [15], (-10, 5, 20)),  # from frame to frame
        (-10, [0, 15, 15], (-10, 5, 20)),
        (-10, [15, 15, 15], (-10, 5, 20)),
        (-10, [0, 0, 0], (-10, -10, -10)),
        (0, [0, 15, 45], (0, 15, 45)),
        (-10, None, (-10, -10, -10)),
    ],
)
def test_forms_of_increments(run, tmp_path, start, increments, angles):
    changes = dict(PositionerPrimaryAngle=start, PositionerPrimaryAngleIncrement=increments)
    path = save_changed(run[0], tmp_path / "x.dcm", **changes)
    for n, angle in enumerate(angles, 1):
        xray = read_xray(path, Reading(reducefn=n))
        assert np.allclose(xray.angles, (angle, 4)) and len(xray.notes) == 1
    assert any("turns by" in note for note in read_xray(path).notes) == (np.ptp(angles) > 0)


def test_increments_of_another_number_of_frames_are_noted(run, tmp_path):
    path = save_changed(run[0], tmp_path / "x.dcm", PositionerPrimaryAngleIncrement=[0, 15])
    xray = read_xray(path, Reading(reducefn="last"))
    assert np.allclose(xray.angles, (RUN[0], 4))
    assert any("PositionerPrimaryAngleIncrement has 2 numbers for 3 frames" in note for note in xray.notes)


def enhanced(run, **shared):
    "The run as an Enhanced XA file: its geometry in functional groups"
    tags, item = pydicom.dcmread(run), lambda values: pydicom.sequence.Sequence([tagged(**values)])
    own = [
        tagged(PositionerPositionSequence=item(dict(PositionerPrimaryAngle=a, PositionerSecondaryAngle=4))) for a in RUN
    ]
    geometry = dict(DistanceSourceToIsocenter=750, DistanceSourceToDetector=1020)
    properties = dict(ImagerPixelSpacing=[3.0, 3.4], PixelIntensityRelationship="LIN", PixelIntensityRelationshipSign=1)
    groups = dict(XRayGeometrySequence=item(geometry), FramePixelDataPropertiesSequence=item(properties))
    groups |= dict(PatientOrientationInFrameSequence=item(dict(PatientOrientation=tags.PatientOrientation)))
    moved = [*geometry, *properties, "PatientOrientation", "DistanceSourceToPatient", "PositionerSecondaryAngle"]
    moved += ["PositionerPrimaryAngle", "PositionerPrimaryAngleIncrement", "EstimatedRadiographicMagnificationFactor"]
    for keyword in moved:
        tags.pop(keyword, None)
    tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.12.1.1"
    tags.SharedFunctionalGroupsSequence = item(groups | {name: item(values) for name, values in shared.items()})
    tags.PerFrameFunctionalGroupsSequence = pydicom.sequence.Sequence(own)
    return tags


def tagged(**values):
    tags = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(tags, keyword, value)
    return tags


@pytest.mark.parametrize("orientation", ["PA", "AP"])
def test_functional_groups(ct, run, tmp_path, orientation):
    path, poses, true = run
    enhanced(path).save_as(tmp_path / "x.dcm")
    for n, how in enumerate(("first", 2, "last")):
        xray = read_xray(tmp_path / "x.dcm", Reading(reducefn=how, orientation=orientation))
        plain = read_xray(path, Reading(reducefn=how, orientation=orientation))
        assert xray.detector == plain.detector and torch.equal(xray.image, plain.image) and xray.notes == plain.notes
        assert torch.allclose(project(xray.detector, xray.pose, MARKS), project(true, poses[n], MARKS), atol=1e-3)
        assert ncc(render(ct, xray.detector, xray.pose), xray.image).item() > 0.97
    assert any("turns by 45 degrees" in note for note in read_xray(tmp_path / "x.dcm").notes)


def test_a_part_of_the_panel_and_a_turned_detector_in_functional_groups(run, tmp_path):
    view = dict(FieldOfViewOrigin=[0, 10], FieldOfViewRotation=0, FieldOfViewHorizontalFlip="NO")
    tags = enhanced(
        run[0],
        FieldOfViewSequence=view,
        IsocenterReferenceSystemSequence=dict(PositionerIsocenterPrimaryAngle=1, PositionerIsocenterDetectorRotationAngle=30),
        CollimatorShapeSequence=dict(CollimatorShape="CIRCULAR", CenterOfCircularCollimator=[30, 40], RadiusOfCircularCollimator=25),
    )  # fmt: skip
    tags.PhysicalDetectorSize, tags.DetectorElementSpacing = [180, 340], [3.0, 3.4]
    tags.save_as(tmp_path / "x.dcm")
    xray = read_xray(tmp_path / "x.dcm", Reading(reducefn=1))
    assert (xray.detector.x0, xray.detector.y0) == pytest.approx((-(34 + 136 - 170), -(90 - 90)))
    assert xray.weight[0, 0, 30, 40] == 1 and xray.weight[0, 0, 2, 2] == 0
    assert any("PositionerIsocenterDetectorRotationAngle is 30 degrees" in note for note in xray.notes)
    for part in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        setattr(tags, part, pydicom.sequence.Sequence([]))
    tags.save_as(tmp_path / "x.dcm")
    with pytest.raises(XvrError, match="`sdd`"):
        read_xray(tmp_path / "x.dcm")


def test_magnification_instead_of_a_distance(beside, tmp_path):
    path = beside[0]
    whole, no_sid = read_xray(path), dict(DistanceSourceToPatient=None)
    assert whole.notes == []
    for lacking, name, value in (("DistanceSourceToPatient", "sid", 750), ("DistanceSourceToDetector", "sdd", 1020)):
        for orientation in ("PA", "AP"):
            xray = read_xray(
                save_changed(path, tmp_path / "x.dcm", **{lacking: None}), Reading(orientation=orientation)
            )
            (note,) = xray.notes
            assert f"is {value} mm by EstimatedRadiographicMagnificationFactor; give `{name}`" in note
            there = project(xray.detector, xray.pose, MARKS)
            assert torch.allclose(there, project(whole.detector, whole.pose, MARKS), atol=1e-3)
        given = read_xray(tmp_path / "x.dcm", Reading(**{name: float(value)}))
        assert given.notes == [] and torch.allclose(given.pose.matrix, whole.pose.matrix)
    # A distance that is given counts for the other one too
    no_distance = save_changed(path, tmp_path / "x.dcm", DistanceSourceToDetector=None, **no_sid)
    factor = 1020 / 750
    assert read_xray(no_distance, Reading(sid=800.0)).detector.sdd == pytest.approx(800 * factor)
    assert read_xray(no_distance, Reading(sdd=900.0)).pose.translation.norm().item() == pytest.approx(900 / factor)
    with pytest.raises(XvrError, match="`sdd`"):
        read_xray(no_distance)
    for factor in (1.0, 0.0, None):  # states nothing
        changed = save_changed(path, tmp_path / "x.dcm", EstimatedRadiographicMagnificationFactor=factor, **no_sid)
        xray = read_xray(changed)
        assert xray.pose is None and xray.notes == []
    # Without angles there is no pose that the distance could give
    changed = save_changed(path, tmp_path / "x.dcm", PositionerPrimaryAngle=None, **no_sid)
    assert read_xray(changed).notes == []
