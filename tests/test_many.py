"X-rays that threads share, and processes: under torchrun, and in an array of Slurm's jobs"

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from children import COMMAND, started

from xvr.batch import Files, register_files
from xvr.conventions import XvrError, set_threads
from xvr.initialisers import Starts, from_dicom, search
from xvr.optimisers import Adam


@pytest.fixture(scope="module")
def many(case, tmp_path_factory):
    "Six X-rays, of which the third is none, with the results that one thread leaves of the others"
    folder = tmp_path_factory.mktemp("many")
    xrays = [folder / "xrays" / f"{n}.dcm" for n in range(6)]
    xrays[0].parent.mkdir()
    for n, path in enumerate(xrays):
        shutil.copy(case.xrays[n % 2], path)
    xrays[2].write_text("no X-ray")
    with threads(1), pytest.raises(XvrError, match=r"1 of 6 X-rays got no result: 2.dcm: "):
        register_files([folder / "xrays"], case.ct, from_dicom(), folder / "one", files=Files(verbose=0))
    return folder


class threads:
    def __init__(self, n):
        self.n = n

    def __enter__(self):
        set_threads(self.n)

    def __exit__(self, *_):
        set_threads()


def results(folder):
    found = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("[!.]*/result.json")}
    return {name: {k: v for k, v in about.items() if k != "seconds"} for name, about in found.items()}


def command(case, many, out, *more):
    return [*COMMAND, "register", "dicom", many / "xrays", "-v", case.ct, "-o", out, "--threads", "1", *more]


def test_threads_leave_what_one_leaves(case, many, tmp_path, capsys):
    with threads(3), pytest.raises(XvrError, match=r"^1 of 6 X-rays got no result: 2.dcm: [^:]*$"):
        register_files([many / "xrays"], case.ct, from_dicom(), tmp_path, files=Files(verbose=2))
    assert results(tmp_path) == results(many / "one") and len(results(tmp_path)) == 5
    assert not list(tmp_path.glob(".*"))
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.split()[0].endswith(".dcm")]
    assert names == [f"{n}.dcm" for n in (0, 1, 3, 4, 5)]
    table = [pd.read_csv(folder / "summary.csv").drop(columns="seconds") for folder in (tmp_path, many / "one")]
    assert table[0].equals(table[1]) and list(table[0].xray) == names


@pytest.mark.parametrize(
    "settings",
    [dict(optimizer=Adam(max_n_itrs=5)), dict(starts=Starts(starts=3)), dict(files=Files(verbose=0, saveimg=True))],
    ids=["adam", "starts", "pictures"],
)
def test_threads_share_every_way_of_registering(case, tmp_path, settings):
    made = []
    for n in (1, 2):
        with threads(n):
            options = dict(files=Files(verbose=0)) | settings
            register_files(case.xrays, case.ct, from_dicom(), tmp_path / str(n), **options)
        made.append(results(tmp_path / str(n)))
    assert made[0] == made[1] and len(made[0]) == 2
    for path in (tmp_path / "1").glob("*/*.png"):
        assert path.read_bytes() == (tmp_path / "2" / path.parent.name / path.name).read_bytes()


def test_threads_share_a_search(case, tmp_path):
    for n in (1, 2):
        with threads(n):
            start = search("frontal", n_poses=16, within=5)
            register_files(case.xrays, case.ct, start, tmp_path / str(n), files=Files(verbose=0))
    assert results(tmp_path / "1") == results(tmp_path / "2")


def test_an_interrupt_ends_all_and_leaves_what_is_done(case, many, tmp_path):
    log = (tmp_path / "log").open("w")
    line = [word if word != "1" else "2" for word in command(case, many, tmp_path / "out")]
    process = started(subprocess.Popen(line, stdout=log, stderr=log))
    while process.poll() is None and not results(tmp_path / "out"):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    code, text = process.wait(60), (tmp_path / "log").read_text()
    if "got no result" not in text:  # it was done before it heard
        assert code == 130 and text.strip().endswith("xvr: interrupted") and "Traceback" not in text
    there = results(tmp_path / "out")
    assert there and there.items() <= results(many / "one").items() and not list((tmp_path / "out").glob(".*"))


def test_an_array_of_which_one_is_killed_is_mended(case, many, tmp_path):
    job = lambda n: os.environ | {f"SLURM_ARRAY_TASK_{k}": str(v) for k, v in dict(ID=n, MIN=4, COUNT=2).items()}
    log = (tmp_path / "log").open("w")
    start = lambda n: started(
        subprocess.Popen(command(case, many, tmp_path / "out"), env=job(n), stdout=log, stderr=log)
    )
    odd, even = start(5), start(4)  # each writes beside the other's results
    while odd.poll() is None and not results(tmp_path / "out").keys() & set("135"):
        time.sleep(0.01)
    odd.kill()
    odd.wait()
    assert even.wait() == 1 and "1 of 3 X-rays got no result: 2.dcm" in (tmp_path / "log").read_text()
    assert results(tmp_path / "out").keys() >= set("04")
    with pytest.raises(XvrError, match="2.dcm holds no image"):
        register_files([many / "xrays"], case.ct, from_dicom(), tmp_path / "out", files=Files(verbose=0, resume=True))
    assert results(tmp_path / "out") == results(many / "one")
    assert len(pd.read_csv(tmp_path / "out" / "summary.csv")) == 5


def test_under_torchrun_who_fails_waits_for_the_others(case, many, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    line = [*torchrun, *command(case, many, tmp_path / "out")]
    process = started(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and "1 of 3 X-rays got no result: 2.dcm" in said
    assert "this process registers its share, 3 of 6 X-rays" in said
    assert results(tmp_path / "out") == results(many / "one") and len(list((tmp_path / "out").glob("config*"))) == 1
