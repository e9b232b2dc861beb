#!/bin/sh
# slicer-core 5.13 (the libraries of 3D Slicer) and SimpleITK 2.5.5: three translations written as an ITK composite, .tfm or
# .h5, are one transform node for Slicer. It says IsLinear() is 1 and moves points as it should, but refuses its matrix:
# GetMatrixTransformToParent prints "transform is not linear", returns 0 and sets the identity. Who does not look at what it
# returns gets no motion. A file with one translation gives its matrix.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q slicer-core==5.13.31053.0 SimpleITK==2.5.5 numpy==2.4.6
cat > "$work/run.py" <<'PY'
import sys
from importlib.metadata import version

import SimpleITK as sitk
import slicer
import vtk


def read_back(transform, path):
    "IsLinear, what the matrix's getter returns, its shift, and the shift of a point (RAS, to the parent)"
    sitk.WriteTransform(transform, path)
    scene, node = slicer.vtkMRMLScene(), slicer.vtkMRMLTransformNode()
    storage, matrix, point = slicer.vtkMRMLTransformStorageNode(), vtk.vtkMatrix4x4(), [0.0, 0.0, 0.0]
    scene.AddNode(storage), scene.AddNode(node)
    storage.SetFileName(path)
    assert storage.ReadData(node) == 1
    returned = node.GetMatrixTransformToParent(matrix)
    node.GetTransformToParent().TransformPoint((0.0, 0.0, 0.0), point)
    return node.IsLinear(), returned, [matrix.GetElement(axis, 3) for axis in range(3)], point


shift = sitk.TranslationTransform(3, (1.0, 2.0, 3.0))
three = sitk.CompositeTransform([shift] * 3)
found = {kind: read_back(three, f"{sys.argv[1]}/three.{kind}") for kind in ("tfm", "h5")}
single = read_back(sitk.AffineTransform([1, 0, 0, 0, 1, 0, 0, 0, 1], (1.0, 2.0, 3.0)), sys.argv[1] + "/one.tfm")
print("slicer-core", version("slicer-core"), "SimpleITK", version("SimpleITK"))
print("three translations of (1, 2, 3):", found, "one:", single)
assert all(f == (1, 0, [0, 0, 0], [3, 6, -9]) for f in found.values()), "the behaviour has changed"
assert single == (1, 1, [1, 2, -3], [1, 2, -3]), "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/run.py" "$work"
