#!/bin/sh
# plastimatch 1.10.0: the line integrals of `plastimatch drr` are a tenth of the attenuation. Water of 20 cm gives 0.44, where
# 60 to 80 keV X-rays are attenuated by 3.7 to 4.1 (0.184 to 0.206 per cm, NIST); with `--exponential` two thirds of the beam
# pass instead of 2 %, so that scatter, noise or a display curve added to such an image act on far too thin a patient.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q plastimatch==1.10.0 simpleitk==2.5.7 numpy==2.2.6
cd "$work"
PATH="$work/venv/bin:$PATH" "$work/venv/bin/python" - <<'PY'
import subprocess

import numpy as np
import SimpleITK as sitk

ct = sitk.GetImageFromArray(np.zeros((101, 101, 101), np.float32))  # water, 0 HU; 200 mm from first to last voxel centre
ct.SetSpacing((2, 2, 2))
ct.SetOrigin((-100, -100, -100))
sitk.WriteImage(ct, "ct.mha")


def middle(*more):
    run = ["plastimatch", "drr", "-t", "pfm", "-r", "11 11", "-z", "11 11", "-n", "0 -1 0", "-o", "0 0 0", "-O", "drr"]
    subprocess.run([*run, *more, "ct.mha"], check=True, stdout=subprocess.DEVNULL)
    with open("drr0000.pfm", "rb") as file:
        for _ in range(3):
            file.readline()
        return float(np.frombuffer(file.read(), "<f4").reshape(11, 11)[5, 5])


plain, passing = middle(), middle("--exponential")
print(f"20 cm of water: line integral {plain:.3f}, {plain / 20:.4f} per cm (NIST, 60 keV: 0.206); with --exponential {passing:.3f}")
assert 0.02 < plain / 20 < 0.024 and abs(passing - np.exp(-plain)) < 0.01, "the behaviour has changed"
PY
