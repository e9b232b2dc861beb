"What is true of real files, kept outside the repository: each is read right, or refused with the right sentence"

import os
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from xvr.volume import choose_series, dcm2nii, read_image

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
    assert np.allclose(ours.GetSpacing(), (0.9765625, 0.9765625, 2)) and np.allclose(ours.GetOrigin(), (-249.51171875, -437.51171875, -804.5))
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
    assert "CT Body 3.0" in line and "512 x 512" in line and "0.977 x 0.977 x 2" in line and line.endswith("axial") and len(line) <= 80
    assert choose_series(SERIES).problem is None
