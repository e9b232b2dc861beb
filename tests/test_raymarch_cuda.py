"The CUDA kernels without a GPU: in numba's simulator and through NVIDIA's compiler, each in a process of its own"

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_renderer import make_scene

from xvr.pose import XvrError
from xvr.renderer import _fused, render

root = Path(__file__).parent.parent


def python(*words, **environment):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=root, env={**os.environ, **environment}, timeout=600)


def test_in_the_simulator():
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", root / "tests/simulated_raymarch_cuda.py", NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(find_spec("numba_cuda") is None or find_spec("nvidia.cu13.nvvm") is None, reason="NVIDIA's compiler: pip install numba-cuda 'nvidia-nvvm==13.*'")
def test_every_kernel_compiles():
    done = python(root / "benchmarks/compile_cuda.py", "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    kernels = done.stdout.splitlines()[1:]
    assert len(kernels) > 20 and all(" 0 calls" in line and " 0 bytes" in line for line in kernels if "float64" not in line), done.stdout


def test_what_is_where_is_said():
    with pytest.raises(XvrError, match="backend cuda takes a volume and a pose that are there, not a volume on cpu"):
        render(*make_scene(1), backend="cuda")
    if find_spec("numba_cuda") is None:
        with pytest.raises(XvrError, match=r"pip install 'xvr\[cuda\]'"):
            _fused("cuda")
