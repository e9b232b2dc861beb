"What is true of real files, kept outside the repository: each is read right, or refused with the right sentence"

import os
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from xvr.conventions import XvrError
from xvr.detector import physical_geometry
from xvr.series import choose_series, dcm2nii, read_image
from xvr.xray import Reading, _frame, read_pixels, read_xray

DATA = Path(os.environ.get("XVR_DATA", Path(__file__).resolve().parents[2] / "shared/data"))
FILES, SERIES = DATA / "dicom", DATA / "dicom/ct_series_jpeg2000"
pytestmark = pytest.mark.skipif(not SERIES.is_dir(), reason=f"no {SERIES}; say where the data are with XVR_DATA")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    dcm2nii(SERIES, path)
    return path


def test_series_is_what_simpleitk_reads(converted):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(SERIES)))
    theirs, ours = reader.Execute(), sitk.ReadImage(str(converted))
    assert ours.GetSize() == theirs.GetSize() == (512, 512, 20) and ours.GetPixelID() == sitk.sitkInt16
    assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(ours, get)(), getattr(theirs, get)(), atol=1e-4)
    assert np.allclose(ours.GetSpacing(), (0.9765625, 0.9765625, 2)) and np.allclose(
        ours.GetOrigin(), (-249.51171875, -437.51171875, -804.5)
    )
    values, _ = read_image(SERIES)
    assert np.array_equal(values.numpy(), sitk.GetArrayFromImage(theirs))


@pytest.mark.skipif(not shutil.which("dcm2niix"), reason="dcm2niix is not on the PATH")
def test_series_is_what_dcm2niix_writes(converted, tmp_path):
    subprocess.run(["dcm2niix", "-z", "y", "-f", "ct", "-o", tmp_path, SERIES], check=True, capture_output=True)
    theirs, ours = (nibabel.as_closest_canonical(nibabel.load(p)) for p in (tmp_path / "ct.nii.gz", converted))
    assert np.allclose(ours.affine, theirs.affine, atol=1e-3)
    assert np.array_equal(ours.get_fdata(), theirs.get_fdata())


def test_list(capsys):
    dcm2nii(SERIES, list=True)
    line = capsys.readouterr().out.splitlines()[1]
    assert (
        "CT Body 3.0" in line
        and "512 x 512" in line
        and "0.977 x 0.977 x 2" in line
        and line.endswith("axial")
        and len(line) <= 80
    )
    assert choose_series(SERIES).problem is None


# Of each X-ray: what must be given, (frames, rows, columns), stored from and to, sdd, pixel size, angles, column 0 at
# the patient's right, words in notes,
# and two parts of the picture of which the first is denser: rows and columns
GIVEN = dict(sdd=1000, delx=0.3)
TRUTH = {
    "dx_monochrome1_log_jpeg2000": ({}, (1, 2128, 2000), (0, 4095), 1450, 0.16, None, True, ["FieldOfViewOrigin"], [(600, 1200, 950, 1050), (800, 1200, 400, 600)]),  # spine, lung
    "mg_full_geometry": ({}, (1, 788, 1318), (27, 4091), 650, 0.085, None, False, ["mammographic", "FieldOfViewOrigin"], [(600, 700, 400, 600), (50, 100, 300, 500)]),  # breast, air
    "rtimage_slit_field": ({}, (1, 768, 1024), (61, 38903), 1500.033, 0.392, None, False, ["placed by GantryAngle 0.01327, PatientSupportAngle 0.04297 and PatientPosition HFS"], [(0, 768, 20, 100), (0, 768, 480, 540)]),  # jaw, slit
    "xa_1024_jpeg2000_lossless": (GIVEN, (1, 1024, 1024), (0, 504), 1000, 0.3, None, False, ["linear in density", "PatientOrientation"], [(0, 30, 0, 30), (500, 600, 500, 600)]),
    "xa_1024_jpeg_lossless": (GIVEN, (1, 1024, 1024), (0, 504), 1000, 0.3, None, False, ["linear in density", "PatientOrientation"], [(0, 30, 0, 30), (500, 600, 500, 600)]),
    "xa_multiframe_jpeg_96x512x512": (GIVEN, (96, 512, 512), (0, 255), 1000, 0.3, (-32, 2), False, ["96 frames", "PatientOrientation"], [(245, 255, 120, 132), (245, 255, 138, 146)]),  # vessel, heart
}  # fmt: skip
# Share of the pixels that do not count: the corners outside a round field take 1 - pi / 4 of the square
HIDDEN = dict.fromkeys(TRUTH, 0.0) | {
    "dx_monochrome1_log_jpeg2000": 0.015,
    "xa_1024_jpeg2000_lossless": 0.215,
    "xa_1024_jpeg_lossless": 0.215,
    "xa_multiframe_jpeg_96x512x512": 0.195,
}


@pytest.mark.parametrize("name", TRUTH)
def test_xray(name):
    given, shape, ends, sdd, pixel, angles, right, words, (dense, thin) = TRUTH[name]
    path = FILES / f"{name}.dcm"
    frames, _ = read_pixels(path)
    assert frames.shape == shape and (frames.min(), frames.max()) == ends
    for n, lacking in enumerate(given):  # each distance that the file lacks is asked for by its name
        with pytest.raises(XvrError, match=f"{name}.*`{lacking}`"):
            read_xray(path, Reading(**dict(list(given.items())[:n])))
    xray = read_xray(path, Reading(reducefn=48 if len(frames) > 1 else "max", **given))
    d, mean = xray.detector, lambda a, b, c, d: xray.image[0, 0, a:b, c:d].mean()
    assert (
        (d.height, d.width) == shape[1:] and xray.angles == angles and d.reverse_x_axis == right and xray.pose is None
    )
    assert np.allclose((d.sdd, d.delx, d.dely), (sdd, pixel, pixel), atol=1e-3)
    notes = [note for note in xray.notes if "do not count" not in note]
    assert len(notes) == len(words) and all(word in note for word, note in zip(words, notes))
    hidden = 0.0 if xray.weight is None else 1 - xray.weight.mean().item()
    assert hidden == pytest.approx(HIDDEN[name], abs=0.012)
    assert mean(*dense) > 1.1 * mean(*thin)


# Two regions of each picture of which the first is denser by at least so much
DENSER = {
    "dx_monochrome1_log_jpeg2000": ({}, (1800, 2000, 900, 1000), (600, 1000, 400, 600), 0),  # spine, lung
    "mg_full_geometry": ({}, (40, 60, 1040, 1060), (40, 60, 100, 300), 0),  # clamp, air
    "rtimage_slit_field": ({}, (300, 400, 100, 200), (300, 400, 500, 520), 3),  # jaws, slit: 20 times less beam
    "xa_1024_jpeg2000_lossless": (GIVEN, (855, 870, 440, 455), (900, 960, 600, 700), 0),  # contrast, skull
    "xa_multiframe_jpeg_96x512x512": (GIVEN | dict(reducefn="min"), (240, 270, 105, 125), (240, 270, 60, 85), 0),
}


@pytest.mark.parametrize("name", DENSER)
def test_dense_is_bright(name):
    given, dense, thin, least = DENSER[name]
    image = read_xray(FILES / f"{name}.dcm", Reading(**given)).image[0, 0]
    mean = lambda top, bottom, left, right: image[top:bottom, left:right].mean()
    assert mean(*dense) > mean(*thin) + least


def test_a_cine_with_a_distance_to_the_patient_has_a_pose():
    path = FILES / "xa_multiframe_jpeg_96x512x512.dcm"
    xray = read_xray(path, Reading(sdd=1000, delx=0.35, sid=750, reducefn="min"))
    assert xray.angles == (-32, 2)
    assert torch.allclose(xray.pose.to_euler()[0], torch.tensor([[-32.0, 2, 0]]), atol=1e-3)


def test_a_portal_image_has_the_pose_of_its_gantry():
    "The source above a patient on the back, 1000 mm from an isocentre at 0/0/0; columns run to the left"
    path, centre = FILES / "rtimage_slit_field.dcm", (30.0, -20, 15)
    xray = read_xray(path, centre=centre)
    geometry = physical_geometry(xray.detector, xray.pose, torch.tensor(centre))
    assert np.allclose(geometry["source"], [0, -1000, 0], atol=1)
    assert np.allclose(geometry["column_step"], [0.392, 0, 0], atol=1e-3)
    assert np.allclose(geometry["row_step"], [0, 0, -0.392], atol=1e-3)
    assert (xray.detector.x0, xray.detector.y0) == pytest.approx((-0.00033, -0.01289), abs=1e-4)


def test_two_codecs_of_one_picture():
    one, other = (read_pixels(FILES / f"xa_1024_{codec}.dcm")[0] for codec in ("jpeg2000_lossless", "jpeg_lossless"))
    assert np.array_equal(one, other)
    one, other = (
        read_xray(FILES / f"xa_1024_{codec}.dcm", Reading(**GIVEN)) for codec in ("jpeg2000_lossless", "jpeg_lossless")
    )
    assert torch.equal(one.image, other.image)


def test_a_slice_is_no_xray_and_xrays_are_no_volume():
    with pytest.raises(XvrError, match="CT slice.*folder"):
        read_xray(next(SERIES.iterdir()))
    with pytest.raises(XvrError, match="not a 3D volume|no volume"):
        read_image(FILES / "mg_full_geometry.dcm")


def test_no_real_xray_has_a_frame():
    files = [*sorted(FILES.glob("*.dcm")), *sorted(DATA.glob("wrist/*.tif")), *DATA.glob("localizer/*.dcm")]
    xrays = [file for file in files if "cropped" not in file.name]  # those are CTs of bones
    assert len(xrays) > 5 and not [file.name for file in xrays if _frame(read_pixels(file, "max")[0][0])]
