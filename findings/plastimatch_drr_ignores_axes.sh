#!/bin/sh
# plastimatch 1.10.0: `plastimatch drr` renders a CT as if its axes ran along x, y and z, whatever its direction cosines are
# (`plastimatch header` shows that it read them). A CT from NIfTI, whose axes usually run to the right and to the front, lies
# a CT's width beside its place; the exit status is 0 and nothing is said.
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

CUBE, PIXELS, PIXEL, SID, SAD = (20, 0, 10), 301, 2.0, 1500, 1000  # LPS mm; the detector faces the back


def seen_at(axes):
    "Where the cube is in the picture: mm to the patient's left and to the head, at the isocentre's depth"
    values = np.full((61, 61, 61), -1000, np.float32)
    ct = sitk.GetImageFromArray(values)
    ct.SetSpacing((2, 2, 2))
    ct.SetDirection(np.ravel(axes).tolist())
    ct.SetOrigin((-np.array(axes) @ (60, 60, 60)).tolist())  # the volume's centre is at 0
    x, y, z = ct.TransformPhysicalPointToIndex(CUBE)
    ct[x - 3 : x + 4, y - 3 : y + 4, z - 3 : z + 4] = 1000.0
    sitk.WriteImage(ct, "ct.mha")
    run = ["plastimatch", "drr", "-t", "pfm", "-i", "exact", "-r", f"{PIXELS} {PIXELS}", "-n", "0 -1 0", "-o", "0 0 0"]
    run += ["-z", f"{PIXELS * PIXEL} {PIXELS * PIXEL}", "--sad", str(SAD), "--sid", str(SID), "-O", "drr", "ct.mha"]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    with open("drr0000.pfm", "rb") as file:
        for _ in range(3):
            file.readline()
        image = np.frombuffer(file.read(), "<f4").reshape(PIXELS, PIXELS)
    row, column = np.argwhere(image > image.max() / 2).mean(0)
    middle = (PIXELS - 1) / 2
    return (column - middle) * PIXEL * SAD / SID, (middle - row) * PIXEL * SAD / SID


straight, turned = seen_at(np.eye(3)), seen_at(np.diag([-1.0, -1.0, 1.0]))
print("the same cube at LPS", CUBE, "mm, seen at (mm to the left, to the head):")
print("axes x, y, z:   %.0f, %.0f" % straight)
print("axes -x, -y, z: %.0f, %.0f" % turned)
assert np.hypot(straight[0] - CUBE[0], straight[1] - CUBE[2]) < 1, "the geometry is another than was thought"
assert turned[0] - CUBE[0] > 50, "the behaviour has changed"
PY
