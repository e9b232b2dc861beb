#!/usr/bin/env python3
"""Damage small files and read them: each is read, or refused in one line.

    python benchmarks/fuzz.py --minutes 20 --keep crashes

DICOM X-rays and slices, NIfTI, NRRD, MetaImage, NumPy, pictures, what stands beside them, poses, results and RTK
geometries are damaged at random. A reader must return numbers that are finite, or raise `XvrError` with one line;
nothing else may be raised, none may take over 10 s or 4 GiB, or end the process. Files are made from the seed and their
number alone, so that a failure can be repeated; `--keep` saves the files that failed. Linux only (processes are forked,
their memory and time limited by the kernel).
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

import numpy as np
import pydicom
import SimpleITK as sitk
import torch
import yaml
from PIL import Image
from pydicom.uid import CTImageStorage, RLELossless

from xvr.cameras import from_rtk, read_rtk, to_calibration, to_rtk, write_rtk
from xvr.conventions import XvrError
from xvr.detector import Detector, physical_geometry
from xvr.initialisers import from_result
from xvr.pose import Pose
from xvr.series import choose_series, read_series
from xvr.simulation import write_dicom
from xvr.volume import read_volume
from xvr.xray import Reading, read_xray

HERE = Path(__file__).resolve().parent
SECONDS, MEMORY = 10, 4 * 2**30
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
    sane(from_result(path)(read_xray(path.with_name("xray.png"), Reading(sdd=1000.0, delx=1.0))).matrix)


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
    found["CT slice"] = "slice1", (folder / "slice1").read_bytes(), slices
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


def damaged(kind: str, example: tuple, seed: int, n: int) -> bytes:
    suffix, content, _ = example
    made = damage(
        content,
        np.random.default_rng([seed, n]),
        suffix.endswith((".json", ".yaml", ".xml")) or kind in (".nrrd", ".mha"),
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
        current.value, kind = n, kinds[n % len(kinds)]
        suffix, _, reader = found[kind]
        path = folder / (suffix if suffix == "slice1" else f"damaged{suffix}")
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
        for kept in [
            *(folder / "make" / name for name in ("slice0", "slice2", "xray.png")),
            *folder.glob("make/damaged_*.png"),
        ]:
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
                            list(found)[n % len(found)],
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
            (asked.keep / f"{n}{found[kind][0]}").write_bytes(damaged(kind, found[kind], asked.seed, n))
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
