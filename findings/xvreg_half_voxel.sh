#!/bin/sh
# xvreg 0.1.0 registers with its CT half a voxel aside: a bead in a voxel is rendered half a voxel (here 2 x 2 x 4 mm) along
# each axis from where the CT's affine, and the same object's own `perspective_projection`, place it. A pose that fits the
# X-ray is therefore off by as much in the frame of the CT's file. DiffDRR's renderer by itself (voxel_shift=0.5) is exact.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q xvreg==0.1.0 torch==2.14.1 torchvision==0.29.1 diffdrr==0.6.1
cat > "$work/run.py" <<'PY'
import sys
import warnings
from importlib.metadata import version

warnings.filterwarnings("ignore")
import nibabel
import numpy as np
import torch
from diffdrr.drr import DRR
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, XRayAngiographicImageStorage, generate_uid
from xvr.register import FixedPose, Register

spacing, bead, work = np.array([4.0, 4.0, 8.0]), np.array([18, 21, 9]), sys.argv[1]
hu = np.full((40, 40, 24), -500, np.int16)  # the least that is not air becomes empty
hu[tuple(bead)] = 1000
nibabel.save(nibabel.Nifti1Image(hu, np.diag([*spacing, 1.0])), f"{work}/ct.nii.gz")

meta = FileMetaDataset()
meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = XRayAngiographicImageStorage, ExplicitVRLittleEndian
meta.MediaStorageSOPInstanceUID = generate_uid()
xray = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
xray.SOPClassUID, xray.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
xray.Rows, xray.Columns, xray.SamplesPerPixel, xray.PhotometricInterpretation = 256, 256, 1, "MONOCHROME2"
xray.BitsAllocated, xray.BitsStored, xray.HighBit, xray.PixelRepresentation = 16, 16, 15, 0
xray.DistanceSourceToDetector, xray.ImagerPixelSpacing = 1000, [0.5, 0.5]
xray.PixelData = np.arange(256 * 256, dtype="<u2").tobytes()
xray.save_as(f"{work}/x.dcm", enforce_file_format=True)

pose = FixedPose(rot=(0, 0, 0), xyz=(0, 500, 0), device="cpu")
register = Register(initializer=pose, imagepath=f"{work}/ct.nii.gz", device="cpu")
result = register(f"{work}/x.dcm", init_only=True)


def seen(drr):
    "Where the bead's shadow is: column and row of its middle, pixels whose first edge is at 0"
    with torch.no_grad():
        image = drr(result.final_pose, n_points=2000)[0, 0].numpy()
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(columns * image).sum(), (rows * image).sum()]) / image.sum()


def stated(drr, voxel):
    "Where the affine and the object's own projection put a voxel's index"
    world = drr.affine(torch.tensor(voxel, dtype=torch.float32)[None, None])
    return drr.perspective_projection(result.final_pose, world)[0, 0].detach().numpy()


alone = DRR(register.subject, 1000.0, 256, 0.5, renderer="trilinear", reverse_x_axis=False)
print("xvreg", version("xvreg"), "diffdrr", version("diffdrr"))
for name, drr in (("xvreg's Register", result.drr), ("DiffDRR by itself", alone)):
    place, centre, aside = seen(drr), stated(drr, bead), stated(drr, bead + 0.5)
    print(f"{name}: bead at {place.round(1)}, should be at {centre.round(1)}; half a voxel aside: {aside.round(1)}")
    near, far = (np.abs(place - p).max() for p in ((aside, centre) if drr is result.drr else (centre, aside)))
    assert near < 1.0 and far > 5.0, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/run.py" "$work"
