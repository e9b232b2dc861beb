#!/bin/sh
# VTK 9.7.2 takes a MetaImage's direction (9.5 still left it out), but transposed: a CT that ITK or 3D Slicer wrote
# obliquely is turned the other way. Its writer transposes too, so that a file which VTK alone writes and reads looks
# right.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q vtk==9.7.2 simpleitk==2.5.7 numpy==2.2.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import SimpleITK as sitk
import vtk

turn = np.radians(20)
oblique = (np.cos(turn), -np.sin(turn), 0, np.sin(turn), np.cos(turn), 0, 0, 0, 1)
image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.float32))
image.SetSpacing((1, 2, 3))
image.SetOrigin((10, 20, 30))
image.SetDirection(oblique)
sitk.WriteImage(image, "itk.mha")


def read(name):
    reader = vtk.vtkMetaImageReader()
    reader.SetFileName(name)
    reader.Update()
    return reader.GetOutput()


def corner(data):
    point = [0.0] * 3
    data.TransformContinuousIndexToPhysicalPoint(5, 4, 3, point)
    return np.round(point, 2).tolist()


print("VTK", vtk.vtkVersion().GetVTKVersion(), "SimpleITK", sitk.Version().VersionString())
right, found = np.round(image.TransformIndexToPhysicalPoint((5, 4, 3)), 2).tolist(), corner(read("itk.mha"))
print(f"the last voxel of a file of ITK: {right} for ITK, {found} for VTK")

writer = vtk.vtkMetaImageWriter()
writer.SetFileName("vtk.mha")
writer.SetInputData(read("itk.mha"))
writer.Write()
print(f"of a copy that VTK wrote: {corner(read('vtk.mha'))} for VTK, "
      f"{np.round(sitk.ReadImage('vtk.mha').TransformIndexToPhysicalPoint((5, 4, 3)), 2).tolist()} for ITK")
image.SetDirection(np.reshape(oblique, (3, 3)).T.ravel().tolist())
assert found == np.round(image.TransformIndexToPhysicalPoint((5, 4, 3)), 2).tolist() != right, "the behaviour has changed"
PY
