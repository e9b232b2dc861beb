"The CUDA kernels without a GPU: in numba's simulator and through NVIDIA's compiler, each in a process of its own"

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from test_renderer import gradient, make_scene, modes, single

from xvr.conventions import XvrError
from xvr.renderer import _fused, render, render_jacobian

root = Path(__file__).parent.parent


def python(*words, **environment):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, **environment},
        timeout=600,
    )


def test_in_the_simulator():
    done = python(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        root / "tests/simulated_raymarch_cuda.py",
        NUMBA_ENABLE_CUDASIM="1",
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(
    find_spec("numba_cuda") is None or find_spec("nvidia.cu13.nvvm") is None,
    reason="NVIDIA's compiler: pip install numba-cuda 'nvidia-nvvm==13.*'",
)
def test_every_kernel_compiles():
    done = python(root / "benchmarks/compile_cuda.py", "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    kernels = done.stdout.splitlines()[1:]
    assert len(kernels) > 20 and all(
        " 0 calls" in line and " 0 bytes" in line for line in kernels if "float64" not in line
    ), done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@modes
@pytest.mark.parametrize("labels", [None, [3, 0, 9]], ids=["everything", "structures"])
@pytest.mark.parametrize("parallel", [False, True], ids=["plate", "parallel"])
def test_on_a_gpu(options, labels, parallel):
    volume, detector, pose = make_scene(3, size=(31, 40, 36), shape=(33, 50), parallel=parallel)
    for v, limit in ((volume, 1e-9), (single(volume), 1e-3)):
        here, there = (v, detector, pose), (v.to("cuda"), detector, pose.to("cuda"))
        some = dict(labels=labels, **options)
        pairs = [(render(*there, **some), render(*here, **some)), *zip(gradient(there, **some), gradient(here, **some))]
        pairs += [*zip(render_jacobian(*there, **options), render_jacobian(*here, **options))] if labels is None else []
        for ours, theirs in pairs:
            assert (ours.cpu() - theirs).abs().max() <= limit * theirs.abs().max()


def test_a_volume_on_another_device_is_refused():
    with pytest.raises(XvrError, match="backend cuda takes a volume and a pose that are there, not a volume on cpu"):
        render(*make_scene(1), backend="cuda")
    if find_spec("numba_cuda") is None:
        with pytest.raises(XvrError, match=r"pip install 'xvr\[cuda\]'"):
            _fused("cuda")
