#!/bin/sh
# gVirtualXRay 2.1.0: the first row of an X-ray image is the lowest, seen along the detector's up vector, while its columns run
# along the right vector. Shown or stored with row 0 at the top, as everywhere else, the patient is mirrored: what lies towards
# the head is at the foot of the picture. The file that `saveLastXRayImage` writes is the same.
# Needs OpenGL in software; on Debian: libegl1 libgl1-mesa-dri libopengl0 libxcb-composite0 libxcb-ewmh2 libxcb-icccm4
# libxcb-keysyms1 libxcb-randr0 libxcb-res0 libxcb-xinerama0 libxcb-xkb1 libxkbcommon-x11-0 libfontconfig1
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q gvxr==2.1.0 simpleitk==2.5.7 numpy==2.2.6
cd "$work"
"$work/venv/bin/python" - <<'PY' 2> log || { cat log >&2; exit 1; }
import numpy as np
import SimpleITK as sitk
from gvxrPython3 import gvxr

gvxr.createOpenGLContext()
gvxr.usePointSource()
gvxr.setSourcePosition(0, -1000, 0, "mm")
gvxr.setMonoChromaticPerPixelAtSDD(80, "keV", 1000)
gvxr.setDetectorPosition(0, 500, 0, "mm")
gvxr.setDetectorUpVector(0, 0, 1)
gvxr.setDetectorNumberOfPixels(200, 100)
gvxr.setDetectorPixelSize(1, 1, "mm")
gvxr.makeCube("cube", 20, "mm")
gvxr.translateNode("cube", 20, 0, 10, "mm")  # 20 mm along the right vector, 10 mm up
gvxr.setCompound("cube", "H2O")
gvxr.setDensity("cube", 1.0, "g/cm3")
gvxr.addPolygonMeshAsInnerSurface("cube")
image = np.array(gvxr.computeXRayImage())
gvxr.saveLastXRayImage("image.mha")
saved = sitk.GetArrayFromImage(sitk.ReadImage("image.mha"))
print("right vector", gvxr.getDetectorRightVector(), "up vector", gvxr.getDetectorUpVector())
for name, pixels in (("computeXRayImage", image), ("image.mha", saved)):
    row, column = np.argwhere(pixels < pixels.max()).mean(0)
    print(f"{name}: cube at row {row:.0f} of {len(pixels)}, column {column:.0f} of {pixels.shape[1]}")
    assert abs(column - 99.5 - 30) < 2, "the geometry is another than was thought"
    assert abs(row - 49.5 - 15) < 2, "the behaviour has changed"  # 15 rows above the middle would be row 34
PY
