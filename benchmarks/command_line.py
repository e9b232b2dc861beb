#!/usr/bin/env python3
"""Train and register on a CT of your own, from the command line alone, and measure the errors.

    python benchmarks/command_line.py CT.nii.gz --outpath run
    python benchmarks/command_line.py --startup 20
    python benchmarks/command_line.py --startup 20 --against ../older
    python benchmarks/command_line.py CT.nii.gz --whole 7 --against ../older
    python benchmarks/command_line.py CT.nii.gz --whole 5 --busy --against ../older

X-rays of the CT are simulated at poses drawn from the ranges below. Then `xvr train` and `xvr register model` are run
as a person would type them, and the results are compared with the truth: mTRE in the camera's frame at bone points, and
mPE on the detector. With `--startup` nothing is trained: what answers without work (help, a typing error, the Tab key)
is run that many times, each time in a new process, and timed. With `--against` another checkout is timed in turn with
this one, and the ratio of the medians is given.

With `--whole` commands that work on one X-ray of 768 x 768 pixels are timed from the shell to the last file, after a
first run that compiles and fills caches: seconds, seconds of a core, memory, and the kernels that were compiled. The
seconds of the registration alone are those in `result.json`; a script that imports PyTorch first and registers twice
stands for a notebook. With `--busy` two processes of pure arithmetic run beside all of it.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
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


ARITHMETIC = "while True: sum(n * n for n in range(10**6))"
NOTEBOOK = """
import json, sys, time
import torch
import xvr
xray, ct = sys.argv[1:]
xray, ct, start = xvr.read_xray(xray), xvr.read_volume(ct), xvr.from_dicom()
for _ in range(2):
    began, cpu = time.perf_counter(), time.process_time()
    xvr.register(xray, ct, start)
    print(json.dumps([time.perf_counter() - began, time.process_time() - cpu]))
"""


@contextmanager
def busy(processes: int):
    "Processes of pure arithmetic beside"
    beside = [subprocess.Popen([sys.executable, "-c", ARITHMETIC]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in beside:
            process.kill()


def whole(words: list[str], checkout: Path, folder: Path) -> dict:
    "Run a command of a checkout, and what it took"
    environment = os.environ | dict(PYTHONPATH=str(checkout), XVR_CACHE=str(folder / "cache"))
    started = ["-c", NOTEBOOK] if words[0] == "notebook" else ["-c", "from xvr.cli import main; main()", words[0]]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        program = [sys.executable, *started, *words[1:]]
        process = subprocess.Popen(program, env=environment, cwd=folder, stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        out.seek(0)
        printed = out.read().decode()
    if status:
        raise SystemExit(f"{' '.join(words)} failed in {checkout}:\n{printed}")
    row = dict(wall_s=seconds, cpu_s=used.ru_utime + used.ru_stime, memory_gib=used.ru_maxrss / 2**20)
    row["compiled"] = printed.count("compiling a CPU kernel")
    if words[0] == "notebook":
        row |= dict(zip(("registration_s", "registration_cpu_s"), json.loads(printed.splitlines()[-1])))
    for result in folder.glob("o/*/result.json"):
        row["registration_s"] = json.loads(result.read_text())["seconds"]
    return row


def whole_commands(ct: Path, folder: Path) -> dict[str, list[str]]:
    "What is typed, but for the program's name"
    xray, out = str(folder / "sim" / "xray_000.dcm"), ["-o", str(folder / "o")]
    pose = "--rot 8 5 1 --xyz 5 -775 5".split()
    return {
        "register dicom": ["register", "dicom", xray, "-v", str(ct), *out],
        "register fixed": ["register", "fixed", xray, "-v", str(ct), *out, *pose],
        "register search": ["register", "search", xray, "-v", str(ct), *out],
        "simulate": f"simulate -v {ct} {' '.join(out)} --height 768 --delx 0.5 --sdd 1020 {' '.join(pose)}".split(),
        "info": ["info", str(ct), xray],
        "notebook": ["notebook", xray, str(ct)],
    }


def time_whole(ct: Path, times: int, other: Path | None, beside: int, chosen: list[str]) -> list[dict]:
    "A row for each command and checkout, timed in turn"
    checkouts, rows = {"this": HERE.parent} | ({"against": other.resolve()} if other else {}), []
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch, name) for name in checkouts}
        for folder in folders.values():
            folder.mkdir()
        for folder in folders.values():
            words = f"simulate -v {ct} -o {folder}/sim --height 768 --delx 0.5 --sdd 1020 --rot 5 3 0 --xyz 5 -780 5"
            whole(words.split(), HERE.parent, folder)
        for what in whole_commands(ct, folders["this"]):
            if chosen and what not in chosen:
                continue
            taken = {name: [] for name in checkouts}
            for n in range(times + 1):
                for name, checkout in checkouts.items():
                    shutil.rmtree(folders[name] / "o", ignore_errors=True)
                    with busy(beside if n else 0):
                        row = whole(whole_commands(ct, folders[name])[what], checkout, folders[name])
                    taken[name] += [row] if n else []
            rows += [dict(typed=what, checkout=name, **medians(several)) for name, several in taken.items()]
            for row in rows[-len(checkouts) :]:
                print(*(f"{k} {v}" for k, v in row.items()), sep="  ", flush=True)
    return rows


def medians(rows: list[dict]) -> dict:
    return {k: round(statistics.median(row[k] for row in rows), 3) for k in rows[0]}


def time_commands(asked):
    "Time whole commands, and write them as a table"
    beside = 2 if asked.busy else 0
    rows = time_whole(Path(asked.ct).resolve(), asked.whole, asked.against, beside, asked.only)
    fields = list(dict.fromkeys(k for row in rows for k in row))
    about = dict(times=asked.whole, beside=beside, ct=Path(asked.ct).name, cores=os.cpu_count())
    about |= dict(date=datetime.date.today(), commit=commit_of(HERE))
    about["other"] = commit_of(asked.against) if asked.against else ""
    with open(HERE / f"command_line_{'busy' if asked.busy else 'whole'}.csv", "w", newline="") as file:
        table = csv.DictWriter(file, [*fields, *about])
        table.writeheader()
        table.writerows(row | about for row in rows)


def run(command: str):
    print("$", command, flush=True)
    subprocess.run([str(Path(sys.executable).with_name("xvr")), *shlex.split(command)[1:]], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", nargs="?")
    parser.add_argument("--startup", type=int, metavar="TIMES")
    parser.add_argument("--whole", type=int, metavar="TIMES")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--only", nargs="*", help="of --whole: such as 'register dicom'", default=[])
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
    if asked.whole:
        return time_commands(asked)

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
