#!/usr/bin/env python3
"""Many X-rays on one CT: how many a minute, and whether processes that share them, or are killed, leave the same results.

    python benchmarks/many.py                            # 100 X-rays on 1 and 2 cores, in turn, twice
    python benchmarks/many.py --peer VENV/bin/python     # and five of them by the existing xvr 0.1.0, one command each
    python benchmarks/many.py check                      # torchrun, an array of Slurm's and srun, two of four killed

The X-rays are simulated from the packaged chest CT, 768 x 768 pixels, with angles and distances in their tags that are
3 degrees and 15 mm off, from which `xvr register dicom` starts. A whole command is timed, from the shell to the last file.
`per minute` is X-rays over its wall time, `to one core` its ratio to that of one core in the same round, and the row of the
existing package (in the environment of `existing.py`, `register fixed --device cpu`, its defaults) has the same starts;
`ours to it` is how many times more X-rays a minute ours registers. many.csv has a row for each command.

`check` compares 40 results, every number of them but the seconds, with those of one process. Linux and macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import existing

HERE = Path(__file__).resolve().parent
XVR = [sys.executable, "-c", "from xvr.cli import main; main()"]
TAGS_OFF = 3.0, 15.0  # Standard deviations, degrees and mm
PROCESSES, KILLED = 4, 2


def make_xrays(ct: Path, folder: Path, count: int, rows: int) -> list[Path]:
    "X-rays of one CT, from all directions that existing.py takes"
    from xvr.simulation import CArm, Placement, TagErrors, simulate

    carm = CArm(height=rows, delx=400 / rows, orientation="AP", reverse_x_axis=True)
    with contextlib.redirect_stdout(io.StringIO()):
        placement = Placement(**existing.RANGES, count=count)
        return simulate(ct, folder, placement=placement, carm=carm, tag_errors=TagErrors(*TAGS_OFF), resume=True)


def command_of(ct: Path, xrays: Path, out: Path, *more: str) -> list:
    return [*XVR, "register", "dicom", xrays, "-v", ct, "-o", out, "--orientation", "AP", *more]


def provenance() -> dict:
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=HERE).stdout.strip()
    versions = f"torch {version('torch')}, numba {version('numba')}"
    return dict(machine_cores=os.cpu_count(), versions=versions, commit=commit, date=str(datetime.date.today()))


# How many a minute


def measured(name: str, cores: int, count: int, seconds: dict) -> dict:
    row = dict(method=name, cores=cores, xrays=count, per_minute=60 * count / seconds["wall_s"], **seconds)
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


def run_ours(ct: Path, xrays: Path, work: Path, cores: int, count: int) -> dict:
    shutil.rmtree(work / "ours", ignore_errors=True)
    command = command_of(ct, xrays, work / "ours", "--threads", str(cores))
    row = measured("ours", cores, count, existing.timed(command, cores, work / "log"))
    assert len([*(work / "ours").glob("*/result.json")]) == count, "a result is missing"
    return row | dict(load=os.getloadavg()[0])


def run_peer(peer: Path, ct: Path, files: list[Path], work: Path, cores: int) -> dict:
    "The existing package on some of the X-rays, from the poses in their tags"
    from xvr.pose import Pose
    from xvr.volume import read_volume
    from xvr.xray import Reading, read_xray

    volume, total = read_volume(ct), dict(wall_s=0.0, cpu_s=0.0, memory_mib=0.0)
    shutil.rmtree(work / "theirs", ignore_errors=True)
    (work / "theirs").mkdir()
    for file in files:
        pose = read_xray(file, Reading(orientation="AP"), centre=volume.centre.tolist()).pose
        case = dict(name=file.stem, path=str(ct), start=Pose(pose.matrix.double()), volume=volume)
        command = existing.command_of("existing", case, file, work / "theirs", peer.parent.parent)
        seconds = existing.timed(command, cores, work / "log")
        total = {k: max(v, seconds[k]) if k == "memory_mib" else v + seconds[k] for k, v in total.items()}
    return measured("existing", cores, len(files), total) | dict(load=os.getloadavg()[0])


def measure(asked):
    work, ct = asked.outpath.resolve(), asked.ct.resolve()
    files = make_xrays(ct, work / "xrays", asked.count, asked.rows)
    make_xrays(ct, work / "warm-up", 1, asked.rows)
    run_ours(ct, work / "warm-up", work, 1, 1)
    rows, most = [], max(asked.cores)
    for n in range(asked.rounds):
        row = [run_ours(ct, work / "xrays", work, cores, len(files)) for cores in asked.cores]
        rows += [r | dict(round=n, to_one_core=round(r["per_minute"] / row[0]["per_minute"], 3)) for r in row]
    if asked.peer:
        theirs = run_peer(asked.peer.absolute(), ct, files[:: max(1, len(files) // 5)][:5], work, most)
        rows.append(theirs | dict(round=asked.rounds, to_one_core=""))
    for row in rows:
        ratio = row["per_minute"] / rows[-1]["per_minute"] if asked.peer else ""
        row |= dict(ours_to_it=round(ratio, 2) if ratio else "") | provenance()
        print("{method:9s} {cores} cores: {per_minute:7.1f} a minute, {to_one_core} of one core".format(**row))
    existing.write_rows(rows, asked.table)


# Whether processes that share the X-rays leave what one leaves


def results(folder: Path) -> dict:
    "All that result.json states, without the seconds"
    found = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("xray_*/result.json")}
    return {name: {k: v for k, v in about.items() if k != "seconds"} for name, about in found.items()}


def start(way: str, command: list, log) -> list[subprocess.Popen]:
    "Four processes that share the X-rays; under torchrun the one that starts them"
    begin = lambda line, **env: subprocess.Popen(
        list(map(str, line)), env=os.environ | dict(PYTHONPATH=str(HERE.parent), **env), stdout=log, stderr=log
    )
    if way == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
        return [begin([*torchrun, f"--nproc_per_node={PROCESSES}", *command])]
    if way == "srun":
        return [begin(command, SLURM_PROCID=str(n), SLURM_NTASKS=str(PROCESSES)) for n in range(PROCESSES)]
    array = lambda n: {f"SLURM_ARRAY_TASK_{k}": str(v) for k, v in dict(ID=n + 1, MIN=1, COUNT=PROCESSES).items()}
    return [begin(command, **array(n)) for n in range(PROCESSES)]


def workers(processes: list[subprocess.Popen]) -> list:
    import psutil

    found = [psutil.Process(process.pid) for process in processes]
    return found if len(found) > 1 else found[0].children()


def check_way(way: str, command: list, out: Path, count: int) -> dict:
    "Kill two of four when a quarter is done, then resume: how many results there were, and are"
    with tempfile.TemporaryFile() as log:
        processes = start(way, command, log)
        while len(results(out)) < count // 4 and any(p.poll() is None for p in processes):
            time.sleep(0.05)
        for worker in workers(processes)[:KILLED]:
            worker.send_signal(signal.SIGKILL)
        [process.wait() for process in processes]
        there = len(results(out))
        codes = [process.wait() for process in start(way, [*command, "--resume"], log)]
        log.seek(0)
        assert codes == [0] * len(codes), log.read().decode()[-3000:]
    return dict(way=way, processes=PROCESSES, killed=KILLED, xrays=count, before_resume=there)


def check(asked):
    work, ct, rows = asked.outpath.resolve(), asked.ct.resolve(), []
    make_xrays(ct, work / "small", asked.count, asked.rows)
    for way in ("one", "torchrun", "array", "srun"):
        shutil.rmtree(out := work / way, ignore_errors=True)
        command = command_of(ct, work / "small", out, "--threads", "1")
        if way == "one":
            existing.timed(command, 1, work / "log")
            expected = results(out)
            assert len(expected) == asked.count
            continue
        row = check_way(way, command, out, asked.count)
        lines = len((out / "summary.csv").read_text().splitlines()) - 1
        row |= dict(after=len(results(out)), equal=results(out) == expected, summary_lines=lines)
        row |= dict(left_behind=len([*out.glob(".*")])) | provenance()
        rows.append(row)
        print("{way:9s} {before_resume} results, then {after}; equal: {equal}; summary: {summary_lines}".format(**row))
    existing.write_rows(rows, asked.table)


def main():
    from xvr.volume import chest_path

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=["rate", "check"], default="rate")
    parser.add_argument("--ct", type=Path, default=chest_path(), help="the packaged chest CT if not given")
    parser.add_argument("--count", type=int, help="X-rays; 100, or 40 for check")
    parser.add_argument("--rows", type=int, help="of each X-ray; 768, or 128 for check")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2], help="the first is one core")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peer", type=Path, help="the Python of an environment with the existing package")
    parser.add_argument("--outpath", type=Path, default=Path("many-run"), help="X-rays and results")
    parser.add_argument("--table", type=Path, help="benchmarks/many.csv, or many_check.csv, if not given")
    asked = parser.parse_args()
    checks = asked.mode == "check"
    asked.count, asked.rows = asked.count or (40 if checks else 100), asked.rows or (128 if checks else 768)
    asked.table = asked.table or HERE / ("many_check.csv" if checks else "many.csv")
    asked.outpath.mkdir(parents=True, exist_ok=True)
    (check if checks else measure)(asked)


if __name__ == "__main__":
    main()
