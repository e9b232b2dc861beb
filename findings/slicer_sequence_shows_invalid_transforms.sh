#!/bin/sh
# slicer-core 5.13 (the libraries of 3D Slicer): a sequence of transforms, .seq.mha, states for each frame whether its
# transform is valid: TransformStatus OK or INVALID. Slicer ignores the status. A frame that is INVALID becomes an item with
# whatever matrix stands there, here 999 mm aside, and is shown as the others are. Without its matrix it is left out.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q slicer-core==5.13.31053.0 numpy==2.4.6
cat > "$work/run.py" <<'PY'
import sys
from importlib.metadata import version

import slicer
import vtk

HEADER = "ObjectType = Image\nNDims = 3\nDimSize = 1 1 3\nElementType = MET_UCHAR\n"
MATRIX = "Seq_Frame{n:04}_boneTransform = 1 0 0 {shift} 0 1 0 0 0 0 1 0 0 0 0 1\n"
STATUS = "Seq_Frame{n:04}_boneTransformStatus = {status}\nSeq_Frame{n:04}_Timestamp = {n}.000000\n"


def read_back(path, middle):
    "Times (s) and shifts (mm) of the frames that are read, the middle one of which is INVALID"
    text = HEADER + MATRIX.format(n=0, shift=1) + STATUS.format(n=0, status="OK")
    text += middle + STATUS.format(n=1, status="INVALID")
    text += MATRIX.format(n=2, shift=3) + STATUS.format(n=2, status="OK") + "ElementDataFile = LOCAL\n"
    with open(path, "wb") as file:
        file.write(text.encode() + bytes(3))
    scene, matrix, found = slicer.vtkMRMLScene(), vtk.vtkMatrix4x4(), {}
    storage, sequence = slicer.vtkMRMLLinearTransformSequenceStorageNode(), slicer.vtkMRMLSequenceNode()
    scene.AddNode(storage), scene.AddNode(sequence)
    storage.SetFileName(path)
    assert storage.ReadData(sequence) == 1
    for n in range(sequence.GetNumberOfDataNodes()):
        sequence.GetNthDataNode(n).GetMatrixTransformToParent(matrix)
        found[sequence.GetNthIndexValue(n)] = matrix.GetElement(0, 3)
    return found


given = read_back(sys.argv[1] + "/given.seq.mha", MATRIX.format(n=1, shift=999))
absent = read_back(sys.argv[1] + "/absent.seq.mha", "")
print("slicer-core", version("slicer-core"), "- INVALID with a matrix:", given, "- without one:", absent)
assert given == {"0.000": 1, "1.000": 999, "2.000": 3}, "the behaviour has changed"
assert absent == {"0.000": 1, "2.000": 3}, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/run.py" "$work"
