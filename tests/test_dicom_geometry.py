"""Which way is up, by the words of the DICOM standard and not by this project's: everything here is in the patient's
own coordinates (LPS, mm: x to the left, y to the back, z to the head), computed from the files that the commands write,
with SimpleITK, pydicom and numpy alone"""

import json
import math
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from click.testing import CliRunner

from xvr import cli

AXES = dict(L=(1, 0, 0), R=(-1, 0, 0), P=(0, 1, 0), A=(0, -1, 0), H=(0, 0, 1), F=(0, 0, -1))
OPPOSITE = dict(zip("LRPAHF", "RLAPFH"))
ANGLES = [(30, 0), (-30, 0), (0, 20), (0, -20), (30, -20)]
SEEN = ["--height", 120, "--width", 100, "--delx", 3, "--dely", 2.6]
CLEAN = ["--photons", 0, "--scatter", 0, "--blur", 0, "--spectrum", "70keV", "--bits", 16]


def xvr(*args):
    result = CliRunner().invoke(cli.xvr, [str(a) for a in args], prog_name="xvr")
    assert result.exit_code == 0, result.stderr
    return result


def geometry(path):
    "Source, first pixel and steps, as a namespace of arrays"
    return SimpleNamespace(
        **{name: np.array(value) for name, value in json.loads(path.read_text())["geometry"].items()}
    )


def middle(g, tags):
    "The detector's middle"
    return g.detector_origin + (tags.Columns - 1) / 2 * g.column_step + (tags.Rows - 1) / 2 * g.row_step


def pixel(g, point):
    "Where the straight line from the source through a point meets the detector: column, row"
    column, row, _ = np.linalg.solve(
        np.stack([g.column_step, g.row_step, g.source - point], 1), g.source - g.detector_origin
    )
    return np.array([column, row])


def angle(a, b):
    "Degrees between two directions"
    return math.degrees(math.acos(min(1, a @ b / np.linalg.norm(a) / np.linalg.norm(b))))


def in_camera(g, points):
    "Points seen from the source, along columns, rows and beam"
    x, y = (step / np.linalg.norm(step) for step in (g.column_step, g.row_step))
    return (points - g.source) @ np.stack([x, y, np.cross(x, y)], 1)


@pytest.fixture(scope="module")
def scans(tmp_path_factory, case):
    "The CT; the same with one bead in it, 80 mm from its middle to the left, the head or the front; and points of bone"
    folder, chest = tmp_path_factory.mktemp("scans"), sitk.ReadImage(str(case.ct))
    size = np.array(chest.GetSize())
    centre = np.array(chest.TransformContinuousIndexToPhysicalPoint(((size - 1) / 2).tolist()))
    beads = {}
    for way in ("L", "H", "A", "middle"):
        image = sitk.Image(chest)
        corner = image.TransformPhysicalPointToIndex((centre + 80 * np.array(AXES.get(way, (0, 0, 0)))).tolist())
        image[tuple(slice(c, c + 2) for c in corner)] = sitk.Image([2, 2, 2], image.GetPixelID()) + 6000.0
        sitk.WriteImage(image, str(folder / f"{way}.nii.gz"))
        beads[way] = np.array(image.TransformContinuousIndexToPhysicalPoint([c + 0.5 for c in corner]))
    bone = np.argwhere(sitk.GetArrayFromImage(chest) > 300)[::20, ::-1]
    return SimpleNamespace(
        ct=case.ct,
        folder=folder,
        beads=beads,
        bone=np.array([chest.TransformIndexToPhysicalPoint(i.tolist()) for i in bone]),
        centre=centre,
    )


@pytest.mark.parametrize("primary, secondary", ANGLES)
@pytest.mark.parametrize(
    "side", [["--orientation", "PA", "--reverse_x_axis"], ["--orientation", "PA"]], ids=["reversed", "plain"]
)
def test_the_detector_stands_where_the_angles_say(scans, tmp_path, primary, secondary, side):
    place = ["--primary", primary, "--secondary", secondary, "--sid", 800, *SEEN, *side]
    xvr("simulate", "-v", scans.ct, "-o", tmp_path / "plain", *place, *CLEAN)
    g, tags = geometry(tmp_path / "plain/xray_000.json"), pydicom.dcmread(tmp_path / "plain/xray_000.dcm")
    # PositionerPrimaryAngle: from the front (0) to the patient's left is positive; PositionerSecondaryAngle: to the
    # head
    p, s = math.radians(primary), math.radians(secondary)
    beam = middle(g, tags) - g.source
    assert np.linalg.norm(beam) == pytest.approx(tags.DistanceSourceToDetector, abs=1e-2)
    assert np.allclose(
        beam / np.linalg.norm(beam), (math.sin(p) * math.cos(s), -math.cos(p) * math.cos(s), math.sin(s)), atol=1e-4
    )
    assert (
        np.linalg.norm(np.cross(scans.centre - g.source, beam)) / np.linalg.norm(beam) < 0.01
    )  # it passes through the middle
    assert (np.linalg.norm(g.row_step), np.linalg.norm(g.column_step)) == pytest.approx(
        [float(v) for v in tags.ImagerPixelSpacing], abs=1e-4
    )

    beads, empty = {}, np.log(tags.pixel_array)
    for way, point in scans.beads.items():
        xvr("simulate", "-v", scans.folder / f"{way}.nii.gz", "-o", tmp_path / way, *place, *CLEAN)
        shadow = (empty - np.log(pydicom.dcmread(tmp_path / way / "xray_000.dcm").pixel_array)).clip(0.1) - 0.1
        row, column = np.mgrid[: tags.Rows, : tags.Columns]
        beads[way] = np.array([(shadow * column).sum(), (shadow * row).sum()]) / shadow.sum()
        assert np.abs(beads[way] - pixel(g, point)).max() < 0.3  # the file's picture is what the truth says that it is
    for axis, letters in enumerate(tags.PatientOrientation):  # where columns run to the right, and rows down
        letter = letters[0]
        way = letter if letter in beads else OPPOSITE[letter]
        moved = (beads[way] - beads["middle"])[axis]
        assert (moved > 10) if way == letter else (moved < -10), (letters, moved)


def test_registration_from_the_tags_alone(scans, tmp_path):
    primary, secondary = zip(*ANGLES)
    xvr(
        "simulate",
        "-v",
        scans.ct,
        "-o",
        tmp_path / "xrays",
        "--primary",
        ",".join(map(str, primary)),
        "--secondary",
        ",".join(map(str, secondary)),
        "--sid",
        800,
        *SEEN,
        "--angle_error",
        2,
    )
    xvr("register", "dicom", tmp_path / "xrays", "-v", scans.ct, "-o", tmp_path / "out")
    for n in range(len(ANGLES)):
        found, true = (
            geometry(tmp_path / f"out/xray_{n:03d}/result.json"),
            geometry(tmp_path / f"xrays/xray_{n:03d}.json"),
        )
        error = np.linalg.norm(in_camera(found, scans.bone) - in_camera(true, scans.bone), axis=1).mean()
        assert error < 1, ANGLES[n]


def guises(tags):
    "One X-ray as other systems might have sent it: name, pixels, and the tags that say so"
    pixels, (across, down), spacing, top = (
        tags.pixel_array,
        tags.PatientOrientation,
        list(tags.ImagerPixelSpacing),
        2**tags.BitsStored - 1,
    )
    turn = lambda letters: "".join(OPPOSITE[c] for c in letters)
    left, up = turn(across), turn(down)
    field = lambda flip, rotation: dict(FieldOfViewHorizontalFlip=flip, FieldOfViewRotation=rotation)
    swapped = dict(ImagerPixelSpacing=spacing[::-1])
    yield "as_it_is", pixels, {}
    yield "flipped_horizontally", pixels[:, ::-1], dict(PatientOrientation=[left, down], **field("YES", 0))
    yield "flipped_vertically", pixels[::-1], dict(PatientOrientation=[across, up], **field("YES", 180))
    yield (
        "turned_90",
        np.rot90(pixels, -1),
        dict(PatientOrientation=[up, across], **swapped, **field("NO", 90)),
    )  # clockwise
    yield "turned_180", np.rot90(pixels, 2), dict(PatientOrientation=[left, up], **field("NO", 180))
    yield "turned_270", np.rot90(pixels, 1), dict(PatientOrientation=[down, left], **swapped, **field("NO", 270))
    yield "mirrored_and_turned", pixels.T, dict(PatientOrientation=[down, across], **swapped, **field("YES", 90))
    yield "monochrome1", top - pixels, dict(PhotometricInterpretation="MONOCHROME1", PixelIntensityRelationshipSign=-1)
    yield "flipped_monochrome1", (top - pixels)[:, ::-1], dict(
        PhotometricInterpretation="MONOCHROME1", PixelIntensityRelationshipSign=-1, PatientOrientation=[left, down], **field("YES", 0))  # fmt: skip


def test_one_pose_however_the_picture_lies(scans, tmp_path):
    xvr("simulate", "-v", scans.ct, "-o", tmp_path, "--rot", 25, 10, 3, "--xyz", 8, -790, -6, *SEEN, "--seed", 1)
    for name, pixels, changes in guises(pydicom.dcmread(tmp_path / "xray_000.dcm")):
        tags = pydicom.dcmread(tmp_path / "xray_000.dcm")
        for keyword, value in changes.items():
            setattr(tags, keyword, value)
        (tags.Rows, tags.Columns), tags.PixelData = pixels.shape, np.ascontiguousarray(pixels).tobytes()
        (tmp_path / "copies").mkdir(exist_ok=True)
        tags.save_as(tmp_path / "copies" / f"{name}.dcm")
    xvr("register", "dicom", tmp_path / "copies", "-v", scans.ct, "-o", tmp_path / "out")
    true, first = geometry(tmp_path / "xray_000.json"), geometry(tmp_path / "out/as_it_is/result.json")
    assert np.linalg.norm(in_camera(first, scans.bone) - in_camera(true, scans.bone), axis=1).mean() < 1
    assert first.row_step @ true.row_step > 0
    for path in (tmp_path / "copies").iterdir():
        g, notes = (
            geometry(tmp_path / "out" / path.stem / "result.json"),
            json.loads((tmp_path / "out" / path.stem / "result.json").read_text())["settings"]["notes"],
        )
        assert np.linalg.norm(g.source - first.source) < 0.1, path.stem
        assert (
            angle(g.row_step, first.row_step) < 0.1
            and angle(np.sign(g.column_step @ first.column_step) * g.column_step, first.column_step) < 0.1
        ), path.stem
        assert any("rows run down" in note for note in notes) == (
            path.stem in ("flipped_vertically", "turned_90", "turned_180", "turned_270", "mirrored_and_turned")
        ), path.stem
