"Chromium without a window, driven through its DevTools protocol over a pipe: no package is needed"

import json
import os
import shutil
import sys
from pathlib import Path
from subprocess import DEVNULL, Popen

from children import started

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None) if sys.platform != "win32" else None
WHY_NOT = f"there is no browser: none of {', '.join(NAMES)} is installed, or this is Windows"
# It reads commands from file 3 and writes to file 4
AS_3_AND_4 = """
import os, sys
ends = [os.dup(os.dup(os.dup(int(end)))) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    "One page in a browser"

    def __init__(self, profile: Path, width: int = 1280, height: int = 900):
        (read, self.out), (self.into, write) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        flags += [f"--window-size={width},{height}", "--remote-debugging-pipe"]
        line = [sys.executable, "-c", AS_3_AND_4, str(read), str(write), CHROMIUM, *flags]
        self.process = started(Popen(line, pass_fds=(read, write), stdout=DEVNULL, stderr=DEVNULL), 120)
        os.close(read)
        os.close(write)
        self.buffer, self.number, self.session, self.events = b"", 0, None, []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def message(self) -> dict:
        while b"\0" not in self.buffer:
            part = os.read(self.into, 1 << 20)
            assert part, "the browser has ended"
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def send(self, method: str, **params) -> dict:
        "The answer to a command; events on the way are kept"
        self.number += 1
        request = dict(id=self.number, method=method, params=params)
        request |= dict(sessionId=self.session) if self.session else {}
        os.write(self.out, json.dumps(request).encode() + b"\0")
        while (found := self.message()).get("id") != self.number:
            self.events.append(found)
        assert "error" not in found, found
        return found["result"]

    def open(self, path: Path):
        self.events = []
        self.send("Page.navigate", url=Path(path).resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())

    def run(self, script: str):
        "The value of a JavaScript expression"
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def mouse(self, kind: str, x: float, y: float):
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def press(self, key: str):
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "Tab": 9, "Enter": 13}
        text = dict(text=key) if len(key) == 1 else dict(text="\r") if key == "Enter" else {}
        code = codes.get(key, ord(key[0].upper()))
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def requests(self) -> list[str]:
        "What the page has asked for since it was opened"
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        "Errors of the page's script, and what its policy forbade; not that the browser draws without a GPU"
        told = [e["params"] for e in self.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
        return [json.dumps(params) for params in told if params.get("entry", {}).get("source") != "rendering"]

    def close(self):
        for end in (self.out, self.into):
            os.close(end)
        self.process.terminate()
        self.process.wait()
