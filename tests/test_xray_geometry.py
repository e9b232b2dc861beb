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
    places = (
        dict(PhysicalDetectorSize=(2 * beam).tolist()),
        dict(PositionOfIsocenterProjection=list(beam / [1.5, 1.7] - 0.5)),
    )  # from the first element's centre
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
    "start, increments, angles, remark",
    [
        (-10, [0, 15, 45], RUN, None),  # from the first frame
        (-10, [-10, 5, 35], RUN, "taken as angles"),  # the angles themselves
        (-10, [15], (-10, 5, 20), None),  # from frame to frame
        (-10, [0, 15, 15], (-10, 5, 20), "taken from frame to frame"),
        (-10, [15, 15, 15], (-10, 5, 20), "taken from frame to frame"),
        (-10, [0, 15, 30], (-10, 5, 20), None),
        (-10, [0, 0, 0], (-10, -10, -10), None),
        (0, [0, 15, 45], (0, 15, 45), None),
        (0, [-30, 0, 30], (-30, 0, 30), None),  # the standard's own form of angles
        (-10, [3, 15, 45], (-7, 5, 35), None),
        (-10, None, (-10, -10, -10), None),
    ],
)
def test_forms_of_increments(run, tmp_path, start, increments, angles, remark):
    changes = dict(PositionerPrimaryAngle=start, PositionerPrimaryAngleIncrement=increments)
    path = save_changed(run[0], tmp_path / "x.dcm", **changes)
    for n, angle in enumerate(angles, 1):
        xray = read_xray(path, Reading(reducefn=n))
        assert np.allclose(xray.angles, (angle, 4)) and len(xray.notes) == 1 + (remark is not None)
        assert remark is None or any(remark in note and "C.8.7.5.1.3" in note for note in xray.notes)
    assert any("turns by" in note for note in read_xray(path).notes) == (np.ptp(angles) > 0)


def test_a_table_that_moves_is_noted(run, tmp_path):
    path = save_changed(run[0], tmp_path / "x.dcm", TableMotion="DYNAMIC")
    for how, moved in (("max", 1), ("median", 1), ("last", 0), ("2", 0)):
        assert sum("TableMotion is DYNAMIC" in note for note in read_xray(path, Reading(reducefn=how)).notes) == moved


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


def rt_tags(**more):
    "The tags of an RT image of the fixture `beside`, 60 rows of 3 mm and 80 columns of 3.4 mm; no other geometry"
    gone = ["DistanceSourceToDetector", "DistanceSourceToPatient", "ImagerPixelSpacing", "PositionerPrimaryAngle"]
    gone += ["PositionerSecondaryAngle", "EstimatedRadiographicMagnificationFactor", "PatientOrientation"]
    plain = dict(Modality="RTIMAGE", RTImageSID=1500, RadiationMachineSAD=1000, ImagePlanePixelSpacing=[3.0, 3.4])
    return dict.fromkeys(gone) | plain | more


def seen_by_gantry(bead, position, gantry, couch, first, receptor=(0, 0), turn=0):
    """Column and row of a bead at (left, back, head) mm from the isocentre, by IEC 61217 and PS3.3 C.8.8.2 word by word:
    `first` is RTImagePosition, `receptor` the panel's offset, `turn` its angle"""
    left, back, head = bead
    lying = dict(S=(left, -back), P=(-left, back), DR=(back, left), DL=(-back, -left))  # head first: right, up
    (right, up), ahead = lying[position[2:]], head
    if position.startswith("FF"):  # turned half about the vertical: right and gantry change their signs
        right, ahead = -right, -head
    c, g, a = np.radians([couch, gantry, turn])
    x, y, z = right * np.cos(c) - ahead * np.sin(c), right * np.sin(c) + ahead * np.cos(c), up
    across, along, to_source = x * np.cos(g) - z * np.sin(g), y, x * np.sin(g) + z * np.cos(g)
    across, along = (1500 * v / (1000 - to_source) - o for v, o in zip((across, along), receptor))
    across, along = across * np.cos(a) + along * np.sin(a), along * np.cos(a) - across * np.sin(a)
    return (across - first[0]) / 3.4, (first[1] - along) / 3.0


BEAD = (30.0, -20.0, 45.0)
MIDDLE = [-3.4 * 39.5, 3.0 * 29.5]


@pytest.mark.parametrize("position", ["HFS", "HFP", "FFS", "FFP", "HFDR", "HFDL", "FFDR", "FFDL"])
@pytest.mark.parametrize("gantry, couch", [(0, 0), (90, 0), (180, 0), (271.5, 0), (35, 20), (300, 340)])
def test_a_bead_in_an_rt_image(beside, tmp_path, position, gantry, couch):
    "By its gantry and couch, at an isocentre that the file states"
    isocentre, centre = np.array([12.0, -34, 56]), np.array([5.0, 10, -40])  # LPS; RAS
    tags = rt_tags(GantryAngle=gantry, PatientSupportAngle=couch, PatientPosition=position, RTImagePosition=MIDDLE)
    path = save_changed(beside[0], tmp_path / "x.dcm", **tags, IsocenterPosition=isocentre.tolist())
    expected = seen_by_gantry(BEAD, position, gantry, couch, MIDDLE)
    bead = torch.tensor((np.array(BEAD) + isocentre) * [-1, -1, 1] - centre).float()[None, None]
    for orientation in ("PA", "AP"):
        xray = read_xray(path, Reading(orientation=orientation), centre=centre)
        assert np.allclose(project(xray.detector, xray.pose, bead)[0, 0], expected, atol=1e-2)
        assert any(f"GantryAngle {gantry:.4g}, PatientSupportAngle {couch}" in note for note in xray.notes)
        assert any("IsocenterPosition is 12/-34/56, 100.4 mm" in note for note in xray.notes)
        assert not any("column 0" in note for note in xray.notes)
    assert read_xray(path).pose is None  # where the CT is is not known
    # Far from the CT, or not stated: about the CT's centre
    bead = torch.tensor(np.array(BEAD) * [-1, -1, 1]).float()[None, None]
    for place in (dict(IsocenterPosition=[0, 0, 900]), dict(TableTopVerticalPosition=-15)):
        xray = read_xray(save_changed(beside[0], tmp_path / "x.dcm", **tags, **place), centre=centre)
        assert np.allclose(project(xray.detector, xray.pose, bead)[0, 0], expected, atol=1e-2)
        assert sum("CT's centre" in note and next(iter(place)) in note for note in xray.notes) == 1


@pytest.mark.parametrize("crop", [0, 6])
@pytest.mark.parametrize("turn", [0, 30, 90])
def test_a_bead_on_a_moved_and_turned_panel(beside, tmp_path, crop, turn):
    moved, first = (40.0, -25.0), [MIDDLE[0] + 7, MIDDLE[1] - 4]
    tags = rt_tags(GantryAngle=200, PatientSupportAngle=10, PatientPosition="HFS", RTImagePosition=first)
    tags |= dict(XRayImageReceptorTranslation=[*moved, -500], XRayImageReceptorAngle=turn)
    expected = np.array(seen_by_gantry(BEAD, "HFS", 200, 10, first, moved, turn)) - crop / 2
    bead = torch.tensor(np.array(BEAD) * [-1, -1, 1]).float()[None, None]
    for orientation in ("PA", "AP"):
        reading = Reading(orientation=orientation, crop=crop)
        xray = read_xray(save_changed(beside[0], tmp_path / "x.dcm", **tags), reading)
        assert np.allclose(project(xray.detector, xray.pose, bead)[0, 0], expected, atol=1e-2)
        given = read_xray(tmp_path / "x.dcm", replace(reading, x0=0.0, y0=0.0, sid=900.0, sdd=1400.0))
        assert (given.detector.x0, given.detector.y0) == pytest.approx((0, 0), abs=1e-9)
        assert given.detector.sdd == 1400 and given.pose.translation.norm().item() == pytest.approx(900, abs=1e-2)


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(PatientPosition=None), "no PatientPosition"),
        (dict(PatientPosition="SITTING"), "no PatientPosition"),
        (dict(TableTopPitchAngle=2.0), "TableTopPitchAngle tilts it"),
        (dict(TableTopRollAngle=-1.5), "TableTopRollAngle tilts it"),
        (dict(GantryPitchAngle=4.0), "GantryPitchAngle tilts it"),
        (dict(RTImagePlane="NON_NORMAL"), "RTImagePlane is NON_NORMAL"),
        (dict(PatientOrientation=["R", "F"]), "PatientOrientation R/F contradicts"),
        (dict(PatientOrientation=["L", "H"]), "PatientOrientation L/H contradicts"),
        (dict(GantryAngle=200), "PatientOrientation L/F contradicts"),
    ],
)
def test_a_gantry_that_is_not_used_is_noted(beside, tmp_path, change, word):
    tags = rt_tags(GantryAngle=0, PatientPosition="HFS", RTImagePosition=MIDDLE, PatientOrientation=["L", "F"])
    assert read_xray(save_changed(beside[0], tmp_path / "x.dcm", **tags)).pose is not None
    xray = read_xray(save_changed(beside[0], tmp_path / "x.dcm", **(tags | change)))
    assert xray.pose is None and xray.angles is None
    assert sum("GantryAngle is" in note and word in note and "start from a pose" in note for note in xray.notes) == 1


def test_small_tilts_and_full_turns_are_none(beside, tmp_path):
    tags = rt_tags(GantryAngle=0, PatientPosition="HFS", TableTopPitchAngle=359.9, TableTopRollAngle=0.1)
    assert read_xray(save_changed(beside[0], tmp_path / "x.dcm", **tags)).pose is not None


def test_registration_from_a_gantry(ct, case, materials, tmp_path):
    "From 3 degrees and 15 mm beside the truth, by the tags alone"
    true = Detector(1500, 64, 6.0, reverse_x_axis=False)
    pose = pose_from_angles(183, 0, 1000)  # the beam from the front, with the gantry at 3 degrees
    write_dicom(tmp_path / "plain.dcm", simulate_xray(materials, true, pose, IDEAL), true, pose, IDEAL)
    away = ct.centre.numpy() * [-1, -1, 1] + [10, -10, 5]
    tags = rt_tags(GantryAngle=0, PatientPosition="HFS", IsocenterPosition=away.tolist())
    tags["ImagePlanePixelSpacing"] = [6.0, 6.0]
    path = save_changed(tmp_path / "plain.dcm", tmp_path / "x.dcm", **tags)
    register_files([path], case.ct, from_dicom(), tmp_path / "out", files=Files(verbose=0))
    result = json.loads((tmp_path / "out/x/result.json").read_text())
    geometry = physical_geometry(true, pose, ct.centre)
    assert result["similarity"]["final"] > 0.93 and result["verdict"] == "ok"
    assert np.allclose(result["geometry"]["source"], geometry["source"], atol=3)
    assert np.allclose(result["geometry"]["detector_origin"], geometry["detector_origin"], atol=3)


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(ViewPosition="AP"), "give `orientation` as AP"),
        (dict(ViewPosition="LL"), "ViewPosition is LL and is not used"),
        (dict(ViewPosition="PA"), None),
        (dict(ViewPosition="LL", PositionerPrimaryAngle=20.0), None),  # the angles say it
        (dict(DetectorPrimaryAngle=3.0), "DetectorPrimaryAngle is 3 degrees and is not used"),
        (dict(DetectorSecondaryAngle=-3.0), "DetectorSecondaryAngle is -3 degrees and is not used"),
        (dict(ColumnAngulation=12.0), "ColumnAngulation is 12 degrees and is not used"),
        (dict(ColumnAngulation=0.0), None),
        (dict(ViewPosition="AP", PositionerType="MAMMOGRAPHIC"), None),
    ],
)
def test_what_is_stated_of_the_view_and_not_used_is_noted(beside, tmp_path, change, word):
    tags = dict(PositionerPrimaryAngle=None) | change
    notes = read_xray(save_changed(beside[0], tmp_path / "x.dcm", **tags)).notes
    assert sum("not used" in note for note in notes) == (word is not None)
    assert word is None or sum(word in note for note in notes) == 1


@pytest.mark.parametrize("letters", ["L/A", "R/P", "L/L"])
def test_rows_that_do_not_fit_the_view_are_noted(beside, tmp_path, letters):
    for angles in (dict(PositionerPrimaryAngle=None), dict(PositionerPrimaryAngle=0.0, PositionerSecondaryAngle=5.0)):
        changed = save_changed(beside[0], tmp_path / "x.dcm", PatientOrientation=letters.split("/"), **angles)
        notes = read_xray(changed).notes
        assert sum(f"PatientOrientation {letters}: its rows run neither up nor down" in note for note in notes) == 1
    axial = dict(PositionerPrimaryAngle=0.0, PositionerSecondaryAngle=85.0, PatientOrientation=["L", "A"])
    xray = read_xray(save_changed(beside[0], tmp_path / "x.dcm", **axial))
    assert not any("rows run neither" in note for note in xray.notes)
