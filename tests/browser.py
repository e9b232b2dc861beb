"""Browsers without a window, driven through a pipe or a socket: no package is needed

Chromium speaks its DevTools protocol, Firefox speaks Marionette. Both have the same methods.
"""

import base64
import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, Popen

from children import started

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None) if sys.platform != "win32" else None
WHY_NOT = f"there is no browser: none of {', '.join(NAMES)} is installed, or this is Windows"
FIREFOX = next(filter(None, map(shutil.which, ("firefox", "firefox-esr"))), None)
# It reads commands from file 3 and writes to file 4
AS_3_AND_4 = """
import os, sys
ends = [os.dup(os.dup(os.dup(int(end)))) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
BITS = dict(alt=1, ctrl=2, shift=8)  # Of modifiers, in Chromium
CODES = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Enter": 13}  # Of keys, there
BUTTONS = ("left", "middle", "right")
# WebDriver's characters for keys
SPECIAL = {"ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015", "Tab": "\ue004"}
SPECIAL |= {"Enter": "\ue007", "shift": "\ue008", "ctrl": "\ue009", "alt": "\ue00a"}


def address(page: Path | str) -> str:
    "Of a file, or of a page that is served"
    return page if isinstance(page, str) else page.resolve().as_uri()


class Waiting:
    "What both browsers do in the same way"

    def until(self, script: str, seconds: float = 60):
        "Wait until an expression of the page is true, and give its value"
        end = time.perf_counter() + seconds
        while not (value := self.run(script)):
            assert time.perf_counter() < end, f"{script} is still {value!r} after {seconds} s"
            time.sleep(0.02)
        return value


class Browser(Waiting):
    "One page in Chromium"

    def __init__(self, profile: Path, width: int = 1280, height: int = 900):
        (read, self.out), (self.into, write) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        flags += [f"--window-size={width},{height}", "--remote-debugging-pipe", "--disable-background-networking"]
        line = [sys.executable, "-c", AS_3_AND_4, str(read), str(write), CHROMIUM, *flags]
        self.process = started(Popen(line, pass_fds=(read, write), stdout=DEVNULL, stderr=DEVNULL), 600)
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

    def open(self, page: Path | str):
        self.events = []
        self.send("Page.navigate", url=address(page))
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())

    def run(self, script: str):
        "The value of a JavaScript expression"
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, which: int = 0, held: tuple[str, ...] = (), **more):
        how = dict(button=BUTTONS[which], buttons=(1, 4, 2)[which], clickCount=1) | more
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, modifiers=sum(BITS[k] for k in held), **how)

    def drag(self, points: list[tuple[float, float]], button: int = 0, held: tuple[str, ...] = (), pause: float = 0.0):
        "Press at the first point, move through the others with `pause` seconds before each, and release"
        self.mouse("mousePressed", *points[0], button, held)
        for point in points[1:]:
            time.sleep(pause)
            self.mouse("mouseMoved", *point, button, held)
        self.mouse("mouseReleased", *points[-1], button, held)

    def wheel(self, x: float, y: float, delta: float, held: tuple[str, ...] = ()):
        self.mouse("mouseWheel", x, y, held=held, button="none", buttons=0, deltaX=0, deltaY=delta)

    def press(self, key: str, *held: str):
        "A key, with others that are held"
        text = dict(text=key) if len(key) == 1 else dict(text="\r") if key == "Enter" else {}
        code = CODES.get(key, ord(key[0].upper()))
        how = dict(key=key, windowsVirtualKeyCode=code, modifiers=sum(BITS[k] for k in held))
        self.send("Input.dispatchKeyEvent", type="keyDown", **how, **({} if {"ctrl", "alt"} & {*held} else text))
        self.send("Input.dispatchKeyEvent", type="keyUp", **how)

    def touch(self, kind: str, *points: tuple[float, float]):
        "touchStart, touchMove or touchEnd, of all fingers that lie on the screen then"
        self.send("Input.dispatchTouchEvent", type=kind, touchPoints=[dict(x=x, y=y) for x, y in points])

    def picture(self) -> bytes:
        "The page, PNG"
        return base64.b64decode(self.send("Page.captureScreenshot")["data"])

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


class Firefox(Waiting):
    "One page in Firefox"

    def __init__(self, profile: Path, width: int = 1280, height: int = 900):
        (profile / "user.js").write_text('user_pref("marionette.port", 0);\n')
        line = [FIREFOX, "--headless", "--marionette", "--no-remote", "--profile", str(profile)]
        line += ["--width", str(width), "--height", str(height), "about:blank"]
        self.process, self.number = started(Popen(line, stdout=DEVNULL, stderr=DEVNULL), 600), 0
        port, end = profile / "MarionetteActivePort", time.perf_counter() + 60
        while not (port.exists() and port.read_text()):
            assert time.perf_counter() < end and self.process.poll() is None, "Firefox does not start"
            time.sleep(0.05)
        self.socket = socket.create_connection(("127.0.0.1", int(port.read_text())), timeout=300)
        self.file = self.socket.makefile("rb")
        self.message()  # it says who it is
        self.send("WebDriver:NewSession", capabilities={})

    def message(self):
        size = b""
        while (digit := self.file.read(1)) != b":":
            assert digit, "the browser has ended"
            size += digit
        return json.loads(self.file.read(int(size)))

    def send(self, method: str, **params):
        "The answer to a command"
        self.number += 1
        text = json.dumps([0, self.number, method, params]).encode()
        self.socket.sendall(f"{len(text)}:".encode() + text)
        _, number, error, found = self.message()
        assert number == self.number and error is None, error
        return found

    def open(self, page: Path | str):
        self.send("WebDriver:Navigate", url=address(page))

    def run(self, script: str):
        "The value of a JavaScript expression"
        return self.send("WebDriver:ExecuteScript", script=f"return ({script})", args=[])["value"]

    def act(self, *sources: dict):
        "Do what each source of input does, one step after the other"
        self.send("WebDriver:PerformActions", actions=list(sources))

    def holding(self, held: tuple[str, ...], steps: list[dict], kind: str, **more):
        "Actions of a pointer or a wheel, while keys are held"
        keys = [dict(type=way, value=SPECIAL[k]) for way in ("keyDown", "keyUp") for k in held]
        pause = [dict(type="pause")]
        presses = keys[: len(held)] + pause * len(steps) + keys[len(held) :]
        self.act(
            dict(type="key", id="keys", actions=presses),
            dict(type=kind, id=kind, actions=pause * len(held) + steps + pause * len(held), **more),
        )

    def drag(self, points: list[tuple[float, float]], button: int = 0, held: tuple[str, ...] = (), pause: float = 0.0):
        "Press at the first point, move through the others with `pause` seconds before each, and release"
        move = lambda point, ms: dict(type="pointerMove", x=round(point[0]), y=round(point[1]), duration=ms)
        waits = [step for p in points[1:] for step in (dict(type="pause", duration=round(1000 * pause)), move(p, 0))]
        press, release = (dict(type=kind, button=button) for kind in ("pointerDown", "pointerUp"))
        steps = [move(points[0], 0), press, *(waits if pause else [move(p, 0) for p in points[1:]]), release]
        self.holding(held, steps, "pointer", parameters=dict(pointerType="mouse"))

    def wheel(self, x: float, y: float, delta: float, held: tuple[str, ...] = ()):
        scroll = dict(type="scroll", x=round(x), y=round(y), deltaX=0, deltaY=round(delta), duration=0)
        self.holding(held, [scroll], "wheel")

    def press(self, key: str, *held: str):
        "A key, with others that are held"
        keys = [*(SPECIAL[k] for k in held), SPECIAL.get(key, key)]
        down, up = (
            [dict(type=way, value=k) for k in order] for way, order in (("keyDown", keys), ("keyUp", keys[::-1]))
        )
        self.act(dict(type="key", id="keys", actions=[*down, *up]))

    def picture(self) -> bytes:
        "The page, PNG"
        return base64.b64decode(self.send("WebDriver:TakeScreenshot", full=False)["value"])

    def close(self):
        self.send("Marionette:Quit", flags=["eForceQuit"])
        self.socket.close()
        self.process.wait()
