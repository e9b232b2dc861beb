#!/bin/sh
# dcm2niix 1.0.20260724 corrects a gantry tilt of +18 degrees to 0.2 mm and one of -18 degrees to 15 mm:
# the corrected file has the right voxels, and the corner of the other end of the shear.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q dcm2niix==1.0.20260724 numpy==2.2.6 scipy==1.15.3 pydicom==3.0.1 nibabel==5.3.2
cat > "$work/run.py" <<'PY'
import math
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

BEADS = [(3, 40, 50), (9, 30, 20), (6, 70, 90)]  # slice, row, column
study, series, frame = generate_uid(), generate_uid(), generate_uid()


def write_series(folder, tilt):
    "Twelve slices, 3 mm of table apart, of a gantry that leans by `tilt` degrees; the places of beads, LPS mm"
    folder.mkdir()
    lean, places = math.radians(tilt), []
    row, column = np.array([1.0, 0, 0]), np.array([0, math.cos(lean), -math.sin(lean)])
    for k in range(12):
        corner, pixels = np.array([-35.0, -50, 10 + 3 * k]), np.full((128, 100), 1024, "<u2")
        for _, r, c in (bead for bead in BEADS if bead[0] == k):
            pixels[r - 1 : r + 2, c - 1 : c + 2] = 4000
            places.append(corner + c * 0.7 * row + r * 0.8 * column)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        d = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
        d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, frame
        d.Modality, d.PatientName, d.PatientID, d.StudyDate, d.StudyTime = "CT", "A^B", "1", "20200101", "120000"
        d.SeriesNumber, d.InstanceNumber, d.ImageType, d.Manufacturer = 1, k + 1, ["ORIGINAL", "PRIMARY", "AXIAL"], "x"
        d.ImageOrientationPatient = [f"{v:.8f}" for v in [*row, *column]]
        d.ImagePositionPatient, d.PixelSpacing, d.SliceThickness = [f"{v:.6f}" for v in corner], [0.8, 0.7], 3
        d.GantryDetectorTilt = tilt
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = 128, 100, 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        d.RescaleSlope, d.RescaleIntercept, d.PixelData = 1, -1024, pixels.tobytes()
        d.save_as(folder / f"{k}.dcm", enforce_file_format=True)
    return np.array(places)


def misplaced(path, places):
    image = nibabel.load(path)
    affine, values = np.diag([-1.0, -1, 1, 1]) @ image.affine, image.get_fdata()
    parts, count = ndimage.label(values > 1000, np.ones((3, 3, 3)))
    assert count == len(places), count
    found = np.array(ndimage.center_of_mass(values, parts, range(1, count + 1))) @ affine[:3, :3].T + affine[:3, 3]
    return np.linalg.norm(found[:, None] - places, axis=-1).min(0).max()


work, off = Path(sys.argv[1]), {}
for tilt in (18, -18):
    folder = work / f"tilt{tilt}"
    places = write_series(folder, tilt)
    out = subprocess.run([sys.argv[2], "-z", "y", "-f", f"t{tilt}", "-o", work, folder], capture_output=True, text=True)
    off[tilt] = misplaced(work / f"t{tilt}_Tilt_1.nii.gz", places)
print(out.stdout.splitlines()[0].strip())
print(*(f"tilt {tilt:+d} degrees: beads up to {mm:.1f} mm from where their slices place them" for tilt, mm in off.items()), sep="\n")
assert off[18] < 1 and off[-18] > 10, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/run.py" "$work" "$work/venv/bin/dcm2niix"
