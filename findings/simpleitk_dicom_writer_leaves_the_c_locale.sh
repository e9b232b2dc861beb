#!/bin/sh
# SimpleITK 2.5.7 (ITK's GDCM): writing one DICOM slice that has its position or its orientation switches all of the process
# to the locale "C", and leaves it there. Python then reads what other programs print as ASCII, and a letter beyond it is a
# UnicodeDecodeError, far from the slice that was written. Without these two tags the locale stays.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q SimpleITK==2.5.7 numpy==2.3.5
cat > "$work/run.py" <<'PY'
import locale
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import SimpleITK as sitk

after = {}
for name, tags in {
    "modality": {"0008|0060": "CT"},
    "position": {"0020|0032": "0\\0\\1"},
    "orientation": {"0020|0037": "1\\0\\0\\0\\1\\0"},
}.items():
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    slice_ = sitk.GetImageFromArray(np.zeros((1, 8, 8), np.int16))
    for tag, value in tags.items():
        slice_.SetMetaData(tag, value)
    sitk.WriteImage(slice_, f"{sys.argv[1]}/{name}.dcm")
    after[name] = locale.setlocale(locale.LC_ALL)
print("SimpleITK", version("SimpleITK"), after)
try:
    subprocess.run(["printf", "80 µm"], capture_output=True, text=True)
    seen = "read"
except UnicodeDecodeError:
    seen = "UnicodeDecodeError"
print("a micrometre that another program prints:", seen)
sys.exit(after != {"modality": "C.UTF-8", "position": "C", "orientation": "C"} or seen != "UnicodeDecodeError")
PY
"$work/venv/bin/python" "$work/run.py" "$work"
