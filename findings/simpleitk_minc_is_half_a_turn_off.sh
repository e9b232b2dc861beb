#!/bin/sh
# SimpleITK 2.5.7 (ITK 5.4) writes and reads MINC files without the step between its axes (LPS) and MINC's (RAS): to every
# other reader an image that it wrote, and to it an image of any other program, is half a turn about the head-feet axis off.
# Its transforms (.xfm) likewise. Written and read by SimpleITK alone, all looks right.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q simpleitk==2.5.7 nibabel==5.4.2 h5py==3.14.0 numpy==2.2.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import nibabel
import numpy as np
import SimpleITK as sitk

image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
image.SetOrigin((10, 20, 30))  # LPS mm: 10 to the left, 20 to the back, 30 to the head
for name in ("image.mnc", "image.nii"):
    sitk.WriteImage(image, name)
place = {}
for name in ("image.mnc", "image.nii"):
    affine = nibabel.load(name).affine  # to RAS mm
    place[name] = affine[:3, 3].tolist()
    print(f"{name}: first voxel written at LPS 10, 20, 30; nibabel reads RAS {place[name]}; "
          f"SimpleITK reads LPS {sitk.ReadImage(name).GetOrigin()}")
shift = sitk.AffineTransform(3)
shift.SetTranslation((10, 20, 30))
sitk.WriteTransform(shift, "shift.xfm")
rows = open("shift.xfm").read().split("=")[-1].strip(" ;\n").splitlines()
last = [float(row.strip(" ;").split()[3]) for row in rows]
print(f"shift.xfm: translation of LPS 10, 20, 30 is stored as {last}; in RAS it is -10, -20, 30")
assert place["image.nii"] == [-10, -20, 30], "NIfTI has changed"
assert place["image.mnc"] == [10, 20, 30] and last == [10, 20, 30], "the behaviour has changed"
PY
