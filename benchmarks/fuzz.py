#!/usr/bin/env python3
"""Damage small files and read them: each is read, or refused in one line.

    python benchmarks/fuzz.py --minutes 20 --keep crashes

DICOM X-rays and slices, NIfTI, NRRD, MetaImage, NumPy, pictures, what stands beside them, labelmaps, poses, transforms,
RTK geometries, results and checkpoints (those of the existing xvr too) are damaged at random. A reader must return numbers
that are finite, or raise `XvrError` with one line; nothing else may be raised, none may take over 10 s or 4 GiB, or end the
process. Files are made from the seed and their number alone, so that a failure can be repeated; `--keep` saves the files
that failed. Linux only (processes are forked, their memory and time limited by the kernel).
"""

from __future__ import annotations

import argparse
import csv
import datetime
import faulthandler
import gzip
import json
import multiprocessing
import os
import platform
import re
import resource
import signal
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
import torch
import yaml
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedXAImageStorage, ExplicitVRLittleEndian, RLELossless, SegmentationStorage

from xvr.cameras import from_rtk, read_rtk, to_calibration, to_rtk, write_rtk
from xvr.conventions import XvrError
from xvr.detector import Detector, physical_geometry
from xvr.initialisers import from_file, from_result
from xvr.inspector import describe
from xvr.models import PoseRegressor
from xvr.pose import Pose
from xvr.series import choose_series, read_series
from xvr.simulation import write_dicom
from xvr.volume import read_volume
from xvr.xray import Reading, read_xray

HERE = Path(__file__).resolve().parent
SECONDS, MEMORY = 10, 4 * 2**30
SLOW = {"ITK .h5": 100, "checkpoint": 8}  # Kinds of which only each nth file is read, another kind instead of the rest
SLICE = "slices/slice1"  # In a folder of its own
NUMBERS = [
    b"\0",
    b"\xff",
    b"\0\0",
    b"\xff\xff",
    b"\xff\x7f",
    b"\0\x80",
    b"\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff",
    b"\0\0\xc0\x7f",
    b"\0\0\x80\x7f",
    b"\x01\0\0\0",
    b"\0" * 8,
]
WORDS = ["null", "-1", "0", "0.5", "1000", "-37.25", "1e999", "1e300", "NaN", "\"\"", "\"x\"", "[]", "{}", "[[]]", "true", "99999999999999999999", "[1,2]", "\"\\ud800\""]  # fmt: skip


# What is damaged, and who reads it


def sane(image):
    assert torch.isfinite(image).all(), "what was read is not finite"


def xray(path):
    check(
        read_xray(path, Reading(sdd=1000.0, delx=1.0)) if path.suffix != ".dcm" else read_xray(path, centre=[1, 2, 3])
    )


def picture(path):
    check(read_xray(path.with_suffix(".png"), centre=[10.0, -20, 30]))


def check(x):
    sane(x.image)
    assert x.image.ndim == 4 and x.image.shape[2:] == (x.detector.height, x.detector.width)
    if x.pose is not None:
        sane(x.pose.matrix)


def displayed(path):
    sane(read_xray(path, Reading(as_displayed=True)).image)


def volume(path):
    v = read_volume(path)
    sane(v.density), sane(v.world_from_voxel)


def slices(path):
    sane(torch.from_numpy(sitk.GetArrayFromImage(read_series(choose_series(path.parent))[0]).astype(np.float32)))


def pose(path):
    sane(Pose.load(path).matrix)


def projections(path):
    for projection in read_rtk(path):
        sane(from_rtk(projection, 16)[1].matrix)


def result(path):
    sane(from_result(path)(_picture_beside(path)).matrix)


def masked(path):
    "A labelmap on the grid of the CT beside it"
    sane(read_volume(path.with_name("ct.mha"), path).labels.float())


def shown(path):
    text = describe(path)
    assert text and all(len(line) <= 80 for line in text.splitlines() if " " in line.strip())


def restarted(path):
    shown(path)
    sane(from_result(path, "AP")(_picture_beside(path, orientation="AP")).matrix)


def _picture_beside(path, **settings):
    return read_xray(path.with_name("xray.png"), Reading(sdd=1000.0, delx=1.0, **settings))


def moved(path):
    "A transform as the camera's pose, and as the CT's motion"
    camera, xray = Pose.from_euler([20.0, 10, 0], [0.0, -800, 0]), _picture_beside(path)
    ct = read_volume(path.with_name("ct.mha"))
    sane(from_file(path, volume=ct)(xray).matrix)
    if path.suffix != ".h5":  # which takes a second
        sane(from_file(path, "ct", volume=ct, camera=camera)(xray).matrix)


def more_volumes(folder: Path):  # Kind, suffix, bytes, reader
    "NIfTI that is bent, in two files, or of version 2; segments of 3D Slicer"
    values = np.random.default_rng(1).integers(-1000, 1000, (8, 7, 6)).astype(np.int16)
    straight = np.diag([2.0, 2, 3, 1])
    leaned = straight.copy()
    leaned[1, 2] = 1.0
    version_2 = nibabel.Nifti2Image(values, straight)
    forms = nibabel.Nifti1Image(values, straight)
    forms.set_qform(np.diag([-2.0, 2, 3, 1]), 1)
    slopes = nibabel.Nifti1Image(values, straight)
    slopes.header.set_slope_inter(2, -1024)
    kinds = dict(version_2=version_2, leaned=nibabel.Nifti1Image(values, leaned), forms=forms, slopes=slopes)
    for kind, image in kinds.items():
        nibabel.save(image, folder / f"{kind}.nii")
        yield f"NIfTI, {kind}", f"_{kind}.nii", (folder / f"{kind}.nii").read_bytes(), volume
    (folder / "damaged_twin.nii.gz").write_bytes(gzip.compress((folder / "slopes.nii").read_bytes()))
    yield "NIfTI, twin", "_twin.nii", (folder / "leaned.nii").read_bytes(), volume
    yield "info NIfTI", "_info.nii", (folder / "forms.nii").read_bytes(), shown
    nibabel.save(nibabel.Nifti1Pair(values, straight), folder / "damaged_pair.img")
    yield "NIfTI, pair", "_pair.hdr", (folder / "damaged_pair.hdr").read_bytes(), volume
    labels = sitk.ReadImage(str(folder / "ct.mha")) > 0
    for key, text in dict(ID="Segment_1", Name="bone", LabelValue="1", Layer="0").items():
        labels.SetMetaData(f"Segment0_{key}", text)
    sitk.WriteImage(labels, str(folder / "labels.seg.nrrd"))
    yield "segments", "_labels.seg.nrrd", (folder / "labels.seg.nrrd").read_bytes(), masked


def more_dicom(folder: Path):  # Kind, tags, reader
    "X-rays with moving frames, geometry in groups, or pixels at the top of 16 bits"
    group = lambda **tags: Sequence([_filled(Dataset(), tags)])
    spin = pydicom.dcmread(folder / "a.dcm")
    spin.NumberOfFrames, spin.PixelData, spin.PositionerMotion = 3, spin.PixelData * 3, "DYNAMIC"
    spin.PositionerPrimaryAngleIncrement, spin.PositionerSecondaryAngleIncrement = [0.0, 15, 30], [0.0, 0, 0]
    yield "XA, rotation", spin, xray
    groups = pydicom.dcmread(folder / "a.dcm")
    for name in ("DistanceSourceToDetector", "DistanceSourceToPatient", "ImagerPixelSpacing", "PatientOrientation"):
        delattr(groups, name)
    for name in ("PositionerPrimaryAngle", "PositionerSecondaryAngle"):
        delattr(groups, name)
    groups.SOPClassUID = groups.file_meta.MediaStorageSOPClassUID = EnhancedXAImageStorage
    groups.NumberOfFrames, groups.ImagerPixelSpacing = 1, [10, 10]
    geometry = group(DistanceSourceToIsocenter=800, DistanceSourceToDetector=1000)
    angles = group(PositionerPrimaryAngle=10, PositionerSecondaryAngle=5)
    groups.SharedFunctionalGroupsSequence = group(XRayGeometrySequence=geometry)
    groups.PerFrameFunctionalGroupsSequence = group(PositionerPositionSequence=angles)
    yield "Enhanced XA", groups, xray
    left = pydicom.dcmread(folder / "a.dcm")
    left.PixelData, left.BitsStored, left.HighBit = (left.pixel_array.astype("<u2") << 4).tobytes(), 12, 15
    yield "XA, left", left, xray
    yield "info XA", pydicom.dcmread(folder / "a.dcm"), shown
    yield "DICOM SEG", _segmentation(sitk.ReadImage(str(folder / "ct.mha"))), masked


def _segmentation(ct: sitk.Image) -> Dataset:
    "Two segments of the voxels above 0, a frame a slice, on the grid of a CT"
    group = lambda **tags: Sequence([_filled(Dataset(), tags)])
    shape = sitk.GetArrayFromImage(ct).shape
    axes = np.array(ct.GetDirection()).reshape(3, 3)
    spacing = [float(s) for s in ct.GetSpacing()]
    orientation = group(ImageOrientationPatient=axes.T[:2].ravel().tolist())
    measures = group(PixelSpacing=spacing[1::-1], SliceThickness=spacing[2], SpacingBetweenSlices=spacing[2])
    frames = []
    for n in (1, 2):
        for k in range(shape[0]):
            frame = Dataset()
            place = [f"{v:.10g}" for v in ct.TransformIndexToPhysicalPoint((0, 0, k))]
            frame.PlanePositionSequence = group(ImagePositionPatient=place)
            frame.SegmentIdentificationSequence = group(ReferencedSegmentNumber=n)
            frames.append(frame)
    tags = pydicom.FileDataset("", {}, preamble=bytes(128), file_meta=FileMetaDataset())
    tags.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    tags.file_meta.MediaStorageSOPClassUID = tags.SOPClassUID = SegmentationStorage
    half = np.zeros((2, *shape), np.uint8)
    half[0, :, : shape[1] // 2], half[1, :, shape[1] // 2 :] = 1, 1
    layout = dict(SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", PixelRepresentation=0)
    layout |= dict(Rows=shape[1], Columns=shape[2], BitsAllocated=1, BitsStored=1, HighBit=0)
    _filled(tags, layout | dict(Modality="SEG", SegmentationType="BINARY", NumberOfFrames=len(frames)))
    tags.SegmentSequence = Sequence(_filled(Dataset(), dict(SegmentNumber=n, SegmentLabel=f"Bone {n}")) for n in (1, 2))
    tags.SharedFunctionalGroupsSequence = group(PlaneOrientationSequence=orientation, PixelMeasuresSequence=measures)
    tags.PerFrameFunctionalGroupsSequence = Sequence(frames)
    data = np.packbits(half, bitorder="little").tobytes()
    tags.PixelData = data + bytes(len(data) % 2)
    return tags


def _filled(tags: Dataset, values: dict) -> Dataset:
    for name, value in values.items():
        setattr(tags, name, value)
    return tags


def artefacts(folder: Path, camera: Pose):  # Kind, suffix, bytes, reader
    "Transforms of ITK; results and checkpoints of the existing xvr"
    transform = sitk.Euler3DTransform([10.0, 20, 30], 0.1, 0.2, 0.3, [1.0, 2, 3])
    for suffix in (".tfm", ".h5"):
        sitk.WriteTransform(transform, str(folder / f"pose{suffix}"))
        yield f"ITK {suffix}", f"_itk{suffix}", (folder / f"pose{suffix}").read_bytes(), moved
    plate = dict(sdd=1000.0, height=16, width=16, delx=10.0, dely=10.0, x0=0.0, y0=0.0, reverse_x_axis=False)
    log = dict(losses=[0.5, 0.9])
    made = dict(detector=plate, init_pose=camera.matrix, final_pose=camera.matrix, runtime=1.0, log=log)
    torch.save(made, folder / "result.pth")
    yield "existing result", "_existing.pth", (folder / "result.pth").read_bytes(), restarted
    config = dict(model_name="test_resnet", parameterization="euler_angles", convention="ZXY", norm_layer=None)
    config |= {
        f"{name}{end}": v
        for name in ("alpha", "beta", "gamma", "tx", "tz")
        for end, v in zip(("min", "max"), (-30.0, 30))
    }
    config |= dict(sdd=1000.0, height=32, delx=10.0, orientation="AP", reverse_x_axis=False, tymin=700.0, tymax=900.0)
    config |= dict(
        unit_conversion_factor=1000.0, volpath="ct.nii.gz", maskpath=None, warp=None, invert=False, ckptpath=None
    )
    weights = PoseRegressor(
        "test_resnet", norm_layer="default", parameterization="euler_angles", convention="ZXY", height=32
    ).state_dict()
    torch.save(dict(model_state_dict=weights, config=config, itr=5, model_number=1), folder / "network.pth")
    yield "checkpoint", "_network.pth", (folder / "network.pth").read_bytes(), shown


def pictures(folder: Path):  # Kind, suffix, bytes
    "Pictures with palettes, pages and headers"
    grey = Image.open(folder / "xray.png")
    indexed = grey.convert("P")
    for kind, image, suffix in (
        ("GIF", indexed, ".gif"),
        ("BMP", grey, ".bmp"),
        ("PGM", grey, ".pgm"),
        ("PNG, palette", indexed, ".png"),
        ("PNG, alpha", grey.convert("LA"), ".png"),
        ("JPEG", grey, ".jpg"),
    ):
        image.save(folder / f"picture{suffix}")
        yield kind, f"_{kind.replace(', ', '_')}{suffix}", (folder / f"picture{suffix}").read_bytes()
    grey.save(folder / "pages.tif", save_all=True, append_images=[grey.resize((8, 8)), grey])
    yield "TIFF, pages", "_pages.tif", (folder / "pages.tif").read_bytes()
    flat = sitk.GetImageFromArray(np.asarray(grey))
    flat.SetSpacing([0.5, 0.4])
    for suffix in (".mha", ".nrrd"):
        sitk.WriteImage(flat, str(folder / f"flat{suffix}"))
        yield f"{suffix} X-ray", f"_flat{suffix}", (folder / f"flat{suffix}").read_bytes()


def palette(folder: Path) -> Path:
    "The X-ray as indices into a table of colours"
    tags = pydicom.dcmread(folder / "a.dcm")
    for colour in ("Red", "Green", "Blue"):
        tags.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        tags.add_new(f"{colour}PaletteColorLookupTableData", "OW", (np.arange(256) * 257).astype("<u2").tobytes())
    tags.PixelData, tags.PhotometricInterpretation = (tags.pixel_array >> 4).astype("u1").tobytes(), "PALETTE COLOR"
    tags.BitsAllocated, tags.BitsStored, tags.HighBit = 8, 8, 7
    tags.add_new("PixelPaddingValue", "US", 3)
    tags.save_as(folder / "palette.dcm")
    return folder / "palette.dcm"


def linac(folder: Path) -> Path:
    "An RT image with its gantry, couch and isocentre"
    tags = pydicom.dcmread(folder / "a.dcm")
    for keyword in ("PositionerPrimaryAngle", "PositionerSecondaryAngle", "PatientOrientation"):
        delattr(tags, keyword)
    tags.Modality, tags.PatientPosition, tags.GantryAngle, tags.PatientSupportAngle = "RTIMAGE", "HFS", 30, 5
    tags.RTImageSID, tags.RadiationMachineSAD, tags.ImagePlanePixelSpacing = 1500, 1000, [3, 3]
    tags.XRayImageReceptorTranslation, tags.RTImagePosition, tags.IsocenterPosition = [3, 4, -500], [-20, 22], [1, 2, 3]
    tags.save_as(folder / "linac.dcm")
    return folder / "linac.dcm"


def examples(folder: Path) -> dict:  # Kind: suffix, bytes, reader
    "One small file of each kind"
    rng, found = np.random.default_rng(0), {}
    image = torch.from_numpy(rng.integers(1, 4096, (16, 16)))
    camera = Pose.from_euler(torch.tensor([[20.0, 10, 0]]), torch.tensor([[0.0, -800, 0]]))
    write_dicom(folder / "a.dcm", image, Detector(1000, 16, 10), camera)
    found["XA"] = ".dcm", (folder / "a.dcm").read_bytes(), xray
    tags = pydicom.dcmread(folder / "a.dcm")
    tags.NumberOfFrames, tags.PixelData, tags.PhotometricInterpretation = 3, tags.PixelData * 3, "MONOCHROME1"
    tags.RescaleSlope, tags.RescaleIntercept, tags.PixelIntensityRelationship = 2, -10, "LOG"
    tags.compress(RLELossless)
    tags.save_as(folder / "b.dcm")
    found["XA, RLE"] = ".dcm", (folder / "b.dcm").read_bytes(), xray
    tags = pydicom.dcmread(folder / "a.dcm")
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 12])
    table.add_new("LUTData", "OW", (np.arange(4096) ** 2 // 4096).astype("<u2").tobytes())
    tags.ModalityLUTSequence, tags.VOILUTSequence, tags.PresentationLUTSequence, tags.WindowCenter, tags.WindowWidth = (
        [table],
        [table],
        [table],
        2000,
        1000,
    )
    tags.save_as(folder / "c.dcm")
    found["XA, tables"] = ".dcm", (folder / "c.dcm").read_bytes(), displayed
    for n in range(3):
        tags = pydicom.dcmread(folder / "a.dcm")
        tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = CTImageStorage
        tags.Modality, tags.PixelSpacing, tags.RescaleSlope, tags.RescaleIntercept = "CT", [1, 1], 1, -1024
        tags.ImagePositionPatient, tags.ImageOrientationPatient = [0, 0, 2 * n], [1, 0, 0, 0, 1, 0]
        tags.save_as(folder / f"slice{n}")
    found["CT slice"] = SLICE, (folder / "slice1").read_bytes(), slices
    ct = sitk.GetImageFromArray(rng.integers(-1000, 1000, (6, 7, 8)).astype(np.int16))
    ct.SetDirection([0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1])
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        sitk.WriteImage(ct, str(folder / f"ct{suffix}"))
        content = (folder / f"ct{suffix}").read_bytes()
        found[suffix] = suffix, gzip.decompress(content) if suffix == ".nii.gz" else content, volume
    Image.fromarray(image.numpy().astype(np.uint8)).save(folder / "xray.png")
    Image.open(folder / "xray.png").save(folder / "xray.tif")
    found["TIFF"] = ".tif", (folder / "xray.tif").read_bytes(), xray
    found |= {kind: (suffix, content, xray) for kind, suffix, content in pictures(folder)}
    for kind, path in (("XA, palette", palette(folder)), ("RT image", linac(folder))):
        found[kind] = ".dcm", path.read_bytes(), xray
    np.save(folder / "xray.npy", image.numpy())
    found["NumPy"] = ".npy", (folder / "xray.npy").read_bytes(), xray
    sitk.WriteImage(sitk.GetImageFromArray(image.numpy().astype(np.int16)), str(folder / "xray.nii"))
    found["NIfTI X-ray"] = "_xray.nii", (folder / "xray.nii").read_bytes(), xray
    K, R, t = (m.tolist() for m in to_calibration(Detector(1000, 16, 10), camera))
    angles = dict(sdd=1000, delx=10, sid=800, primary=20, secondary=10, x0=1, patient_orientation="L\\F")
    for n, told in enumerate(
        [
            dict(geometry=physical_geometry(Detector(1000, 16, 10), camera, torch.zeros(3)), height=16),
            dict(K=K, R=R, t=t, sdd=1000),
            angles,
        ]
    ):
        Image.open(folder / "xray.png").save(folder / f"damaged_{n}.png")
        found[f"beside {n}"] = f"_{n}.json", json.dumps(told).encode(), picture
        Image.open(folder / "xray.png").save(folder / f"damaged_y{n}.png")
        found[f"beside y{n}"] = f"_y{n}.yaml", yaml.safe_dump(told, default_flow_style=True).encode(), picture
    write_rtk(folder / "rtk.xml", [to_rtk(Detector(1000, 16, 10), camera)[0]])
    found["RTK"] = ".xml", (folder / "rtk.xml").read_bytes(), projections
    camera.save(folder / "pose.json")
    found["pose"] = "_pose.json", (folder / "pose.json").read_bytes(), pose
    found["result"] = (
        "_result.json",
        json.dumps(dict(xray="a", final=dict(matrix=camera.matrix[0].tolist()), geometry={})).encode(),
        result,
    )
    found |= {kind: rest for kind, *rest in (*more_volumes(folder), *artefacts(folder, camera))}
    for kind, tags, reader in more_dicom(folder):
        tags.save_as(folder / "more.dcm")
        found[kind] = ".dcm", (folder / "more.dcm").read_bytes(), reader
    bare = Dataset()
    bare.update(pydicom.dcmread(folder / "a.dcm"))
    bare.save_as(folder / "bare.dcm", implicit_vr=True, little_endian=True, enforce_file_format=False)
    found["XA, no preamble"] = ".dcm", (folder / "bare.dcm").read_bytes(), xray
    return found


# How


def damage(content: bytes, rng: np.random.Generator, text: bool) -> bytes:
    "One to four random changes"
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        at, kind = (
            int(rng.integers(len(data) if rng.random() < 0.5 else min(len(data), 400))),
            7 if text and rng.random() < 0.6 else rng.integers(7),
        )
        end = at + int(rng.integers(1, 17))
        match kind:
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at] = int(rng.integers(256))
            case 2:
                new = NUMBERS[rng.integers(len(NUMBERS))]
                data[at : at + len(new)] = new
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = data[at:end]
            case 5:
                del data[at if rng.random() < 0.3 else len(data) - at // 8 :]
            case 6:
                data[at:end] = rng.bytes(end - at)
            case _:
                data = bytearray(swap(bytes(data), rng))
    return bytes(data)  # fmt: skip


def swap(content: bytes, rng: np.random.Generator) -> bytes:
    "A number or a string of a text, replaced"
    found = [m.span() for m in re.finditer(rb'-?\d[\d.e+-]*|"[^"]*"', content)]
    if not found:
        return content
    start, end = found[rng.integers(len(found))]
    return content[:start] + WORDS[rng.integers(len(WORDS))].encode() + content[end:]


def kind_of(n: int, kinds) -> str:
    "The kind of a file, by its number"
    kinds = list(kinds)
    kind = kinds[n % len(kinds)]
    return kinds[0] if n // len(kinds) % SLOW.get(kind, 1) else kind


def damaged(kind: str, example: tuple, seed: int, n: int) -> bytes:
    suffix, content, _ = example
    made = damage(
        content,
        np.random.default_rng([seed, n]),
        suffix.endswith((".json", ".yaml", ".xml")) or kind in (".nrrd", ".mha", "segments", "ITK .tfm"),
    )
    return gzip.compress(made, 1) if suffix == ".nii.gz" else made


def work(folder, found, seed, numbers, current, pipe):
    "Read files in a process of their own; what failed goes into `pipe`"
    resource.setrlimit(resource.RLIMIT_AS, (resident("VmSize") + MEMORY,) * 2)
    faulthandler.disable()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1), os.dup2(silent, 2)  # what the libraries of C and C++ say
    torch.set_num_threads(1)
    kinds, outcome, failures = list(found), Counter(), []
    for n in numbers:
        current.value, kind = n, kind_of(n, kinds)
        suffix, _, reader = found[kind]
        path = folder / (suffix if suffix == SLICE else f"damaged{suffix}")
        path.write_bytes(damaged(kind, found[kind], seed, n))
        signal.alarm(SECONDS)
        try:
            reader(path)
            outcome[kind, "read"] += 1
        except XvrError as error:
            outcome[kind, "refused"] += 1
            if "\n" in str(error).strip() or not str(error).strip():
                failures.append((n, kind, f"not one line: {error}"))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            ours = [f for f in traceback.extract_tb(error.__traceback__) if "/xvr/" in f.filename]
            failures.append(
                (
                    n,
                    kind,
                    f"{type(error).__name__}: {str(error)[:120]} at {ours[-1].name if ours else ''}, "
                    f"{Path(where.filename).name}:{where.lineno}",
                )
            )
        signal.alarm(0)
    pipe.send((outcome, failures, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def resident(what: str) -> int:
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(what)
    )


def fuzz(
    count: int,  # Files
    *,
    seed: int = 0,
    minutes: float = 1e9,  # Stop after these
    batch: int = 500,  # Files a process
    report=lambda *_: None,  # Called after each batch with the files done and the failures
) -> tuple[Counter, list, float]:  # Outcomes by kind, failures, the most memory of a process, GiB
    "Damage and read `count` files"
    began, outcome, failures, memory, done = time.monotonic(), Counter(), [], 0.0, 0
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("make", "read"):
            (folder / part).mkdir()
        found = examples(folder / "make")
        (folder / "read" / "slices").mkdir()
        for n in (0, 2):
            (folder / "make" / f"slice{n}").rename(folder / "read" / "slices" / f"slice{n}")
        for kept in [*(folder / "make" / name for name in ("xray.png", "ct.mha")), *folder.glob("make/damaged_*")]:
            kept.rename(folder / "read" / kept.name)
        while done < count and time.monotonic() - began < 60 * minutes:
            numbers, (receive, send), current = (
                list(range(done, min(done + batch, count))),
                context.Pipe(False),
                context.Value("q", -1),
            )
            while numbers:
                process = context.Process(target=work, args=(folder / "read", found, seed, numbers, current, send))
                process.start()
                process.join()
                if process.exitcode == 0:
                    some, failed, most = receive.recv()
                    outcome, failures, memory, numbers = outcome + some, failures + failed, max(memory, most), []
                else:  # the kernel ended it; the rest goes to another, what it had read before is read again
                    n = current.value
                    failures.append(
                        (
                            n,
                            kind_of(n, found),
                            f"took over {SECONDS} s"
                            if process.exitcode == -signal.SIGALRM
                            else f"ended the process, {process.exitcode}",
                        )
                    )
                    numbers.remove(n)
            done = min(done + batch, count)
            report(done, failures)
    return outcome, failures, memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    asked = parser.parse_args()
    began = time.monotonic()

    def report(done, failures):
        if done % 10_000 == 0:
            print(f"{done} files, {time.monotonic() - began:.0f} s, {len(failures)} failed", flush=True)

    outcome, failures, memory = fuzz(asked.count, seed=asked.seed, minutes=asked.minutes, report=report)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, commit {commit}, seed {asked.seed}: "
          f"{outcome.total()} files read or refused, {len(failures)} failed, {time.monotonic() - began:.0f} s, at "
              f"most {memory:.2f} GiB in a process")  # fmt: skip
    rows = [
        dict(
            kind=kind,
            read=outcome[kind, "read"],
            refused=outcome[kind, "refused"],
            failed=sum(k == kind for _, k, _ in failures),
        )
        for kind in dict.fromkeys(k for k, _ in outcome)
    ]
    print(
        *(f"{r['kind']:10s} {r['read']:6d} read  {r['refused']:6d} refused  {r['failed']:4d} failed" for r in rows),
        sep="\n",
    )
    with open(HERE / "fuzz.csv", "w", newline="") as file:
        out = csv.DictWriter(file, [*rows[0], "seed", "date", "commit"])
        out.writeheader()
        out.writerows(r | dict(seed=asked.seed, date=datetime.date.today(), commit=commit) for r in rows)
    for (kind, what), times in Counter((kind, what) for _, kind, what in failures).most_common(40):
        print(f"{times:5d} {kind}: {what} (such as {next(n for n, k, w in failures if (k, w) == (kind, what))})")
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            found = examples(Path(folder))
        for n, kind, _ in failures[:200]:
            (asked.keep / f"{n}{Path(found[kind][0]).name}").write_bytes(damaged(kind, found[kind], asked.seed, n))
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
