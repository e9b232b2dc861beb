"Bones cut out of a CT in real X-rays of a forearm, and what must not change for a whole CT"

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, max_pool2d, pad

from xvr.cameras import from_calibration
from xvr.detector import Detector, resize_image
from xvr.optimisers import SEEN, GaussNewton, Structure, _MatchedNCC, camera_axes, make_level
from xvr.pose import Pose, exp, log
from xvr.registration import _evidence_at, _in_place, _local_contrast, register, register_together
from xvr.renderer import render
from xvr.volume import make_volume
from xvr.xray import Xray, linearize_beam

DATA = Path(os.environ.get("XVR_DATA", Path(__file__).resolve().parents[2] / "shared/data")) / "wrist"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/wrist")
FRAME, SPACING = 158, torch.diag(torch.tensor([0.39625, 0.39625, 0.625, 1.0]))
# Camera 1 in the bone's frame, as the correlation of edges (`gncc`) finds it from 720 starts in both views: a rotation
# vector and a translation, mm
FOUND = dict(
    rad=([-2.969626, -0.849032, -0.084769], [555.847, -871.826, -117.544]),
    uln=([1.834566, 2.439495, 0.285321], [1015.109, 285.071, 120.952]),
)
JOINT_REGION = 12.6  # 95 % of a chi-squared variable with six degrees of freedom are below
AXES_IN_DEGREES = torch.tensor([180 / np.pi] * 3 + [1.0] * 3)


def camera_of(n) -> tuple[Detector, Pose]:
    lines = [line.split(",") for line in (DATA / f"xr_calib_wrist_cam0{n}.txt").read_text().splitlines()]
    (width, height), *rows = [[float(v) for v in x] for x in lines if x[0] and not x[0].strip("-.0123456789")]
    return from_calibration(*(np.array(rows[k : k + 3]) for k in (0, 3, 6)), int(height), int(width), sdd=1800)


@pytest.fixture(scope="module")
def views():
    "Both X-rays, cropped, and the second camera's pose in the first one's frame"
    xrays, (cameras, poses) = [], zip(*map(camera_of, (1, 2)))
    for n, (left, right) in enumerate(((640, 960), (560, 900))):
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(DATA / f"xr_rad_uln_cam0{n + 1}_UND.{FRAME:04}.tif")))
        part = torch.tensor(values[1110:1640, left:right].astype(np.float32))[None, None].clamp(min=2)
        detector = cameras[n].crop(1110, 1760 - 1640, left, 1760 - right).resize(512)
        xrays.append(Xray(resize_image(linearize_beam(part), detector.height, detector.width), detector))
    return xrays, poses[0].inverse() @ poses[1]


def bone_of(name):
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(DATA / f"{name}_dcm_cropped.tif"))).astype(np.float32) / 4095
    return make_volume(torch.tensor(np.clip(values - 0.25, 0, None)), SPACING)


def poses_of(name, relation, motion=None) -> list[Pose]:
    "Both cameras, moved in the bone's frame"
    turn, shift = FOUND[name]
    first = torch.eye(4)
    first[:3, :3] = torch.tensor(Rotation.from_rotvec(turn).as_matrix())
    first[:3, 3] = torch.tensor(shift)
    first = first if motion is None else exp(torch.tensor([motion])).matrix[0] @ first
    return [Pose(first[None]), Pose(first[None]) @ relation]


def off(pose, other, detector) -> torch.Tensor:
    "Turns (degrees) and shifts (mm) in the camera's axes"
    motion = log(Pose(pose.matrix.double() @ other.inverse().matrix.double()))[0]
    return camera_axes(detector, other)[0].mT @ motion * AXES_IN_DEGREES


ASIDE = [0.05, -0.05, 0.05, 3.0, -3.0, 3.0]  # 5 degrees and 5 mm


@needs_data
@pytest.mark.parametrize("name", FOUND)
def test_both_views_find_a_bone_and_each_view_states_an_interval_with_that_pose(views, name):
    xrays, relation = views
    bone, lone = bone_of(name), Structure()
    both = register_together(xrays, bone, poses_of(name, relation, ASIDE), structure=lone)
    assert [r.verdict for r in both] == ["ok", "ok"], both
    for result, found in zip(both, poses_of(name, relation)):
        assert off(result.final, found, result.detector).abs().max() < 0.3
    for xray, true in zip(xrays, (r.final for r in both)):
        one = register(xray, bone, true, structure=lone)
        error = off(true, one.final, xray.detector)
        assert one.verdict == "ok", one
        assert (error.abs() < 1.96 * one.covariance.diagonal().sqrt()).all(), (error, one.deviation)
        assert error @ torch.linalg.solve(one.covariance, error) < JOINT_REGION, (error, one.covariance)


@needs_data
@pytest.mark.parametrize("name, where, motion", [("uln", "rad", None), ("rad", "uln", None), ("rad", "rad", 10.0)])
def test_another_bone_and_a_bone_beside_its_place_are_not_ok(views, name, where, motion):
    xrays, relation = views
    start = poses_of(where, relation, motion and [0.0, 0, 0, motion, 0, 0])
    results = register_together(xrays, bone_of(name), start, structure=Structure(), init_only=motion is not None)
    assert all(r.verdict != "ok" and r.probability < 0.5 for r in results), results


@pytest.fixture(scope="module")
def patient():
    "A volume of ellipsoids, an X-ray of it, and the pose"
    random, at = np.random.default_rng(0), np.stack(np.meshgrid(*[np.arange(48)] * 3, indexing="ij"), -1)
    density = 0.2 * ((((at - 24) / 20) ** 2).sum(-1) < 1)
    for _ in range(40):
        centre, radii = random.uniform(10, 38, 3), random.uniform(1.5, 5, 3)
        density += random.uniform(0.1, 0.6) * ((((at - centre) / radii) ** 2).sum(-1) < 1)
    volume = make_volume(torch.tensor(density).float(), torch.diag(torch.tensor([4.0, 4, 4, 1])))
    detector, pose = Detector(1000, 256, 1.2), Pose.from_euler([[10.0, 5, 0]], [[0.0, -800, 0]])
    image = render(volume, detector, pose, method="siddon")
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return volume, Xray(image + 0.02 * image.std() * noise, detector), pose


def before(level, image) -> dict:
    "The evidence as it was when structures had none of their own"
    weight = torch.ones_like(image) if level.weight is None else level.weight
    image, xray, weight = (avg_pool2d(x, 2) for x in (image, level.xray, weight))
    weight = 1 - max_pool2d((weight < 0.5).to(image), 9, 1, 4)
    a, b = weight * _local_contrast(image), weight * _local_contrast(xray)
    energy = lambda x: adaptive_avg_pool2d(x.square(), 8).flatten()
    use = (adaptive_avg_pool2d(weight, 8).flatten() > 0.3) & (energy(a) > 0.05 * energy(a).max())
    wide, (height, width) = pad(b, (3,) * 4), a.shape[-2:]
    places = [wide[..., y : y + height, x : x + width] for y in range(7) for x in range(7)]
    alike = torch.cat([adaptive_avg_pool2d(a * place, 8).flatten(1) for place in places])
    shifted = (alike / (energy(a) * energy(b)).sqrt().clamp(min=1e-9))[:, use]
    return dict(parts=float(use.sum()), in_place=_in_place(shifted))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_the_evidence_for_a_whole_ct_is_what_it_was(patient, masked, part):
    volume, xray, pose = patient
    weight = torch.ones_like(xray.image)
    weight[..., :40, 100:] = 0
    xray = Xray(xray.image, xray.detector, weight=weight if masked else None)
    structure = Structure(15.0, volume, poses=(pose,)) if part else None
    for at in (pose, pose.perturb(torch.tensor([[0.02, 0, 0, 3.0, 0, 0]]))):
        level = make_level(volume, xray, at, 256, structure)
        image = render(level.volume, level.detector, at) + level.behind
        evidence = _evidence_at(level, image)
        assert {k: evidence[k] for k in ("parts", "in_place")} == before(level, image)
        assert set(evidence) == {"parts", "in_place", "ncc"}


def test_a_whole_ct_and_a_part_with_the_rest_behind_it_never_use_the_matched_filter(patient, monkeypatch):
    volume, xray, pose = patient

    def refuse(*_):
        raise AssertionError("the matched filter is for a structure by itself")

    monkeypatch.setattr(_MatchedNCC, "normal_equations", refuse)
    start = pose.perturb(torch.tensor([[0.03, -0.02, 0.03, 3.0, 4, -3]]))
    found = register(xray, volume, start)
    assert found.verdict == "ok" and off(found.final, pose, xray.detector)[:5].abs().max() < 0.5
    register(xray, volume, start, GaussNewton((128,)), structure=Structure(15.0, volume, poses=(pose,)))
    with pytest.raises(AssertionError, match="matched filter"):
        register(xray, volume, pose, structure=Structure())


@pytest.mark.parametrize("margin", [1.0, 15.0, 60.0])
def test_a_structure_is_compared_within_a_square_around_each_pixel_that_shows_it(patient, margin):
    volume, xray, pose = patient
    part = replace(volume, density=volume.density * (volume.density > 0.6), _levels={})
    level = make_level(part, xray, pose, 128, Structure(margin))
    seen = (render(level.volume, level.detector, pose) > SEEN).float()
    reach = max(2, round(margin / level.pixel))
    assert torch.equal(level.weight, max_pool2d(seen, 2 * reach + 1, 1, reach)) and 0 < level.weight.mean() < 1
