#!/bin/sh
# slicer-core 5.13 (the libraries of 3D Slicer): a sequence of transforms, .seq.mha, loses frames that are 1 ms apart. Times
# are rounded to milliseconds, and those within 1 ms of each other count as one, so that the later frame replaces the earlier
# one: of five frames at 0, 1, 2, 3 and 4 ms those numbered 1, 3 and 4 are left, at 0, 2 and 4 ms. Frames 2 ms apart stay.
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

HEADER = "ObjectType = Image\nNDims = 3\nDimSize = 1 1 5\nElementType = MET_UCHAR\n"
FRAME = """Seq_Frame{n:04}_boneTransform = 1 0 0 {n} 0 1 0 0 0 0 1 0 0 0 0 1
Seq_Frame{n:04}_boneTransformStatus = OK
Seq_Frame{n:04}_Timestamp = {time:.6f}
"""


def read_back(path, step):
    "Times (s) and shifts (mm) of the frames that are left; frame n is shifted by n mm"
    frames = "".join(FRAME.format(n=n, time=n * step) for n in range(5))
    with open(path, "wb") as file:
        file.write((HEADER + frames + "ElementDataFile = LOCAL\n").encode() + bytes(5))
    scene, matrix, found = slicer.vtkMRMLScene(), vtk.vtkMatrix4x4(), {}
    storage, sequence = slicer.vtkMRMLLinearTransformSequenceStorageNode(), slicer.vtkMRMLSequenceNode()
    scene.AddNode(storage), scene.AddNode(sequence)
    storage.SetFileName(path)
    assert storage.ReadData(sequence) == 1
    for n in range(sequence.GetNumberOfDataNodes()):
        sequence.GetNthDataNode(n).GetMatrixTransformToParent(matrix)
        found[sequence.GetNthIndexValue(n)] = matrix.GetElement(0, 3)
    return found


one, two = (read_back(f"{sys.argv[1]}/{ms}.seq.mha", ms / 1000) for ms in (1, 2))
print("slicer-core", version("slicer-core"), "- 5 frames 1 ms apart:", one, "- 5 frames 2 ms apart:", two)
assert one == {"0.000": 1, "0.002": 3, "0.004": 4} and list(two.values()) == [0, 1, 2, 3, 4], "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/run.py" "$work"
