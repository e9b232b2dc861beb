#!/usr/bin/env python3
"""Read a long CT series and a long cine, and measure time and memory.

    python benchmarks/reading.py

All are made in a temporary folder (4 GB): 600 slices of 512 x 512, as DICOM and as NIfTI, and 120 frames of 1024 x 1024
in 16 bits, as stored and in JPEG 2000. Each is read in a process of its own. The kernel (Linux) reports its peak memory,
and the memory that it had after its imports is subtracted. Its standard error is a terminal, on which progress with the
time left must be seen. A volume and the levels of its pyramid are read without the cache, for the first time, and again
from the cache.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import pty
import re
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
import torch
from pydicom.uid import CTImageStorage, JPEG2000Lossless, generate_uid
from tqdm import tqdm

from xvr.detector import Detector, pose_from_angles
from xvr.series import choose_series, read_series
from xvr.simulation import write_dicom

HERE = Path(__file__).resolve().parent
CHILD = """
import json, re, sys, time
from pathlib import Path
from xvr.series import choose_series, read_image, read_series
from xvr.volume import read_volume
from xvr.xray import Reading, read_xray
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
before, began, busy = peak(), time.perf_counter(), time.process_time()
kept = {what}
seconds, cpu = time.perf_counter() - began, time.process_time() - busy
print(json.dumps(dict(seconds=seconds, cpu=cpu, before=before, peak=peak())))
"""
VOLUME, LEVELS = "read_volume({path!r})", "list(map(read_volume({path!r}).at, (16, 8, 4, 2)))"
READINGS = {  # What is read: of what, how, and with which folder of the cache; 0 is none
    "series, slices as stored": ("series", "read_series(choose_series({path!r}))", "0"),
    "series, values and places": ("series", "read_image({path!r})", "0"),
    **{
        f"{name}, as a volume{when}": (name, VOLUME, folder)
        for name in ("series", "ct.nii.gz", "ct.nii", "float.nii")
        for when, folder in (("", "0"), (" into the cache", "cache"), (" from the cache", "cache"))
    },
    **{
        f"ct.nii.gz, four levels{when}": ("ct.nii.gz", LEVELS, folder)
        for when, folder in (("", "0"), (" into the cache", "cache"), (" from the cache", "cache"))
    },
    **{
        f"cine, {how}": ("cine.dcm", f"read_xray({{path!r}}, Reading(reducefn={how!r}))", "0")
        for how in ("max", "mean", "median", "last")
    },
    "cine in JPEG 2000, max": ("packed.dcm", "read_xray({path!r})", "0"),
}


def make_series(folder: Path, slices: int):
    "A round patient of noisy water with a bone in the middle"
    folder.mkdir()
    rng = np.random.default_rng(0)
    row, column = np.mgrid[-255.5:256, -255.5:256]
    away = np.hypot(row, column)
    values = np.select([away < 40, away < 200], [700, 30], -1000)
    write_dicom(folder / "0.dcm", torch.zeros(512, 512), Detector(1000, 512, 1), pose_from_angles(0, 0, 500))
    tags = pydicom.dcmread(folder / "0.dcm")
    tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = CTImageStorage
    tags.Modality, tags.PixelSpacing, tags.RescaleSlope, tags.RescaleIntercept, tags.ImageOrientationPatient = (
        "CT",
        [0.8, 0.8],
        1,
        -1024,
        [1, 0, 0, 0, 1, 0],
    )
    for n in tqdm(range(slices), "making slices", unit="slice", leave=False, disable=None):
        tags.SOPInstanceUID = tags.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        tags.ImagePositionPatient, tags.InstanceNumber = [0, 0, float(n)], n + 1
        tags.PixelData = (values + rng.integers(-20, 20, values.shape) + 1024).clip(0).astype("<u2").tobytes()
        tags.save_as(folder / f"{n}.dcm")


def make_nifti(folder: Path):
    "The series as NIfTI: integers, packed and not, and floats"
    image, _ = read_series(choose_series(folder / "series"))
    for name in ("ct.nii.gz", "ct.nii"):
        sitk.WriteImage(image, str(folder / name))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32), str(folder / "float.nii"))


def make_cine(folder: Path, frames: int):
    "A shadow that grows, with noise"
    rng = np.random.default_rng(0)
    row, column = np.mgrid[-511.5:512, -511.5:512]
    beam = 3000 * np.exp(-np.clip(1 - np.hypot(row, column) / 400, 0, 1) * 3)
    write_dicom(folder / "cine.dcm", torch.zeros(1024, 1024), Detector(1000, 1024, 0.3), pose_from_angles(0, 0, 700))
    tags = pydicom.dcmread(folder / "cine.dcm")
    tags.NumberOfFrames = frames
    tags.PixelData = b"".join(
        (beam * np.exp(-n / frames) + rng.normal(0, 20, beam.shape)).clip(0).astype("<u2").tobytes()
        for n in range(frames)
    )
    tags.save_as(folder / "cine.dcm")
    tags.compress(JPEG2000Lossless)
    tags.save_as(folder / "packed.dcm")


def measure(path: Path, what: str, cache: str) -> dict:
    "One reading in a process of its own; `cache` is a folder beside the file, or 0"
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(what=what.format(path=str(path)))],
        stdout=subprocess.PIPE,
        stderr=end,
        text=True,
        env=os.environ | dict(XVR_CACHE=cache if cache == "0" else str(path.parent / cache)),
    )
    os.close(end)
    printed = b""
    while True:
        try:
            printed += os.read(terminal, 65536)
        except OSError:  # how Linux states that the other end of a terminal is closed
            break
    answer = child.communicate()[0]
    if child.returncode:
        raise SystemExit(printed.decode())
    seen = {
        name
        for name in ("headers", "slices", "frames")
        if re.search(rf"{name}: +\d+%.*\d+/\d+ \[\d\d:\d\d<\d\d:\d\d, ", printed.decode())
    }
    return json.loads(answer) | dict(progress=" ".join(sorted(seen)) or "none")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=600)
    parser.add_argument("--frames", type=int, default=120)
    asked = parser.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, pydicom {pydicom.__version__}, "
        f"commit {commit}",
        flush=True,
    )
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_series(folder / "series", asked.slices)
        make_nifti(folder)
        make_cine(folder, asked.frames)
        for title, (file, what, cache) in READINGS.items():
            path = folder / file
            size = sum(p.stat().st_size for p in path.iterdir()) if path.is_dir() else path.stat().st_size
            found = measure(path, what, cache)
            row = dict(
                read=title,
                size_gb=f"{size / 1e9:.3f}",
                seconds=f"{found['seconds']:.2f}",
                cpu_seconds=f"{found['cpu']:.2f}",
                peak_gib=f"{found['peak'] - found['before']:.2f}",
                imports_gib=f"{found['before']:.2f}",
                progress=found["progress"],
            )
            print(
                (
                    "{read:44s} {size_gb} GB on disk: {seconds:>5s} s, {cpu_seconds:>5s} s of a core, {peak_gib} GiB "
                    "above {imports_gib} GiB of imports; progress: {progress}"
                ).format(**row),
                flush=True,
            )
            rows.append(row)
    with open(HERE / "reading.csv", "w", newline="") as file:
        out = csv.DictWriter(file, [*rows[0], "slices", "frames", "date", "commit"])
        out.writeheader()
        out.writerows(
            row | dict(slices=asked.slices, frames=asked.frames, date=datetime.date.today(), commit=commit)
            for row in rows
        )


if __name__ == "__main__":
    main()
