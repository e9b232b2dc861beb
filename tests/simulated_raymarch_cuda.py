"What numba's simulator runs of the CUDA kernels: tests/test_raymarch_cuda.py starts it, `NUMBA_ENABLE_CUDASIM=1 pytest tests/simulated_raymarch_cuda.py` by hand"

import pytest
import torch
from test_renderer import gradient, make_scene, modes, most, single

from xvr import raymarch_cpu, raymarch_cuda, renderer
from xvr.conventions import XvrError
from xvr.renderer import render, render_jacobian

small = dict(size=(5, 4, 6), shape=(4, 3))
SHARED = raymarch_cuda._PARTS


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    "A thread a ray, as in large images: threads that wait for each other take the simulator ten times as long"
    monkeypatch.setattr(raymarch_cuda, "_PARTS", 1)


def by(device, function, *args, **options):
    "A function's value with the kernels of a device, on tensors of the CPU"
    before = renderer._fused
    renderer._fused = lambda _: {"cpu": raymarch_cpu, "cuda": raymarch_cuda}[device]
    try:
        return function(*args, **options)
    finally:
        renderer._fused = before


def off(a, b):
    return ((a - b).abs().max() / (b.abs().max() + 1e-30)).item()


@modes
@pytest.mark.parametrize("labels", [None, [3, 0, 9]], ids=["everything", "structures"])
@pytest.mark.parametrize("parallel", [False, True], ids=["plate", "parallel"])
def test_image_and_gradients(options, labels, parallel):
    volume, *camera = make_scene(3, parallel=parallel, **small)
    for v, limit in ((volume, 1e-9), (single(volume), 1e-4))[: 1 if parallel else 2]:
        scene, some = (v, *camera), dict(labels=labels, **options)
        fused = by("cuda", render, *scene, **some)
        assert off(fused, by("cpu", render, *scene, **some)) < limit
        if v is volume:
            assert off(fused, render(*scene, backend="torch", **some)) < limit
        for ours, theirs in zip(by("cuda", gradient, scene, **some), by("cpu", gradient, scene, **some)):
            assert (
                off(ours, theirs) < 10 * limit
            )  # Siddon's has kinks, and single precision sees some on their other side


@modes
@pytest.mark.parametrize(
    "where",
    [dict(distance=0.3), dict(reach=2.0, distance=1.0), dict(away=1.0), dict(jitter=False, turn=(90, 0, 0))],
    ids=["inside", "plate inside", "grazing", "along"],
)
def test_where_rays_begin_and_end(options, where):
    scene = make_scene(5, **{**small, **where})
    assert off(by("cuda", render, *scene, **options), by("cpu", render, *scene, **options)) < 1e-9
    for ours, theirs in zip(by("cuda", gradient, scene, **options), by("cpu", gradient, scene, **options)):
        assert off(ours, theirs) < 1e-9
    assert by("cuda", render, single(scene[0]), *scene[1:], **options).isfinite().all()


@modes
def test_what_misses_the_volume_is_exactly_zero(options):
    scene = make_scene(1, away=50.0, **small)
    assert not by("cuda", render, *scene, **options).any() and not any(
        g.any() for g in by("cuda", gradient, scene, **options)
    )


@modes
@pytest.mark.parametrize("parallel", [False, True], ids=["plate", "parallel"])
def test_jacobian_in_one_pass(options, parallel):
    scene = make_scene(4, parallel=parallel, **small)
    for ours, theirs in zip(
        by("cuda", render_jacobian, *scene, **options), by("cpu", render_jacobian, *scene, **options)
    ):
        assert off(ours, theirs) < 1e-9


@modes
def test_some_pixels(options):
    scene = make_scene(6, **small)
    pixels = torch.randperm(12)[:7]
    some = by("cuda", render, *scene, pixels=pixels, **options)
    assert torch.allclose(some[:, 0], by("cpu", render, *scene, **options).flatten(1)[:, pixels], rtol=1e-9)
    assert by("cuda", render, *scene, pixels=pixels[:0], **options).shape == (2, 1, 0)


@modes
def test_threads_that_share_a_ray(options, monkeypatch):
    scene = make_scene(7, **small)
    every = lambda: (
        by("cuda", render, *scene, **options),
        *by("cuda", gradient, scene, **options),
        *by("cuda", render_jacobian, *scene, **options),
    )
    one = every()
    monkeypatch.setattr(raymarch_cuda, "_PARTS", SHARED)
    assert all(0 <= off(a, b) < 1e-12 for a, b in zip(every(), one))


def test_storage_and_what_is_kept():
    volume, detector, pose = make_scene(8, size=(9, 10, 11), shape=(6, 6))
    v, (source, plate) = single(volume), detector.plate(pose)
    view = v.density, v.voxel_from_world, source, plate, None, "joseph"
    half, full = (raymarch_cuda.integrate(*view, size=(6, 6), storage=s)[0] for s in ("half", "single"))
    assert 0 < (half - full).abs().max() < 2e-5 * most(v)
    before = raymarch_cuda.integrate(*view, size=(6, 6))[0]
    v.density.mul_(2)
    assert torch.allclose(raymarch_cuda.integrate(*view, size=(6, 6))[0], 2 * before, rtol=1e-4)
    v.density[0, 0, 0] = float("nan")
    with pytest.raises(XvrError, match="not finite"):
        raymarch_cuda.integrate(*view, size=(6, 6))


@modes
def test_forward_derivatives(options):
    volume, detector, pose = make_scene(9, size=(4, 5, 3), shape=(3, 2))
    view = lambda delta: render(volume, detector, pose.perturb(delta), **options)
    zero, toward = torch.zeros(2, 6).double(), torch.linspace(-1, 1, 12).double().view(2, 6)
    jvp = lambda: torch.func.jvp(view, (zero,), (toward,))[1]
    assert off(by("cuda", jvp), by("cpu", jvp)) < 1e-9
