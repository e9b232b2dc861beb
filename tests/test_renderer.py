"What the fused kernels must survive: any scene, any way PyTorch calls them, threads and processes"

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xvr.detector import Detector
from xvr.pose import Pose
from xvr.renderer import _back_op, _integrate_op, line_integrals, render
from xvr.volume import make_volume

MODES = [
    dict(method="trilinear", step=0.7),
    dict(method="trilinear"),
    dict(method="joseph", step=3.0),
    dict(method="siddon"),
]
modes = pytest.mark.parametrize("options", MODES, ids=["trilinear", "planes", "joseph", "siddon"])


def make_scene(
    seed,
    kind="mixed",
    size=(6, 5, 7),
    turn=(0, 0, 0),
    jitter=True,
    away=0.0,
    distance=3.0,
    reach=6.0,
    shape=(5, 7),
    orientation="PA",
    **detector,
):
    "A volume of float64 on an oblique, perhaps mirrored grid, a detector and two poses; lengths in radii of the volume"
    g = torch.Generator().manual_seed(seed)
    uniform = lambda low, high, *n: low + (high - low) * torch.rand(*n, generator=g, dtype=torch.float64)
    density = dict(
        mixed=uniform(-1, 2, *size),
        zero=torch.zeros(size).double(),
        constant=torch.full(size, -0.7).double(),
        faint=uniform(0, 1e-6, *size),
    )[kind]
    mirrored = torch.randint(2, (3,), generator=g) * 2.0 - 1
    affine = Pose.from_euler(uniform(-180, 180, 1, 3) * jitter, torch.zeros(1, 3).double()).matrix[0] @ torch.diag(
        torch.cat([uniform(0.3, 4, 3) * mirrored, torch.ones(1)])
    )
    volume = replace(make_volume(density, affine, torch.randint(4, size, generator=g) * 3), density=density, _levels={})
    radius = (volume.spacing * torch.tensor(volume.shape)).norm().item() / 2
    lean = torch.tensor([[away * radius, 0.0, 0.3 * away * radius]]) + jitter * uniform(-0.1, 0.1, 2, 3)
    beam = (-1 if orientation == "PA" else 1) * distance * radius * torch.tensor([[0, 1.0, 0]])
    pose = Pose.from_euler(
        torch.tensor([turn]).double() + jitter * uniform(-3, 3, 2, 3), (lean + beam).double().expand(2, 3)
    )
    pixel = reach * radius / max(shape)
    d = Detector(
        reach * radius,
        shape[0],
        pixel,
        shape[1],
        1.3 * pixel,
        x0=0.3 * pixel * jitter,
        y0=-0.2 * pixel * jitter,
        orientation=orientation,
        **detector,
    )
    return volume, d, pose


def poses_at(scene, delta):
    return scene[0], scene[1], scene[2].perturb(delta)


def gradient(scene, **options):
    "Of a weighted sum of the image with respect to a motion and the density"
    volume, detector, pose = scene
    delta = torch.zeros(len(pose), 6, dtype=pose.matrix.dtype, requires_grad=True)
    density = volume.density.clone().requires_grad_()
    image = render(replace(volume, density=density, _levels={}), detector, pose.perturb(delta), **options)
    weight = torch.linspace(-1, 2, image.numel()).view_as(image).to(image)
    return torch.autograd.grad((image * weight).sum(), (delta, density))


def single(volume):
    return replace(volume, density=volume.density.float(), _levels={})


def most(volume):
    "No image is brighter"
    return (volume.density.abs().max() * (volume.spacing * torch.tensor(volume.shape)).norm()).item() + 1e-30


axis_size = st.integers(2, 12)
scenes = dict(
    seed=st.integers(0, 2**20),
    kind=st.sampled_from(["mixed", "mixed", "mixed", "constant", "zero", "faint"]),
    size=st.tuples(axis_size, axis_size, axis_size | st.integers(28, 36)),
    turn=st.tuples(*[st.sampled_from([0, 30, 90, 180, -90, 45])] * 3),
    away=st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.2]),
    distance=st.sampled_from([3.0, 1.0, 0.3, 0.0]),
    reach=st.sampled_from([6.0, 2.0, 0.4]),
    shape=st.tuples(st.integers(1, 6), st.sampled_from([1, 2, 7, 23])),
    orientation=st.sampled_from(["AP", "PA"]),
    reverse_x_axis=st.booleans(),
    parallel=st.booleans(),
)
mode = st.sampled_from(MODES) | st.builds(dict, method=st.sampled_from(["trilinear", "joseph"]), step=st.floats(0.2, 9))
thorough = lambda n: settings(
    deadline=None, derandomize=True, max_examples=int(os.environ.get("XVR_EXAMPLES", n)), database=None
)


@thorough(120)
@given(options=mode, **scenes)
def test_any_scene_is_as_defined(options, **scene):
    volume, detector, pose = scene = make_scene(**scene)
    limit = most(volume)
    for some in (dict(), dict(labels=[0, 3, 6, 9])):
        fused, defined = (render(*scene, backend=b, **options, **some) for b in ("cpu", "torch"))
        assert (fused - defined).abs().max() <= 1e-9 * limit
        rounded = render(single(volume), detector, pose, **options, **some)
        assert (
            rounded.sum(1) - defined.sum(1)
        ).abs().max() <= 5e-5 * limit  # a sample halfway between two labels may go to either
    assert (fused.sum(1, keepdim=True) - render(*scene, **options)).abs().max() <= 1e-9 * limit
    ours, theirs = gradient(scene, **options), gradient(scene, backend="torch", **options)
    for a, b, scale in zip(ours, theirs, (limit * detector.height * detector.width, 0)):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max() + 1e-9 * scale + 1e-12
    for a in gradient((single(volume), detector, pose), **options):
        assert a.isfinite().all()


@thorough(40)
@given(options=mode, **scenes)
def test_any_gradient_is_that_of_differences(options, **scene):
    scene = make_scene(**scene)
    direction = torch.tensor([[0.01, -0.02, 0.015, 1, 0.7, -0.8]]).double().expand(2, 6)
    image = lambda h: render(*poses_at(scene, h * direction), **options)
    up, down = image(1e-6), image(-1e-6)
    weight = torch.linspace(-1, 2, up.numel()).view_as(up).to(up)
    slope = ((up - down) * weight).sum() / 2e-6
    ours = (gradient(scene, **options)[0] * direction).sum()
    assert (ours - slope).abs() <= 1e-4 * slope.abs() + 1e-7 * most(scene[0]) * up.numel()


@thorough(60)
@given(step=st.floats(0.2, 9), **scenes)
def test_rays_along_the_grid(step, **scene):
    scene["turn"] = tuple(90 * (t // 45) for t in scene["turn"])
    volume, detector, pose = scene = make_scene(**scene, jitter=False)
    fused, defined = (render(*scene, step=step, backend=b) for b in ("cpu", "torch"))
    assert (fused - defined).abs().max() <= 1e-9 * most(volume)
    for options in [*MODES, dict(step=step)]:
        for v in (volume, single(volume)):
            image = render(v, detector, pose, **options)
            assert image.isfinite().all() and image.abs().max() <= (1 + 1e-5) * most(v)
            assert all(g.isfinite().all() for g in gradient((v, detector, pose), **options))


@modes
@pytest.mark.parametrize("far", [dict(away=50.0), dict(distance=-3.0)])
def test_what_misses_the_volume_is_exactly_zero(options, far):
    for parallel in (False, True):
        volume, detector, pose = make_scene(1, parallel=parallel, **far)
        for v in (volume, single(volume)):
            assert not render(v, detector, pose, **options).any() and not any(
                g.any() for g in gradient((v, detector, pose), **options)
            )


small = dict(size=(4, 5, 3), shape=(3, 2), reach=5.0)


@modes
def test_gradcheck_and_forward_derivatives(options):
    volume, detector, pose = make_scene(5, **small)
    delta = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    density = volume.density.clone().requires_grad_()
    image = lambda delta, density: render(
        replace(volume, density=density * 1, _levels={}), detector, pose.perturb(delta), **options
    )
    # times one: gradcheck writes to its inputs behind autograd's back, and a packed volume would not notice
    torch.autograd.gradcheck(image, (delta, density), eps=1e-6, atol=1e-5, rtol=1e-4)
    of_pose = lambda delta: image(delta, volume.density)
    toward = torch.linspace(-1, 1, 12).double().view(2, 6)
    back = torch.autograd.functional.jacobian(of_pose, delta.detach())
    assert back.any()
    assert torch.allclose(
        torch.func.grad(lambda d: of_pose(d).sum())(delta.detach()), back.flatten(0, -3).sum(0), rtol=1e-9, atol=1e-9
    )
    assert torch.allclose(torch.func.jacfwd(of_pose)(delta.detach()), back, rtol=1e-9, atol=1e-9)
    assert torch.allclose(
        torch.func.jvp(of_pose, (delta.detach(),), (toward,))[1], (back * toward).sum((-1, -2)), rtol=1e-9, atol=1e-9
    )


@modes
@pytest.mark.parametrize("labels", [None, [3, 0]])
def test_compiled_whole_is_the_same(options, labels):
    volume, detector, pose = make_scene(6, **small)
    ends = [x.detach().requires_grad_() for x in detector.rays(pose)]
    delta = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    of_rays = lambda s, t: line_integrals(volume, s, t, labels=labels, **options).square().sum()
    of_motion = lambda d: render(volume, detector, pose.perturb(d), labels=labels, **options).square().sum()
    for function, inputs in [(of_rays, ends), (of_motion, [delta])]:
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        assert function(*inputs) > 0
        for a, b in zip(torch.autograd.grad(compiled(*inputs), inputs), torch.autograd.grad(function(*inputs), inputs)):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_operations_keep_the_rules_of_custom_operations():
    volume, detector, pose = make_scene(6, **small)
    source, target = (x.detach().requires_grad_() for x in detector.rays(pose))
    for labels in (None, [3, 0]):
        rest = volume.density, volume.voxel_from_world, volume.labels, labels, None, "joseph", 0, 2
        torch.library.opcheck(_integrate_op, (source, target, *rest, True))
        weight, empty = torch.ones(2, *([] if labels is None else [2]), 6).double(), torch.empty(0).double()
        *how, rows, width = rest
        ends = source.detach(), target.detach().mT.contiguous().mT
        torch.library.opcheck(_back_op, (weight, *ends, *how, [rows, width], empty, empty, True, True))


@modes
def test_any_strides(options):
    volume, detector, pose = make_scene(7, size=(6, 6, 6))
    source, target = detector.rays(pose)
    image = lambda density, s=source, t=target: line_integrals(
        replace(volume, density=density, _levels={}), s, t, **options
    )
    for density in (
        volume.density.permute(2, 0, 1),
        volume.density.flip(0),
        volume.density[::2, :4, 1:],
        volume.density[:1].expand(5, 6, 6),
    ):
        assert torch.equal(image(density), image(density.contiguous()))
        assert torch.equal(image(density.float()), image(density.contiguous().float()))
    whole = image(volume.density)
    assert torch.equal(image(volume.density, t=target[:, ::3]), whole[:, ::3])
    assert torch.equal(image(volume.density, source.expand_as(target), target), whole)
    expanded = Pose(pose.matrix[:1].expand(3, 4, 4))
    assert torch.equal(
        render(volume, detector, expanded, **options)[2], render(volume, detector, pose[:1], **options)[0]
    )
    assert render(single(volume), detector, pose, **options).dtype == torch.float32


@modes
def test_a_written_density_is_packed_again(options):
    volume, detector, pose = make_scene(8)
    for density in (volume.density.clone(), volume.density.float()):
        leaf = replace(volume, density=density.requires_grad_(), _levels={})
        before = render(leaf, detector, pose, **options).detach()
        with torch.no_grad():
            leaf.density.mul_(2)
        assert torch.allclose(render(leaf, detector, pose, **options), 2 * before)
    with torch.inference_mode():
        inside = replace(volume, density=volume.density.clone(), _levels={})
        image = render(inside, detector, Pose(pose.matrix.clone()), **options)
    assert torch.equal(image, render(volume, detector, pose, **options)) and torch.equal(
        image, render(inside, detector, pose, **options)
    )


def picture(seed=9):
    "A render and its gradients, as one tensor"
    volume, detector, pose = make_scene(seed, shape=(25, 30))
    scene = single(volume), detector, pose
    return torch.cat([x.flatten() for o in MODES for x in (render(*scene, **o), *gradient(scene, **o))])


def test_threads_change_nothing():
    threads, alone = torch.get_num_threads(), picture()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            assert torch.equal(picture(), alone)
    finally:
        torch.set_num_threads(threads)
    with ThreadPoolExecutor(6) as pool:
        assert all(torch.equal(p, alone) for p in pool.map(picture, [9] * 12, timeout=60))


class Pictures(torch.utils.data.Dataset):
    __len__, __getitem__ = lambda self: 4, lambda self, n: picture()


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_worker_processes_render(way):
    alone = picture()
    loader = torch.utils.data.DataLoader(Pictures(), 2, num_workers=2, multiprocessing_context=way, timeout=60)
    assert all(torch.equal(p, alone) for batch in loader for p in batch)


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def test_a_forked_child_renders_with_threads():
    code = """
import os, signal, sys, torch, test_renderer as t
torch.set_num_threads(2); scene = t.make_scene(9, shape=(25, 30)); images = lambda: [t.render(*scene, **o) for o in t.MODES]
alone = images()
if not (child := os.fork()):  # PyTorch's own threads may hang here (matrix products, with set_num_threads above 1); the kernels must not
    signal.alarm(60); os._exit(0 if all(map(torch.equal, images(), alone)) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"""
    done = python(code, PYTHONPATH=os.path.dirname(__file__))
    assert done.returncode == 0, done.stderr


def test_compiles_once_and_not_at_import(tmp_path):
    code = """
import sys, torch, xvr.renderer as r
from xvr.volume import make_volume; from xvr.detector import Detector; from xvr.pose import Pose
assert not {"numba", "llvmlite"} & {*sys.modules}, "imported before a kernel is needed"
r.render(make_volume(torch.rand(4, 4, 4), torch.eye(4)), Detector(20, 4, 2.0), Pose.from_euler([[0.0, 0, 0]], [[0.0, 10, 0]]), method="joseph")
print("numba" in sys.modules)"""
    first, second = (python(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stderr.count("compiling") == 1 and "compiling" not in second.stderr  # one line for all kernels
    assert first.stdout.split() == ["True"] and second.stdout.split() == ["False"]
    kernel = min(tmp_path.glob("*.kernel"), key=lambda p: p.stat().st_size)
    kernel.write_bytes(kernel.read_bytes()[:100])
    damaged = python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert damaged.returncode == 0 and damaged.stderr.count("compiling") == 1, damaged.stderr
