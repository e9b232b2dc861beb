"Poses in files of other programs: every way in which ITK writes a rigid transform, and back"

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from click.testing import CliRunner

from xvr import cli
from xvr.conventions import XvrError
from xvr.detector import Detector, pose_of_camera, world_from_patient
from xvr.initialisers import from_file
from xvr.models import read_warp
from xvr.pose import Pose
from xvr.renderer import render
from xvr.simulation import save_truth
from xvr.volume import make_volume, read_volume
from xvr.xray import Xray

SUFFIXES = (".tfm", ".h5", ".txt", ".mat", ".xfm")


def volume_at(centre):
    affine = torch.eye(4).double()
    affine[:3, 3] = torch.tensor(centre).double() - 3.5
    return make_volume(torch.zeros(8, 8, 8), affine)


def xray_as(orientation):
    return Xray(torch.zeros(1, 1, 8, 8), Detector(1020, 8, 40.0, orientation=orientation))


def motions():
    "A rotation and translation as the classes of ITK that hold one, about a centre where they have one"
    turn = sitk.Euler3DTransform([30.0, -40, 12], 0.4, -0.2, 0.3, [5.0, -3, 780])
    quaternion = sitk.VersorRigid3DTransform([0.1, -0.2, 0.3], 0.7, [20.0, 10, 700], [30.0, -40, 12])
    affine = sitk.AffineTransform(3)
    affine.SetCenter([7.0, 8, 9])
    affine.SetMatrix(turn.GetMatrix())
    affine.SetTranslation([1.0, 2, 800])
    similarity = sitk.Similarity3DTransform(1.0, [0.0, 0, 1], 0.3, [3.0, 4, 790], [5.0, 6, 7])
    chain = sitk.CompositeTransform([sitk.TranslationTransform(3, [1.0, 2, 3]), turn])
    return dict(euler=turn, versor=quaternion, affine=affine, similarity=similarity, chain=chain)


def matrix_of(transform):
    "From the transform of four points"
    at = lambda *p: np.array(transform.TransformPoint(p))
    origin = at(0.0, 0, 0)
    return torch.from_numpy(np.vstack([np.column_stack([at(*e) - origin for e in np.eye(3)] + [origin]), [0, 0, 0, 1]]))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", motions())
@pytest.mark.parametrize("orientation", ["AP", "PA"])
def test_camera_in_a_transform(tmp_path, kind, suffix, orientation):
    "Source, up and beam are where SimpleITK puts the origin, y and z, whatever the orientation"
    transform, volume, xray = motions()[kind], volume_at([11.0, -22, 33]), xray_as(orientation)
    if suffix in (".mat", ".xfm") and kind in ("chain", "similarity", "versor", "euler"):
        transform = sitk.AffineTransform(
            *(lambda m: (m[:3, :3].flatten().tolist(), m[:3, 3].tolist()))(matrix_of(transform))
        )
    path = tmp_path / f"camera{suffix}"
    sitk.WriteTransform(transform, str(path))
    camera = world_from_patient(volume.centre).matrix[0] @ matrix_of(transform)
    pose = from_file(path, volume=volume)(xray)
    found = xray.detector.world_from_camera(pose)[0].double()
    assert torch.allclose(found[:, 1:], camera[:, 1:], atol=2e-3)
    side = torch.linalg.cross(camera[:3, 1], camera[:3, 2]) * (1 if orientation == "AP" else -1)
    assert torch.allclose(found[:3, 0], side, atol=1e-5)
    sitk.WriteTransform(transform.GetInverse(), str(tmp_path / "inverse.tfm"))
    again = from_file(tmp_path / "inverse.tfm", invert=True, volume=volume)(xray)
    assert torch.allclose(again.matrix, pose.matrix, atol=2e-3)


def test_ct_motion_is_that_of_resampling(tmp_path, case):
    "The CT that SimpleITK resamples by the transform, before the camera that stays, looks as the CT from the pose"
    turn = sitk.Euler3DTransform([10.0, 40, -30], 0.15, -0.1, 0.2, [12.0, -9, 15])
    image, path = sitk.ReadImage(str(case.ct)), tmp_path / "moved.h5"
    sitk.WriteTransform(turn, str(path))
    sitk.WriteImage(sitk.Resample(image, image, turn, sitk.sitkLinear, -1000.0), str(tmp_path / "moved.nii.gz"))
    ct, moved = read_volume(case.ct), read_volume(tmp_path / "moved.nii.gz")
    still, detector = Pose.from_euler([5.0, 3, -2], [0.0, -800, 0]), Detector(1020, 40, 9.0, reverse_x_axis=True)
    xray = Xray(torch.zeros(1, 1, 40, 40), detector, pose=still)
    pose = from_file(path, "ct", volume=case.ct)(xray)
    assert torch.equal(pose.matrix, from_file(path, "ct", volume=ct, camera=still)(xray).matrix)
    expected, found, apart = (render(v, detector, p) for v, p in ((moved, still), (ct, pose), (ct, still)))
    inside = slice(12, -12)
    error = lambda a: (a - expected)[..., inside, inside].square().mean().sqrt() / expected.std()
    assert error(found) < 0.06 < 0.3 < error(apart)
    inverse = from_file(path, "ct", volume=ct, camera=still, invert=True)(xray)
    assert error(render(ct, detector, inverse)) > 0.3


@pytest.mark.parametrize("own", ["AP", "PA"])
@pytest.mark.parametrize("orientation", ["AP", "PA"])
def test_truth_in_another_orientation_or_frame(tmp_path, own, orientation):
    "Its camera stays where it is in the patient"
    pose, centre = Pose.from_euler([10.0, -5, 3], [4.0, 800 if own == "AP" else -800, 6]), torch.tensor([1.0, 2, 3])
    written, xray = Detector(1000, 8, 40.0, orientation=own), xray_as(orientation)
    save_truth(tmp_path / "truth.json", written, pose, centre)
    for there in (centre, torch.tensor([20.0, -10, 5])):
        found = from_file(tmp_path / "truth.json", volume=volume_at(there.tolist()))(xray)
        patient = lambda d, p, c: (world_from_patient(c).inverse().matrix @ d.world_from_camera(p).double())[0]
        expected = patient(written, pose, centre)
        assert torch.allclose(patient(xray.detector, found, there)[:, 1:], expected[:, 1:], atol=1e-3)
    if own == orientation:
        assert torch.equal(from_file(tmp_path / "truth.json", volume=volume_at([1.0, 2, 3]))(xray).matrix, pose.matrix)


def test_what_is_no_pose(tmp_path):
    volume, xray = volume_at([0.0, 0, 0]), xray_as("PA")
    bend = sitk.BSplineTransformInitializer(sitk.Image(9, 9, 9, sitk.sitkUInt8), [4, 4, 4])
    bend.SetParameters(np.random.default_rng(0).normal(0, 5, len(bend.GetParameters())).tolist())
    (tmp_path / "empty.tfm").touch()
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "list.json").write_text("[1, 2]")
    bad = {
        "empty.tfm": "ITK transform",
        "cut.h5": "ITK transform",
        "list.json": "not a pose file",
        "bend.h5": "not rigid",
        "shear.tfm": "not rigid",
        "none.tfm": "could not be read",
    }
    sitk.WriteTransform(bend, str(tmp_path / "bend.h5"))
    sitk.WriteTransform(sitk.AffineTransform([1.0, 0.1, 0, 0, 1, 0, 0, 0, 1], [0.0] * 3), str(tmp_path / "shear.tfm"))
    for name, said in bad.items():
        with pytest.raises(XvrError, match=said) as raised:
            from_file(tmp_path / name, volume=volume)(xray)
        assert "\n" not in str(raised.value) and "0x" not in str(raised.value), name
    mirror = sitk.AffineTransform([-1.0, 0, 0, 0, 1, 0, 0, 0, 1], [0.0] * 3)
    sitk.WriteTransform(mirror, str(tmp_path / "mirror.tfm"))
    with pytest.raises(XvrError, match="mirrors"):
        from_file(tmp_path / "mirror.tfm", "ct", volume=volume)


def run(*words):
    done = CliRunner().invoke(cli.xvr, [*map(str, words)], prog_name="xvr")
    return done.exit_code, done.stderr


@pytest.mark.parametrize("orientation", ["AP", "PA"])
def test_what_register_writes_is_where_it_starts_again(case, tmp_path, orientation):
    away = 800 if orientation == "AP" else -800
    typed = ["register", "fixed", case.xrays[0], "-v", case.ct, "--orientation", orientation, "--init_only"]
    assert run(*typed, "-o", tmp_path / "a", "--rot", 10, 5, 2, "--xyz", 3, away, -4) == (0, "")
    wrote = tmp_path / "a" / case.xrays[0].stem
    final = lambda out: json.loads((tmp_path / out / case.xrays[0].stem / "result.json").read_text())["final"]["matrix"]
    for n, pose in enumerate((wrote / "pose.tfm", wrote / "result.json", wrote)):
        code, err = run(*typed, "-o", tmp_path / f"b{n}", "--pose", pose)
        assert code == 0, err
        assert np.allclose(final(f"b{n}"), final("a"), atol=1e-3)
    other = "PA" if orientation == "AP" else "AP"
    typed[typed.index(orientation)] = other
    for n, pose in enumerate((wrote / "pose.tfm", wrote / "result.json")):
        assert run(*typed, "-o", tmp_path / f"c{n}", "--pose", pose)[0] == 0
        found = json.loads((tmp_path / f"c{n}" / case.xrays[0].stem / "result.json").read_text())["geometry"]
        first = json.loads((wrote / "result.json").read_text())["geometry"]
        assert np.allclose(found["source"], first["source"], atol=1e-3)
    again = ["register", "fixed", "--config", tmp_path / "b0" / "config.yaml", "-o", tmp_path / "d"]
    assert run(*again)[0] == 0 and np.allclose(final("d"), final("a"), atol=1e-3)


def test_options_of_a_transform_on_the_command_line(case, tmp_path):
    sitk.WriteTransform(sitk.Euler3DTransform(), str(tmp_path / "still.tfm"))
    typed = ["register", "fixed", case.xrays[0], "-v", case.ct, "--init_only", "-o"]
    assert "give it" in run(*typed, tmp_path / "a", "--pose_of", "ct")[1]
    assert "give it" in run(*typed, tmp_path / "a", "--rot", 1, 0, 0, "--xyz", 0, -800, 0, "--invert")[1]
    ct = ["--pose", tmp_path / "still.tfm", "--pose_of", "ct"]
    assert run(*typed, tmp_path / "b", *ct, "--rot", 1, 2, 3, "--xyz", 0, -800, 5) == (0, "")
    found = json.loads((tmp_path / "b" / case.xrays[0].stem / "result.json").read_text())["final"]
    assert found["rot"] == pytest.approx([1, 2, 3], abs=1e-3) and found["xyz"] == pytest.approx([0, -800, 5], abs=1e-2)


def test_pose_of_a_camera_is_the_inverse_of_its_frame():
    torch.manual_seed(0)
    for orientation in ("AP", "PA"):
        detector, centre = Detector(1000, 4, 1.0, orientation=orientation), torch.tensor([4.0, 5, 6])
        pose = Pose.from_euler(torch.rand(1, 3) * 90, torch.randn(1, 3) * 100)
        camera = (world_from_patient(centre).inverse().matrix @ detector.world_from_camera(pose).double())[0]
        assert torch.allclose(pose_of_camera(camera, centre, orientation).matrix, pose.matrix.double(), atol=1e-4)


@pytest.mark.parametrize("lines", [
    ["Parameters: [] 0.2 0.3 1 2 3", "FixedParameters: 10 20 30 0"],  # ITK reads beyond the five numbers
    ['Parameters: "x" 0.1 0.2 0.3 1 2 3', "FixedParameters: 10 20 30 0"],
    ["Parameters: 1e999 0.2 0.3 1 2 3", "FixedParameters: 10 20 30 0"],
    ["Parameters: 0.1 0.2 0.3 1 2 3"],  # which ITK takes for the identity
    ["FixedParameters: 10 20 30 0"],
])  # fmt: skip
def test_damaged_transforms_are_refused(tmp_path, lines):
    path = tmp_path / "pose.tfm"
    head = ["#Insight Transform File V1.0", "#Transform 0", "Transform: Euler3DTransform_double_3_3"]
    path.write_text("\n".join([*head, *lines, ""]))
    with pytest.raises(XvrError, match="could not be read as a pose"):
        from_file(path, volume=volume_at([0, 0, 0]))
    with pytest.raises(XvrError, match="damaged"):
        read_warp(path)
