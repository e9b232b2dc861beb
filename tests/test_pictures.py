"X-rays that are no DICOM files: one radiograph in every format, and a camera in a file beside it"

import json
import shutil
import subprocess

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from xvr import cli
from xvr.cameras import to_calibration
from xvr.conventions import XvrError
from xvr.detector import physical_geometry, world_from_patient
from xvr.pose import Pose
from xvr.volume import read_volume
from xvr.xray import Reading, linearize_beam, read_xray


@pytest.fixture(scope="module")
def shot(case):
    "The pixels of an X-ray, what they show, the truth beside it, and the volume's centre"
    pixels = pydicom.dcmread(case.xrays[0]).pixel_array.astype(np.uint16)
    return (
        pixels,
        read_xray(case.xrays[0]),
        json.loads(case.xrays[0].with_suffix(".json").read_text()),
        read_volume(case.ct).centre,
    )


def itk(pixels, path):
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(path))


def nib(affine, arrange):
    return lambda pixels, path: nibabel.save(
        nibabel.Nifti1Image(arrange(pixels.T.astype(np.int16)), np.diag(affine)), path
    )


WAYS = {
    "png": (".png", lambda pixels, path: Image.fromarray(pixels).save(path)),
    "tif": (".tif", lambda pixels, path: Image.fromarray(pixels).save(path)),
    "npy": (".npy", lambda pixels, path: np.save(path, pixels)),
    "npy, big-endian": (".npy", lambda pixels, path: np.save(path, pixels.astype(">u2"))),
    "npy, Fortran order": (".npy", lambda pixels, path: np.save(path, np.asfortranarray(pixels))),
    "npy, a frame": (".npy", lambda pixels, path: np.save(path, pixels[None].astype(np.float32))),
    "NIfTI by ITK": (".nii.gz", itk),
    "NIfTI by ITK, a slice": (".nii", lambda pixels, path: itk(pixels[None], path)),
    "NIfTI to the left and back": (".nii", nib([-1, -1, 1, 1], lambda p: p)),
    "NIfTI to the left and front": (".nii.gz", nib([-2, 2, 1, 1], lambda p: p[:, ::-1])),
    "NIfTI to the right and front": (".nii", nib([1, 1, 1, 1], lambda p: p[::-1, ::-1])),
    "NIfTI of a coronal plane": (".nii", lambda pixels, path: nibabel.save(nibabel.Nifti1Image(pixels.T[:, ::-1, None].astype(np.int16), [[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]), path)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_one_xray_in_every_format(way, shot, tmp_path):
    pixels, xray, truth, centre = shot
    suffix, write = WAYS[way]
    write(pixels, tmp_path / f"x{suffix}")
    (tmp_path / "x.json").write_text(json.dumps(truth))
    read = read_xray(tmp_path / f"x{suffix}", centre=centre)
    assert torch.equal(read.image[0, 0], torch.tensor(pixels.astype(np.float32)))
    assert (
        torch.allclose(read.pose.matrix, torch.tensor(truth["matrix"]), atol=1e-3)
        and read.detector.reverse_x_axis == xray.detector.reverse_x_axis
    )
    assert all(
        np.isclose(getattr(read.detector, k), getattr(xray.detector, k), atol=1e-3)
        for k in ("sdd", "delx", "dely", "x0", "y0", "height", "width")
    )
    line = read_xray(tmp_path / f"x{suffix}", Reading(linearize=True)).image
    assert torch.allclose(line, linearize_beam(torch.tensor(pixels.astype(np.float32)))[None, None])


@pytest.mark.skipif(not shutil.which("dcm2niix"), reason="dcm2niix is not on the PATH: pip install dcm2niix")
def test_what_dcm2niix_makes_of_an_xray(case, shot, tmp_path):
    shutil.copy(case.xrays[0], tmp_path)
    subprocess.run(["dcm2niix", "-f", "x", "-o", tmp_path, tmp_path], check=True, capture_output=True)
    assert (tmp_path / "x.json").exists()  # its own, about other things
    assert torch.equal(
        read_xray(tmp_path / "x.nii", Reading(sdd=1020, delx=5.8)).image[0, 0], torch.tensor(shot[0].astype(np.float32))
    )


def test_the_truth_beside_a_dicom_file_is_not_read(case, shot, tmp_path):
    shutil.copy(case.xrays[0], tmp_path / "x.dcm")
    (tmp_path / "x.json").write_text('{"sdd": 1, "nonsense": 0}')
    read = read_xray(tmp_path / "x.dcm", centre=shot[3])
    assert read.detector == shot[1].detector and torch.equal(read.pose.matrix, shot[1].pose.matrix)


def beside(shot, kind):
    "What may stand beside the X-ray"
    _, xray, truth, centre = shot
    pose = Pose(torch.tensor(truth["matrix"], dtype=torch.float64))
    K, R, t = (m.tolist() for m in to_calibration(xray.detector, world_from_patient(centre).inverse() @ pose))
    return {
        "geometry": dict(geometry=physical_geometry(xray.detector, pose, centre)),
        "calibration": dict(K=K, R=R, t=t, delx=xray.detector.delx, height=64),
    }[kind]


@pytest.mark.parametrize("kind, suffix, way", [("geometry", "json", "png"), ("calibration", "yaml", "NIfTI by ITK")])
def test_registration_starts_from_the_camera_beside(kind, suffix, way, case, shot, tmp_path):
    picture = tmp_path / f"x{WAYS[way][0]}"
    WAYS[way][1](shot[0], picture)
    sidecar = beside(shot, kind)
    (tmp_path / f"x.{suffix}").write_text(json.dumps(sidecar) if suffix == "json" else yaml.safe_dump(sidecar))
    settings = ["--linearize", "--init_only", "-v", case.ct, "-o", tmp_path / "out"]
    result = CliRunner().invoke(cli.xvr, list(map(str, ["register", "dicom", picture, *settings])))
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out/x/result.json").read_text())
    assert np.allclose(found["final"]["matrix"], shot[2]["matrix"], atol=1e-3) and found["similarity"]["final"] > 0.9
    assert np.allclose(found["geometry"]["source"], shot[2]["geometry"]["source"], atol=1e-2)
    info = CliRunner().invoke(cli.xvr, ["info", str(picture)]).output
    assert f"mm (LPS), as x.{suffix} states" in " ".join(info.split())


def test_options_win_over_the_file(shot, tmp_path):
    np.save(tmp_path / "x.npy", shot[0])
    for sidecar in (dict(sdd=900, delx=1, dely=2), beside(shot, "calibration"), beside(shot, "geometry")):
        (tmp_path / "x.json").write_text(json.dumps(sidecar))
        read = read_xray(tmp_path / "x.npy", Reading(sdd=1200, delx=3, dely=4, reverse_x_axis=True))
        assert (read.detector.sdd, read.detector.delx, read.detector.dely, read.detector.reverse_x_axis) == (
            1200,
            3,
            4,
            True,
        )


def test_an_orientation_names_the_same_camera(shot, tmp_path):
    np.save(tmp_path / "x.npy", shot[0])
    (tmp_path / "x.json").write_text(json.dumps(beside(shot, "geometry")))
    one, other = (read_xray(tmp_path / "x.npy", Reading(orientation=o), centre=shot[3]) for o in ("AP", "PA"))
    assert one.detector.reverse_x_axis != other.detector.reverse_x_axis
    assert all(
        torch.allclose(a, b, atol=1e-2) for a, b in zip(one.detector.rays(one.pose), other.detector.rays(other.pose))
    )


def test_frames_and_damage(shot, tmp_path):
    frames = np.stack([shot[0], shot[0] // 2, shot[0] // 3])
    np.save(tmp_path / "x.npy", frames)
    nibabel.save(nibabel.Nifti1Image(frames.T.astype(np.int16), np.diag([-1, -1, 1, 1])), tmp_path / "x.nii")
    for name in ("x.npy", "x.nii"):
        read = read_xray(tmp_path / name, Reading(sdd=1020, delx=5.8, reducefn=2))
        assert torch.equal(read.image[0, 0], torch.tensor(frames[1].astype(np.float32)))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(XvrError, match=name) as refused:
            read_xray(tmp_path / name, Reading(sdd=1020, delx=5.8))
        assert "\n" not in str(refused.value)
