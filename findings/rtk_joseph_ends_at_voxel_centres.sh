#!/bin/sh
# RTK 2.7.0: its Joseph projector integrates from the centre of the first voxel to that of the last, not from face to face.
# A ray straight through 10 voxels of 1 mm and value 1 gives 9; with a voxel of zeros at either end it gives 10. So a CT
# that ends in the patient, as most do, loses half a voxel at each side unless it is padded.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q itk-rtk==2.7.0.post1 numpy
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import itk
import numpy as np
from itk import RTK as rtk

Image = itk.Image[itk.F, 3]


def through_the_middle(values):
    volume = itk.image_from_array(values)
    volume.SetOrigin([-(n - 1) / 2 for n in values.shape[::-1]])
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    geometry.AddProjection(1000.0, 1500.0, 0.0)
    pixel = rtk.ConstantImageSource[Image].New()
    pixel.SetSize([1, 1, 1])
    projector = rtk.JosephForwardProjectionImageFilter[Image, Image].New()
    projector.SetGeometry(geometry)
    projector.SetInput(0, pixel.GetOutput())
    projector.SetInput(1, volume)
    projector.Update()
    return float(itk.array_from_image(projector.GetOutput()).item())


cube = np.ones((10, 10, 10), np.float32)
bare, padded = through_the_middle(cube), through_the_middle(np.pad(cube, 1))
print("itk-rtk", version("itk-rtk"), "- 10 voxels of 1 mm:", bare, "mm; padded by a voxel of zeros:", padded, "mm")
assert abs(bare - 9) < 1e-3 and abs(padded - 10) < 1e-3, "the behaviour has changed"
PY
