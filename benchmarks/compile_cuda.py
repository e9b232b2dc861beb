#!/usr/bin/env python3
"""Compile the CUDA kernels for a GPU that need not be there, and report what each takes of one.

    pip install numba-cuda 'nvidia-nvvm==13.*' 'nvidia-cuda-nvcc==13.*'    # the last one for registers and spills
    python benchmarks/compile_cuda.py                                      # half a minute; --dry writes no file

For each kernel: what it marches through, what it gives, calls that were not inlined, local memory, and, where `ptxas`
is found, registers and bytes spilled. The loops' own spills would cost time; those around them, of double-precision
geometry, are written and read once a ray. Written to benchmarks/compile_cuda.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
REGISTERS = 64  # Of a thread: what `xvr.raymarch_cuda` asks for


def nvidia() -> Path:
    "The folder of NVIDIA's compilers"
    return Path(next(iter(find_spec("nvidia.cu13").submodule_search_locations)))


def without_a_device(architecture):
    "Let numba compile for an architecture, and stop short of the driver"
    os.environ.setdefault("CUDA_HOME", str(nvidia()))
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import devices

    device = SimpleNamespace(compute_capability=architecture, id=0)
    dispatcher.get_current_device = lambda: device
    devices.get_context = lambda number=None: SimpleNamespace(device=device)
    dispatcher._Kernel.bind = lambda self: None


def kernels():
    "All kinds of kernels that are told apart in what they compute"
    import torch

    from xvr import raymarch_cuda as cuda

    int16, f32, f64 = torch.int16, torch.float32, torch.float64
    plain = [("image", cuda._PLAIN, cuda._IMAGE, 1), ("image and ends", cuda._PLAIN, cuda._ENDS, 1), ("image and ends, shared", cuda._PLAIN, cuda._ENDS, cuda._PARTS),
             ("image and Jacobian, shared", cuda._PLAIN, cuda._MOTION, cuda._PARTS)]  # fmt: skip
    channels = [("channels", cuda._CHANNELS, cuda._IMAGE, 1), ("ends, weighted", cuda._WEIGHTED, cuda._ENDS, 1)]
    for method in ("joseph", "siddon", "trilinear"):
        for (codes, real), ways in {
            (int16, f32): plain + channels,
            (f32, f32): plain[1:2],
            (f64, f64): plain[2:3] + channels[1:],
        }.items():
            for what, *way in ways:
                yield method, str(codes)[6:], what, cuda._kernel(codes, real, real, method, *way)
        for real, labelled in itertools.product((f32,), (False, True)):
            what = "density's derivative" + ", weighted" * labelled
            yield method, str(real)[6:], what, cuda._adjoint(real, real, method, labelled)


def assembled(ptx: str, architecture) -> dict:
    "Registers and spills, as the assembler reports them"
    tools = nvidia() / "bin/ptxas", shutil.which("ptxas")
    tool = next((tool for tool in tools if tool and Path(tool).exists()), None)
    if tool is None:
        return dict(registers="", spilled_bytes="")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        kind = ["-maxrregcount", str(REGISTERS), "-arch", "sm_{}{}".format(*architecture)]
        command = [tool, "-v", *kind, file.name, "-o", os.devnull]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return dict(
        registers=int(re.search(r"Used (\d+) registers", text)[1]),
        spilled_bytes=int(re.search(r"(\d+) bytes spill stores", text)[1]),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="9.0", help="compute capability")
    parser.add_argument("--dry", action="store_true", help="compile alone: no assembler, no file")
    asked = parser.parse_args()
    architecture, rows = tuple(map(int, asked.architecture.split("."))), []
    without_a_device(architecture)
    from numba_cuda import __version__

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    about = dict(date=datetime.date.today(), architecture=asked.architecture, numba_cuda=__version__, commit=commit)
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    for method, codes, what, kernel in kernels():
        ptx = next(iter(kernel.overloads.values())).inspect_asm(architecture)
        local = sum(int(n) for n in re.findall(r"\.local .*\[(\d+)\];", ptx))
        row = dict(method=method, volume=codes, gives=what, calls=len(re.findall(r"\bcall\b", ptx)), local_bytes=local)
        row |= dict(registers="", spilled_bytes="") if asked.dry else assembled(ptx, architecture)
        rows.append(row | about)
        print(
            f"{method:10s} {codes:8s} {what:34s} {row['calls']} calls, {local} bytes of local memory"
            + (f", {row['registers']} registers, {row['spilled_bytes']} spilled" if row["registers"] else ""),
            flush=True,
        )
    if not asked.dry:
        with open(HERE / "compile_cuda.csv", "w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
