"Registration and training on a device that is not there, in a process of its own"

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

from xvr.batch import Files, register_files
from xvr.commands import train
from xvr.initialisers import Starts, from_dicom, from_model
from xvr.models import Network
from xvr.sampling import Views
from xvr.simulation import Placement, simulate
from xvr.training import Schedule
from xvr.watching import Wandb

there = Path(__file__).with_name("pretended_device.py")
RANGES = dict(r1=(-20, 20), r2=(-10, 10), r3=(-2, 2), tx=(-10, 10), ty=(-820, -760), tz=(-10, 10))
SMALL = dict(
    views=Views(**RANGES, sdd=1020.0, height=32, delx=11.6, reverse_x_axis=True),
    network=Network(model_name="test_resnet"),
    schedule=Schedule(batch_size=4, n_batches_per_epoch=3, n_epochs=2),
    wandb=Wandb(no_wandb=True),
)


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch cannot register a device in Python",
)
def test_on_a_pretended_device():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", there],
        capture_output=True,
        text=True,
        env=os.environ,
        timeout=600,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_commands_on_a_gpu(case, tmp_path):
    simulate(case.ct, tmp_path / "xrays", placement=Placement(like=case.xrays[0]), device="cuda")
    results = {
        d: register_files(
            case.xrays, case.ct, from_dicom(), tmp_path / d, files=Files(saveimg=True, verbose=0), device=d
        )
        for d in ("cpu", "cuda")
    }
    for here, there in zip(*results.values()):
        assert (here.final.matrix - there.final.matrix).abs().max() < 0.05
    run = train(case.ct, tmp_path / "model", **SMALL, device="cuda")
    assert run.step == 6 and register_files(
        case.xrays,
        case.ct,
        from_model(tmp_path / "model/last.pth", "cuda"),
        tmp_path / "guess",
        starts=Starts(init_only=True),
        files=Files(verbose=0),
        device="cuda",
    )
