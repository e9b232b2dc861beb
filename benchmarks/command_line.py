#!/usr/bin/env python3
"""Train and register on a CT of your own, from the command line alone, and measure the errors.

    python benchmarks/command_line.py CT.nii.gz --outpath run
    python benchmarks/command_line.py --startup 20

X-rays of the CT are simulated at poses drawn from the ranges below; then `xvr train` and `xvr register model` are run
as a person would type them, and the results are held to the truth: mTRE in the camera's frame at bone points, and mPE
on the detector. With `--startup` nothing is trained: what answers without work (help, a typing error, the Tab key) is
run so often, each time in a new process, and timed.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

RANGES = dict(r1=(-30, 30), r2=(-15, 15), r3=(-10, 10), tx=(-30, 30), ty=(-900, -800), tz=(-30, 30))

HERE = Path(__file__).resolve().parent
ANSWERS = {  # What is typed, and what the shell sets
    "xvr --help": {}, "xvr train --help": {}, "xvr register model --help": {}, "xvr trian": {}, "xvr completion bash": {},
    "xvr [Tab]": dict(_XVR_COMPLETE="bash_complete", COMP_WORDS="xvr ", COMP_CWORD="1"),
    "xvr train --b[Tab]": dict(_XVR_COMPLETE="bash_complete", COMP_WORDS="xvr train --b", COMP_CWORD="2"),
}  # fmt: skip


def startup(times: int):
    "Time what answers at once, and write it as a table"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    rows = []
    for what, environment in ANSWERS.items():
        words = [] if environment else shlex.split(what)[1:]
        seconds, before = [], os.times()
        for _ in range(times):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", "from xvr.cli import main; main()", *words],
                env=os.environ | environment,
                capture_output=True,
            )
            seconds.append(time.perf_counter() - began)
        cpu = sum(os.times()[2:4]) - sum(before[2:4])  # of the processes that were started
        rows.append(
            dict(
                typed=what,
                median_s=round(statistics.median(seconds), 3),
                most_s=round(max(seconds), 3),
                cpu_s=round(cpu / times, 3),
            )
        )
        print(
            f"{what:28s} {rows[-1]['median_s']:.3f} s, at most {rows[-1]['most_s']:.3f} s, of {times}; "
            f"{rows[-1]['cpu_s']:.3f} s of a core",
            flush=True,
        )
    with open(HERE / "command_line_startup.csv", "w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0], "times", "cores", "date", "commit"])
        table.writeheader()
        table.writerows(
            row | dict(times=times, cores=os.cpu_count(), date=datetime.date.today(), commit=commit) for row in rows
        )


def run(command: str):
    print("$", command, flush=True)
    subprocess.run([str(Path(sys.executable).with_name("xvr")), *shlex.split(command)[1:]], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", nargs="?")
    parser.add_argument("--startup", type=int, metavar="TIMES")
    parser.add_argument("--outpath", default="run")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.startup:
        return startup(asked.startup)
    if not asked.ct:
        parser.error("give a CT, or --startup 20")

    import torch

    from xvr.detector import Detector
    from xvr.metrics import measure
    from xvr.pose import Pose
    from xvr.sampling import Uniform
    from xvr.simulation import simulate_files
    from xvr.volume import bone_points, read_volume

    out = Path(asked.outpath)
    poses = Uniform(**RANGES).sample(asked.count, torch.Generator().manual_seed(1000 + asked.seed))
    detector = Detector(1020, 512, 400 / 512, orientation="PA", reverse_x_axis=True)
    files = simulate_files(asked.ct, poses, detector, out / "xrays", seed=asked.seed)
    ranges = " ".join(f"--{name} {low} {high}" for name, (low, high) in RANGES.items())
    run(f"xvr train -i {asked.ct} -o {out}/model {ranges} --sdd 1020 --height 64 --delx 6.25 --reverse_x_axis "
        f"--batch_size 32 --lr 0.003 --minutes {asked.minutes} --seed {asked.seed}")  # fmt: skip
    run(f"xvr register model {out}/xrays -v {asked.ct} -c {out}/model/last.pth -o {out}/results --saveimg")
    points, rows = bone_points(read_volume(asked.ct)), []
    for file in files:
        result = json.loads((out / "results" / file.stem / "result.json").read_text())
        truth = Pose.load(file.with_suffix(".json"))
        errors = [
            measure(Pose(torch.tensor(result[k]["matrix"])), truth, points, detector) for k in ("initial", "final")
        ]
        rows.append([e[name].item() for name in ("mtre", "mpe") for e in errors] + [result["seconds"]])
        print(
            f"{file.name:16s} mTRE {rows[-1][0]:7.2f} -> {rows[-1][1]:6.2f} mm   mPE {rows[-1][2]:7.2f} -> "
            f"{rows[-1][3]:6.2f} mm   {rows[-1][4]:5.1f} s"
        )
    middle = [statistics.median(column) for column in zip(*rows)]
    print(
        f"{'median':16s} mTRE {middle[0]:7.2f} -> {middle[1]:6.2f} mm   mPE {middle[2]:7.2f} -> {middle[3]:6.2f} "
        f"mm   {middle[4]:5.1f} s"
    )
    print(
        f"{sum(r[1] < 1 for r in rows)} of {len(rows)} below 1 mm, {sum(r[1] < 2 for r in rows)} of {len(rows)} "
        "below 2 mm mTRE"
    )


if __name__ == "__main__":
    main()
