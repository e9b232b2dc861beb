#!/bin/sh
# VTK 9.7.2 (and 9.5) reads a 3D NRRD of numbers as one slice, whose pixels are vectors along the file's first axis,
# and with the spacing of the other two axes moved up; no error. The files of ITK and 3D Slicer say "kinds: domain
# domain domain", that is, no axis of vectors; pynrrd and ITK read the volume.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q vtk==9.7.2 simpleitk==2.5.7 pynrrd==1.1.3 numpy==2.2.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import nrrd
import numpy as np
import SimpleITK as sitk
import vtk

image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.float32))
image.SetSpacing((1, 2, 3))
sitk.WriteImage(image, "ct.nrrd")
data, header = nrrd.read("ct.nrrd")
reader = vtk.vtkNrrdReader()
reader.SetFileName("ct.nrrd")
reader.Update()
found = reader.GetOutput()
print("VTK", vtk.vtkVersion().GetVTKVersion(), "SimpleITK", sitk.Version().VersionString(), "pynrrd", nrrd.__version__)
print(f"the file: sizes {header['sizes'].tolist()}, kinds {header['kinds']}; pynrrd reads {data.shape}")
print(f"VTK reads {found.GetDimensions()} pixels of {found.GetNumberOfScalarComponents()} numbers, "
      f"spacing {found.GetSpacing()}")
assert data.shape == sitk.ReadImage("ct.nrrd").GetSize() == (6, 5, 4)
assert found.GetDimensions() == (5, 4, 1) and found.GetNumberOfScalarComponents() == 6, "the behaviour has changed"
assert found.GetSpacing() == (2, 3, 1), "the behaviour has changed"
PY
