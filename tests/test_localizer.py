"A CT against localizers that numpy and scipy simulate in float64, and against a real one"

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from test_cli import xvr

from xvr import check
from xvr.conventions import XvrError
from xvr.localizer import _read_localizer
from xvr.xray import read_xray

DATA = Path(os.environ.get("XVR_DATA", Path(__file__).resolve().parents[2] / "shared/data")) / "localizer"
SIZE, EDGE = np.array([56, 48, 50]), 4.0  # Voxels along x, y, z; mm
COVERED = slice(7, 43)  # The slices of the CT
CORNER = np.array([-110.0, -90.0, 700.0])  # LPS
MIDDLE = CORNER + EDGE * (SIZE - 1) / 2


def body(seed):
    "Hounsfield units of some sixty ellipsoids in a larger one, indexed [x, y, z]"
    random, at = np.random.default_rng(seed), np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1)
    inside = (((at - (SIZE - 1) / 2) / (0.42 * SIZE)) ** 2).sum(-1) < 1
    hu = np.where(inside, 0.0, -1000.0)
    for _ in range(60):
        centre, radii = random.uniform(0.15, 0.85, 3) * SIZE, random.uniform(1.5, 6, 3)
        hu[((((at - centre) / radii) ** 2).sum(-1) < 1) & inside] = random.choice([-800, 300, 700, 1100])
    return hu


def simulate(hu, across, beam, *, arc, sid, motion, pitch=4.0, shape=(48, 72)):
    "Line integrals of water-equivalent mm: a fan across, a source for each row; the body is moved by `motion` (LPS)"
    along = np.array([0.0, 0, -1])
    column, row = (np.arange(n) * pitch - (n - 1) * pitch / 2 for n in shape[::-1])
    angle = column / sid if arc else np.arctan(column / sid)
    rays = np.sin(angle)[:, None] * across + np.cos(angle)[:, None] * beam
    steps = np.arange(sid - 200, sid + 200, 2.0)
    points = MIDDLE - sid * beam + row[:, None, None, None] * along + steps[:, None] * rays[:, None]
    points = (points - motion[1] - MIDDLE) @ motion[0].as_matrix() + MIDDLE  # to where the CT has them
    values = map_coordinates(1 + hu / 1000, ((points - CORNER) / EDGE).reshape(-1, 3).T, order=1)
    return 2.0 * values.reshape(*shape, -1).sum(-1)


def tags_of(pixels, axes, corner, spacing, **more):
    tags, meta = Dataset(), FileMetaDataset()
    own = dict(
        SOPClassUID=CTImageStorage, SOPInstanceUID=generate_uid(), Modality="CT", Rows=pixels.shape[0],
        Columns=pixels.shape[1], SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16,
        BitsStored=16, HighBit=15, PixelRepresentation=0, RescaleSlope=1, RescaleIntercept=-1024,
        PixelData=pixels.round().astype("<u2").tobytes(), FrameOfReferenceUID="1.2.3", PixelSpacing=[spacing] * 2,
        ImagePositionPatient=[*map(float, corner)], ImageOrientationPatient=[float(v) for axis in axes for v in axis],
    ) | more  # fmt: skip
    for keyword, value in own.items():
        setattr(tags, keyword, value)
    tags.file_meta, meta.TransferSyntaxUID = meta, ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = tags.SOPClassUID, tags.SOPInstanceUID
    return tags


def write_ct(folder, hu, spacing=EDGE, step=EDGE, shift=0.0):
    series = dict(SeriesInstanceUID="1.2.4", SeriesNumber=2, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    for n, slice in enumerate(np.moveaxis(hu[:, :, COVERED], 2, 0)):
        corner = CORNER + [0, 0, COVERED.start * EDGE + n * step + shift]
        tags = tags_of(slice.T + 1024, np.eye(3)[:2], corner, spacing, **series)
        tags.save_as(folder / f"ct{n:02d}.dcm", enforce_file_format=True)


# Where the tube is, degrees; the direction of the columns and of the beam
VIEWS = dict(left=(90.0, [0, 1, 0], [-1, 0, 0]), right=(270.0, [0, 1, 0], [1, 0, 0]),
             above=(0.0, [1, 0, 0], [0, 1, 0]), below=(180.0, [1, 0, 0], [0, -1, 0]))  # fmt: skip
MOVED = Rotation.from_rotvec(np.deg2rad([0.5, -0.8, 0.6])), np.array([2.0, -1.5, 2.5])


def write_localizer(path, hu, tube, arc=True, stated=True, sid=570.0):
    angle, across, beam = VIEWS[tube]
    values = simulate(hu, np.array(across), np.array(beam), arc=arc, sid=sid, motion=MOVED)
    noisy = 12 * values + np.random.default_rng(1).normal(0, 6, values.shape)
    axes, (rows, columns) = (across, (0, 0, -1)), values.shape
    corner = MIDDLE - 4.0 * ((columns - 1) / 2 * np.array(across) + (rows - 1) / 2 * np.array([0, 0, -1]))
    kind = dict(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.2.5", PatientPosition="HFS")
    kind |= dict(DistanceSourceToPatient=570, DistanceSourceToDetector=1040) | (dict(TubeAngle=angle) if stated else {})
    tags_of(noisy.clip(0, 65535), axes, corner, 4.0, **kind).save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def hu():
    return body(0)


def errors_of(agreement):
    "How far the found motion is from the true one, in degrees and mm about the patient's axes (RAS), over its deviations"
    turns, shifts, *deviations = (x.numpy() for x in agreement.motion())
    back, ras = MOVED[0].inv(), np.array([-1.0, -1, 1])  # the CT against the localizer: the motion undone
    middle = CORNER + EDGE * np.array([*(SIZE[:2] - 1) / 2, COVERED.start + (COVERED.stop - COVERED.start - 1) / 2])
    shift = back.apply(middle - MOVED[1] - MIDDLE) + MIDDLE - middle
    truth = back.as_rotvec(degrees=True) * ras, shift * ras
    return [found - true for found, true in zip((turns, shifts), truth)], deviations


@pytest.mark.parametrize("tube, arc", [("left", True), ("below", False)])
def test_pose_and_intervals(tmp_path, hu, tube, arc):
    write_ct(tmp_path, hu)
    write_localizer(tmp_path / "scout.dcm", hu, tube, arc, sid=572.0)
    (found,) = check(tmp_path)
    (turns, shifts), (turn_deviations, shift_deviations) = errors_of(found)
    beam = 0 if tube == "left" else 1
    assert found.ok and found.fit.trial.arc == arc and found.in_place > 0.8, found
    assert np.abs(turns).max() < 0.3 and np.abs(np.delete(shifts, beam)).max() < 0.5, (turns, shifts)
    assert 3 < 1.96 * shift_deviations[beam] < 25 and np.abs(shifts[beam]) < 1.96 * shift_deviations[beam]
    assert (np.abs(turns) < 3 * turn_deviations).all() and np.delete(shift_deviations, beam).max() < 0.5


def test_side_of_the_tube_is_found_if_not_stated(tmp_path, hu):
    write_ct(tmp_path, hu)
    write_localizer(tmp_path / "scout.dcm", hu, "right", stated=False)
    (found,) = check(tmp_path)
    assert found.ok and found.fit.trial.localizer.side == -1
    assert "tube at the patient's right (not stated), so that a CT mirrored left-right would look the same" in str(
        found
    )


SPOILT = {
    "mirrored": (lambda hu: dict(hu=hu[::-1]), "the CT is mirrored left to right"),
    "turned": (lambda hu: dict(hu=hu[::-1, ::-1]), "the CT is turned by 180° about the head-feet axis"),
    "pixels": (lambda hu: dict(hu=hu, spacing=1.1 * EDGE), "the CT's pixel spacing is"),
    "slices": (lambda hu: dict(hu=hu, step=0.9 * EDGE), "the CT's slice spacing is"),
    "table": (lambda hu: dict(hu=hu, shift=-20.0), "mm too far to the feet (table position)"),
    "another": (lambda hu: dict(hu=body(5)), "the localizer shows another body"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_copies_are_named(tmp_path, hu, name):
    change, problem = SPOILT[name]
    write_ct(tmp_path, **change(hu))
    write_localizer(tmp_path / "scout.dcm", hu, "above")
    code, out, err = xvr("check", tmp_path, "-o", tmp_path / "overlay.png")
    assert code == 1 and problem in out.splitlines()[0] and "DISAGREES" in out
    assert "xvr: error: the CT disagrees with scout.dcm" in err and problem in err
    assert (tmp_path / "overlay.png").stat().st_size > 1000


def test_a_localizer_is_no_xray(tmp_path, hu):
    write_localizer(tmp_path / "scout.dcm", hu, "left")
    with pytest.raises(XvrError, match="localizer.*type xvr check FOLDER"):
        read_xray(tmp_path / "scout.dcm")
    code, out, _ = xvr("info", tmp_path / "scout.dcm")
    assert code == 0 and "xvr check" in out


def test_a_folder_without_a_localizer(tmp_path, hu):
    write_ct(tmp_path, hu)
    code, _, err = xvr("check", tmp_path)
    assert code == 1 and "holds no localizer" in err


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/localizer")
def test_real_localizer(tmp_path):
    shutil.copy(DATA / "scout.dcm", tmp_path)
    with zipfile.ZipFile(DATA / "ct_5mm_series.zip") as series:
        series.extractall(tmp_path)
    (found,) = check(tmp_path)
    turns, shifts, _, deviations = found.motion()
    assert found.ok and turns.abs().max() < 0.3 and shifts[1:].abs().max() < 0.98
    assert deviations[0] > 3 and shifts[0].abs() < 1.96 * deviations[0]
    localizer, tags = _read_localizer(tmp_path / "scout.dcm"), pydicom.dcmread(tmp_path / "scout.dcm")
    corner = localizer.place @ torch.tensor([-511 / 2 * 0.9765625, -255 / 2 * 0.9765625, 0, 1], dtype=torch.float64)
    assert np.allclose(corner[:3] * torch.tensor([-1, -1, 1]), [float(v) for v in tags.ImagePositionPatient])
