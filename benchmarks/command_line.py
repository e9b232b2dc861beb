#!/usr/bin/env python3
"""Train and register on a CT of your own, from the command line alone, and measure the errors.

    python benchmarks/command_line.py CT.nii.gz --outpath run
    python benchmarks/command_line.py --startup 20
    python benchmarks/command_line.py --startup 20 --against ../older

X-rays of the CT are simulated at poses drawn from the ranges below. Then `xvr train` and `xvr register model` are run
as a person would type them, and the results are compared with the truth: mTRE in the camera's frame at bone points, and
mPE on the detector. With `--startup` nothing is trained: what answers without work (help, a typing error, the Tab key)
is run that many times, each time in a new process, and timed. With `--against` another checkout is timed in turn with
this one, and the ratio of the medians is given.
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
TAB = "_XVR_COMPLETE", "COMP_WORDS", "COMP_CWORD"  # What the shell sets to ask for completions
ANSWERS = {  # What is typed, and the values of `TAB`
    "xvr --help": (),
    "xvr train --help": (),
    "xvr register model --help": (),
    "xvr trian": (),
    "xvr completion bash": (),
    "xvr [Tab]": ("bash_complete", "xvr ", "1"),
    "xvr train --b[Tab]": ("bash_complete", "xvr train --b", "2"),
}


def answer(what: str, checkout: Path) -> tuple[float, float]:  # Seconds that passed, and seconds of a core
    "Run what is typed once, in a new process"
    environment = os.environ | dict(zip(TAB, ANSWERS[what])) | dict(PYTHONPATH=str(checkout))
    words = [] if ANSWERS[what] else shlex.split(what)[1:]
    script = [sys.executable, "-c", "from xvr.cli import main; main()", *words]
    began, before = time.perf_counter(), os.times()
    subprocess.run(script, env=environment, cwd=checkout, capture_output=True)
    return time.perf_counter() - began, sum(os.times()[2:4]) - sum(before[2:4])


def time_answers(times: int, other: Path | None) -> list[dict]:
    "A row for each answer; with another checkout also the ratio to its median, both timed in turn"
    rows = []
    for what in ANSWERS:
        taken, others = [], []
        for _ in range(times):
            taken.append(answer(what, HERE.parent))
            others += [answer(what, other)] if other else []
        seconds, cpu = zip(*taken)
        median = statistics.median(seconds)
        ratio = round(median / statistics.median(s for s, _ in others), 2) if other else ""
        row = dict(typed=what, median_s=median, most_s=max(seconds), cpu_s=statistics.mean(cpu))
        rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} | dict(ratio=ratio))
        print(
            "{typed:28s} {median_s:.3f} s, at most {most_s:.3f} s, {cpu_s:.3f} s of a core  {ratio}".format(**rows[-1])
        )
    return rows


def commit_of(checkout: Path) -> str:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=checkout)
    return described.stdout.strip()


def startup(times: int, other: Path | None):
    "Time what answers at once, and write it as a table"
    about = dict(times=times, cores=os.cpu_count(), date=datetime.date.today(), commit=commit_of(HERE))
    about["against"] = commit_of(other) if other else ""
    rows = [row | about for row in time_answers(times, other)]
    with open(HERE / "command_line_startup.csv", "w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0]])
        table.writeheader()
        table.writerows(rows)


def run(command: str):
    print("$", command, flush=True)
    subprocess.run([str(Path(sys.executable).with_name("xvr")), *shlex.split(command)[1:]], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", nargs="?")
    parser.add_argument("--startup", type=int, metavar="TIMES")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--outpath", default="run")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.startup:
        return startup(asked.startup, asked.against)
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
