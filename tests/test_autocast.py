"Inside `torch.autocast` what compares poses and images is the same as outside, and so are its derivatives"

import pytest
import torch

from xvr.detector import Detector
from xvr.losses import anatomy_points, dice_distance, double_geodesic, image_distance, multiview, silhouettes
from xvr.metrics import _turn_between, depth_error, geodesics, mpe, mrpe, mtre
from xvr.phantom import grid_affine, thorax, voxelise
from xvr.pose import Pose
from xvr.registration import register
from xvr.renderer import render
from xvr.similarity import SIMILARITIES, mutual_information, similarity_named
from xvr.volume import make_volume
from xvr.xray import Xray

SHAPE = 36, 30, 42
AFFINE = grid_affine(SHAPE, 8.0)
VOLUME = make_volume(voxelise(thorax(), SHAPE, AFFINE, 1), AFFINE)
VIEW = Detector(1020, 48, 8.0)
TRUTH = Pose.from_euler([[6.0, 2, 1], [1, 2, 0]], [[4.0, -805, 3], [0, -800, 0]])
MATRIX = Pose.from_euler([[5.0, 3, 0], [2, 1, 1]], [[0.0, -800, 0], [3, -790, 5]]).matrix
XRAY = render(VOLUME, VIEW, TRUTH)
POINTS = anatomy_points(VOLUME, 50)

OF_POSES = dict(
    mtre=lambda pose: mtre(pose, TRUTH, POINTS),
    mpe=lambda pose: mpe(pose, TRUTH, POINTS, VIEW),
    mrpe=lambda pose: mrpe(pose, TRUTH, POINTS),
    depth=lambda pose: depth_error(pose, TRUTH, POINTS, VIEW),
    turn=lambda pose: _turn_between(pose, TRUTH),
    translation=lambda pose: geodesics(pose, TRUTH).translation,
    geodesic=lambda pose: double_geodesic(pose, TRUTH, 1020.0),
    multiview=lambda pose: multiview(pose, TRUTH, 1020.0),
    dice=lambda pose: dice_distance(*(silhouettes([VOLUME], VIEW, p) for p in (pose, TRUTH))),
    distance=lambda pose: image_distance(render(VOLUME, VIEW, pose), XRAY),
)
OF_IMAGES = dict(SIMILARITIES, sum=similarity_named("mncc+gncc"), information=mutual_information)
STARTS = dict.fromkeys(OF_POSES, MATRIX) | {name: render(VOLUME, VIEW, Pose(MATRIX)) for name in OF_IMAGES}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", STARTS)
def test_values_and_derivatives(name, dtype):
    "Forward inside, backward outside, as PyTorch recommends"
    found = []
    for inside in (False, True):
        x = STARTS[name].clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=inside):
            value = OF_POSES[name](Pose(x)) if name in OF_POSES else OF_IMAGES[name](x, XRAY)
        found.append((value.detach(), *torch.autograd.grad(value.sum(), x)))
    assert found[0][1].any() and found[1][0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", SIMILARITIES)
def test_normal_equations(name):
    image, jacobian = STARTS[name], torch.randn(2, 6, 48, 48, generator=torch.Generator().manual_seed(0))
    outside = SIMILARITIES[name].normal_equations(image, jacobian, XRAY)
    with torch.autocast("cpu", torch.bfloat16):
        inside = SIMILARITIES[name].normal_equations(image, jacobian, XRAY)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_levels_of_a_volume():
    outside = VOLUME.at(20.0).density
    with torch.autocast("cpu", torch.bfloat16):
        inside = make_volume(VOLUME.density, AFFINE).at(20.0).density
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)


def test_registration():
    xray, start = Xray(XRAY[:1], VIEW), Pose(MATRIX[:1])
    outside = register(xray, VOLUME, start)
    with torch.autocast("cpu", torch.bfloat16):
        inside = register(xray, VOLUME, start)
    assert torch.equal(inside.final.matrix, outside.final.matrix) and inside.similarity == outside.similarity
    assert torch.equal(inside.covariance, outside.covariance) and mtre(inside.final, TRUTH[:1], POINTS) < 0.5
