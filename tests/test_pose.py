"Poses where formulas break: gradients at zero and at half a turn, angles with two axes in line, inside autocast"

import importlib.util
from itertools import product

import diffdrr.pose
import pytest
import torch
from diffdrr.data import read
from diffdrr.pose import RigidTransform, convert
from diffdrr.registration import Registration
from torchio import ScalarImage

from xvr.detector import Detector, backproject, pixel_grid, project, resize_image
from xvr.drr import DRR
from xvr.pose import PARAMETERIZATIONS, Pose, log
from xvr.renderer import line_integrals, render, render_jacobian
from xvr.volume import make_volume

names = pytest.mark.parametrize("name", PARAMETERIZATIONS)
XYZ = torch.tensor([[5.0, 850, -4]]).double()
WEIGHTS = torch.arange(16.0).reshape(4, 4).sin().double()
TURNS = dict(
    zero=torch.eye(3),
    tiny=torch.linalg.matrix_exp(torch.tensor([[0, -2e-7, -5e-7], [2e-7, 0, -3e-7], [5e-7, 3e-7, 0]]).double()),
    half_x=torch.diag(torch.tensor([1.0, -1, -1])),
    half_y=torch.diag(torch.tensor([-1.0, 1, -1])),
    half_z=torch.diag(torch.tensor([-1.0, -1, 1])),
    any=Pose.from_euler([40.0, 20, -30], [0, 0, 0]).to(torch.float64).rotation[0],
)


def matrix_by_own(rot, xyz, name):
    return Pose.from_parameters(rot, xyz, name).matrix


def matrix_by_diffdrr(rot, xyz, name):
    return convert(rot, xyz, parameterization=name, convention="ZXY").matrix


def matrix_by_drr(rot, xyz, name):
    "What `DRR` makes of a rotation and a translation"
    seen = []
    drr = DRR(small_subject(), 1020, 4, 100.0)
    drr._render_plate = lambda pose, *rest: seen.append(pose.matrix) or torch.zeros(len(rot), 1, 16)
    drr(rot, xyz, parameterization=name, convention="ZXY")
    return seen[0]


def small_subject():
    affine = torch.diag(torch.tensor([12.0, 12, 12, 1]))
    affine[:3, 3] = -66
    grid = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, 12),) * 3, indexing="ij"))
    shift = torch.tensor([0.2, -0.1, 0.3])[:, None, None, None]
    hu = 800 * (-((grid - shift) ** 2).sum(0) * 4).exp() - 1000 * (grid.norm(dim=0) > 1)
    return read(ScalarImage(tensor=hu[None], affine=affine.numpy()))


@names
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("make", [matrix_by_own, matrix_by_diffdrr, matrix_by_drr])
def test_gradient_is_that_of_finite_differences(name, turn, make):
    "In float64, at rotations where a root, an eigenvalue or a singular value has a kink of its own"
    matrix = torch.eye(4).double()[None].clone()
    matrix[0, :3, :3] = TURNS[turn]
    matrix[0, :3, 3] = TURNS[turn].double() @ XYZ[0]
    rot, xyz = (x.detach() for x in Pose(matrix).to_parameters(name))
    assert torch.allclose(make(rot, xyz, name), matrix, atol=1e-6)
    jacobian = torch.autograd.functional.jacobian(lambda r, t: make(r, t, name), (rot, xyz))
    for which, found in enumerate(jacobian):
        for n in range(found.shape[-1]):
            ends = []
            for sign in (1, -1):
                moved = [rot.clone(), xyz.clone()]
                moved[which][0, n] += sign * 1e-6
                ends.append(make(*moved, name))
            numeric = (ends[0] - ends[1]) / 2e-6
            assert torch.allclose(found[..., 0, n], numeric, rtol=1e-5, atol=1e-4), (which, n)


@names
def test_second_derivatives_agree_with_differences(name):
    "Of every parameterization, at the identity and elsewhere"
    for matrix in (torch.eye(4)[None], Pose.from_euler([[20.0, 30, -40]], [[0.0, 0, 0]]).matrix):
        rot = Pose(matrix.double()).to_parameters(name)[0].detach().double().requires_grad_()
        kind = dict(parameterization=name, convention="ZXY")
        weighed = lambda rot, kind=kind: (diffdrr.pose.convert(rot, XYZ, **kind).matrix * WEIGHTS).sum()
        assert torch.autograd.gradgradcheck(weighed, rot, atol=1e-4), name


def test_rotation_vectors_turn_about_their_axis_at_zero():
    "The closed form: at zero the derivative of a rotation is the cross product with its axis"
    cross = torch.tensor([[[0, 0, 0], [0, 0, -1], [0, 1, 0]], [[0, 0, 1], [0, 0, 0], [-1, 0, 0]],
                          [[0, -1, 0], [1, 0, 0], [0, 0, 0]]]).double()  # fmt: skip
    for name in ("axis_angle", "se3_log_map"):
        turn = lambda rot, name=name: Pose.from_parameters(rot, XYZ, name).rotation[0]
        found = torch.autograd.functional.jacobian(turn, torch.zeros(1, 3).double())[:, :, 0].movedim(-1, 0)
        assert torch.equal(found, cross), name


@names
def test_values_are_those_of_diffdrr(name):
    "Bit for bit; its gradients, too, where they are right"
    spec = importlib.util.find_spec("diffdrr.pose")
    spec.loader.exec_module(untouched := importlib.util.module_from_spec(spec))
    assert untouched.axis_angle_to_quaternion is not diffdrr.pose.axis_angle_to_quaternion
    torch.manual_seed(0)
    rot, xyz = torch.randn(200, PARAMETERIZATIONS[name]), torch.randn(200, 3) * 300
    how, weight, gradients, matrices = dict(parameterization=name, convention="ZXY"), torch.randn(200, 4, 4), [], []
    for module in (diffdrr.pose, untouched):
        given = rot.clone().requires_grad_()
        matrices.append(module.convert(given, xyz, **how).matrix)
        gradients += torch.autograd.grad((matrices[-1] * weight).sum(), given)
    assert torch.equal(*matrices)
    assert ((gradients[0] - gradients[1]).norm(dim=-1) < 1e-4 * gradients[1].norm(dim=-1)).all()


@pytest.mark.parametrize("name", ["axis_angle", "se3_log_map", "euler_angles"])
def test_registration_of_diffdrr_starts_at_zero(name):
    "Its own module around our DRR: no step from a rotation of exactly zero may lose the pose"
    drr = DRR(small_subject(), 1020, 24, 12.0, renderer="trilinear")
    xyz, how = torch.tensor([[0.0, 850, 0]]), dict(parameterization=name, convention="ZXY")
    with torch.no_grad():
        xray = drr(torch.tensor([[0.1, -0.05, 0.08]]), xyz + torch.tensor([[10.0, 0, -6]]), **how)
    module = Registration(drr, torch.zeros(1, 3), xyz.clone(), **how)
    adam = torch.optim.Adam([dict(params=[module._rotation], lr=5e-3), dict(params=[module._translation], lr=0.5)])
    losses = []
    for _ in range(25):
        adam.zero_grad()
        loss = (module() - xray).square().mean()
        loss.backward()
        assert module._rotation.grad.isfinite().all() and module._rotation.grad.any()
        adam.step()
        losses.append(loss.item())
    assert module.pose.matrix.isfinite().all() and losses[-1] < 0.3 * losses[0]


@names
def test_parameters_have_finite_gradients(name):
    "The way back, from a matrix to parameters"
    for turn, rotation in TURNS.items():
        matrix = torch.eye(4).double()[None].clone()
        matrix[0, :3, :3], matrix[0, :3, 3] = rotation, XYZ
        given = matrix.requires_grad_()
        rot, xyz = Pose(given).to_parameters(name)
        (gradient,) = torch.autograd.grad(rot.sum() + xyz.sum(), given)
        assert gradient.isfinite().all(), turn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("convention", ["ZXY", "XYZ", "YZX", "ZXZ", "ZYZ", "XYX", "XZX", "YXY", "YZY"])
def test_euler_angles_lead_back(convention, dtype):
    "Also where the first and third axes are in line, at which only a sum or difference of two angles is defined"
    torch.manual_seed(0)
    for middle in (0.0, 90.0, -90.0, 180.0, 1e-3, 33.0):
        rot = torch.rand(500, 3, dtype=dtype) * 360 - 180
        rot[:, 1] = middle
        rot[0] = torch.tensor([0, middle, 0])
        pose = Pose.from_euler(rot, [0.0, 850, 0], convention)
        back = Pose.from_euler(*pose.to_euler(convention), convention)
        assert (back.matrix - pose.matrix).abs().max() < 0.02, middle  # mm, 850 mm away


def test_a_sine_rounded_above_one_has_an_angle():
    turn = torch.tensor([[1.0, 0, 0], [0, 0, -1 - 1e-7], [0, 1 + 1e-7, 0]])
    matrix = torch.eye(4)
    matrix[:3, :3] = turn
    for convention in ("ZXY", "YXZ", "XYX"):
        assert Pose(matrix).to_euler(convention)[0].isfinite().all(), convention


VOLUME = make_volume(
    torch.rand(9, 8, 7, generator=torch.Generator().manual_seed(0)), torch.diag(torch.tensor([18.0, 15, 16, 1]))
)
VIEW, POSE = (
    Detector(1020, 12, 30.0, 14, orientation="AP"),
    Pose.from_euler([[20.0, 5, 3], [1, 2, 3]], [[5.0, 850, -4]]),
)
POINTS = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(1)) * 60
DIFFDRR_POSE = RigidTransform(POSE.matrix)
AUTOCAST = {
    "pose @ pose": lambda: (POSE @ POSE).matrix,
    "inverse": lambda: POSE.inverse().matrix,
    "compose": lambda: POSE.compose(POSE).matrix,
    "points": lambda: POSE(POINTS),
    "perturb": lambda: POSE.perturb(torch.full((2, 6), 0.03)).matrix,
    "antipode": lambda: POSE.antipode().matrix,
    "log": lambda: log(POSE),
    "world_from_camera": lambda: VIEW.world_from_camera(POSE),
    "pixel_grid": lambda: pixel_grid(VIEW),
    "rays": lambda: torch.cat(VIEW.rays(POSE), 1),
    "plate": lambda: torch.cat(VIEW.plate(POSE), 1),
    "project": lambda: project(VIEW, POSE, POINTS),
    "backproject": lambda: backproject(VIEW, POSE, POINTS[..., :2]),
    "resize_image": lambda: resize_image(POINTS[None], 4, 2),
    "jacobian": lambda: torch.cat(render_jacobian(VOLUME, VIEW, POSE), 1),
}
for _name in PARAMETERIZATIONS:
    AUTOCAST[f"to {_name}"] = lambda n=_name: torch.cat(POSE.to_parameters(n), 1)
    AUTOCAST[f"from {_name}"] = lambda n=_name, q=POSE.to_parameters(_name): Pose.from_parameters(*q, n).matrix
for _how in product(("trilinear", "joseph", "siddon"), ("cpu", "torch"), (None, 2.0)):
    _how = dict(zip(("method", "backend", "step"), _how))
    AUTOCAST[f"render {_how}"] = lambda how=_how: render(VOLUME, VIEW, POSE, **how)
    AUTOCAST[f"rays {_how}"] = lambda how=_how: line_integrals(VOLUME, *VIEW.rays(POSE), **how)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("what", AUTOCAST)
def test_autocast_changes_nothing(what, dtype):
    outside = AUTOCAST[what]()
    with torch.autocast("cpu", dtype):
        inside = AUTOCAST[what]()
    assert inside.dtype == outside.dtype and torch.equal(inside, outside)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("renderer", ["siddon", "trilinear"])
def test_autocast_changes_nothing_in_drr(renderer, dtype):
    drr = DRR(small_subject(), 1020, 20, 20.0, renderer=renderer)
    rot, xyz = torch.tensor([[0.3, 0.1, 0]]), torch.tensor([[5.0, 850, -4]])
    calls = [
        lambda: drr(DIFFDRR_POSE),
        lambda: drr(rot, xyz, parameterization="axis_angle"),
        lambda: drr(rot, xyz, parameterization="euler_angles", convention="ZXY"),
        lambda: drr(DIFFDRR_POSE, calibration=drr.detector.calibration),
        lambda: drr.render(drr.density, *drr.detector(DIFFDRR_POSE)),
        lambda: drr.perspective_projection(DIFFDRR_POSE, POINTS),
        lambda: drr.inverse_projection(DIFFDRR_POSE, POINTS[..., :2]),
    ]
    for n, call in enumerate(calls):
        outside = call()
        with torch.autocast("cpu", dtype):
            inside = call()
        assert inside.dtype == outside.dtype and torch.equal(inside, outside), n


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_autocast_changes_no_gradient(name, backend):
    "Forward inside, backward outside, as PyTorch recommends"
    gradients = []
    for inside in (False, True):
        rot, xyz = (x.detach().clone().requires_grad_() for x in POSE.to_parameters(name))
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            image = render(VOLUME, VIEW, Pose.from_parameters(rot, xyz, name), backend=backend)
        gradients.append(torch.cat(torch.autograd.grad(image.square().sum(), (rot, xyz)), 1))
    assert gradients[0].any() and torch.equal(*gradients)


def test_what_a_network_predicts_in_half_precision():
    "Its numbers are rounded, what is computed of them is not"
    for dtype in (torch.bfloat16, torch.float16):
        rot, xyz = torch.tensor([[0.3, 0.1, 0.2]], dtype=dtype), torch.tensor([[5.0, 850, -4]], dtype=dtype)
        exact = Pose.from_parameters(rot.float(), xyz.float())
        for inside in (False, True):
            with torch.autocast("cpu", dtype, enabled=inside):
                pose = Pose.from_parameters(rot, xyz)
                seen = project(VIEW, pose, POINTS[:1])
                image = render(VOLUME, VIEW, pose)
            assert torch.equal(pose.matrix, exact.matrix) and torch.equal(seen, project(VIEW, exact, POINTS[:1]))
            assert torch.equal(image, render(VOLUME, VIEW, exact))
            with torch.autocast("cpu", dtype):
                assert project(VIEW, exact, POINTS[:1].to(dtype)).dtype == torch.float32
    drr = DRR(small_subject(), 1020, 8, 50.0)
    rounded = RigidTransform(POSE.matrix.bfloat16())
    assert torch.equal(drr(rounded), drr(RigidTransform(rounded.matrix.float())))
