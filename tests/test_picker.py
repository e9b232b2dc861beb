"The pose picker's server and command, and cameras that a lesson does not need. The lessons are in nbs/40_picker.ipynb."

import http.client
import importlib.resources
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from children import COMMAND, started
from click.testing import CliRunner

from xvr import cli
from xvr.detector import Detector, project
from xvr.picker import _ACTIONS, PosePicker, _picker_widgets, _Server, pick
from xvr.pose import Pose
from xvr.renderer import render
from xvr.volume import read_volume
from xvr.xray import read_xray


@pytest.fixture(scope="module")
def ct(case):
    return read_volume(case.ct)


@contextmanager
def served(picker, path):
    "A server at work, and how to ask it: status, and the states that came back"
    server = _Server(picker, path)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def ask(said, token=server.token, host="localhost", method="POST", name=""):
        connection = http.client.HTTPConnection(*server.server_address, timeout=60)
        connection.putrequest(method, f"/{token}/{name}", skip_host=True)
        connection.putheader("Host", host)
        body = json.dumps(said).encode()
        connection.putheader("Content-Length", len(body))
        connection.endheaders(body)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()

    try:
        yield ask
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def last(reply):
    assert reply[0] == 200
    return json.loads(reply[1].splitlines()[-1])


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("orientation", ["AP", "PA"])
def test_a_drag_moves_the_isocentre_with_the_pointer(ct, orientation, mirrored, parallel):
    detector = Detector(
        1020,
        100,
        3.0,
        width=60,
        dely=5.0,
        x0=30,
        y0=-20,
        orientation=orientation,
        reverse_x_axis=mirrored,
        parallel=parallel,
    )
    picker, draw = PosePicker(ct, detector=detector, rows=50), torch.Generator().manual_seed(0)
    for _ in range(20):
        rot, xyz, by = ((torch.rand(3, generator=draw) - 0.5) * size for size in (300, 200, 40))
        picker.set_pose(Pose.from_euler(rot, xyz + torch.tensor([0, 700.0 if orientation == "AP" else -700.0, 0])))
        where = lambda: project(picker.level.detector, picker.pose, torch.zeros(1, 1, 3))[0, 0]
        before = where()
        picker.shift(by[0].item(), by[1].item())
        assert torch.allclose(where() - before, by[:2], atol=2e-3)
        still = where()
        picker.turn(*by.tolist())
        assert torch.allclose(where(), still, atol=2e-3)  # the isocentre stays where it is


def test_whatever_is_done_the_picture_is_what_render_makes(case, ct):
    picker = PosePicker(ct, read_xray(case.xrays[0]))
    for name in _ACTIONS:
        if name != "save":
            _ACTIONS[name](picker, None, lambda note: None)
        picker.turn(3, -2, 1)
        assert torch.equal(picker.image(), render(picker.level.volume, picker.level.detector, picker.pose))


def test_widgets_and_page_do_the_same(case, ct, tmp_path):
    page, notebook = (PosePicker(ct, read_xray(case.xrays[0])) for _ in range(2))
    named = {}
    collect = lambda w: (
        named.setdefault(getattr(w, "description", ""), w),
        [collect(c) for c in getattr(w, "children", ())],
    )
    collect(_picker_widgets(notebook, tmp_path / "a.json"))
    with served(page, tmp_path / "b.json") as ask:
        for key, label, value in (("r1", "primary angle (°)", 20.5), ("tz", "up (mm)", -7.25)):
            named[label].value = value
            last(ask({"move": {key: value}}))
        for name in ("antipode", "left lateral", "undo", "save"):
            named[name].click()
            last(ask({"do": [name]}))
        named["look"].value, named["X-ray, CT"].value = "edges", 0.8
        state = last(ask({"look": "edges", "alpha": 0.8}))
    assert page.numbers == notebook.numbers and page.jpeg() == notebook.jpeg() and state["numbers"] == page.numbers
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_it_begins_with_what_the_file_says(case, ct, capsys):
    full, angles, bare = (read_xray(case.xrays[0]) for _ in range(3))
    angles.pose = bare.pose = bare.angles = None
    begun = [pick(ct, xray).numbers for xray in (full, angles, bare)]
    assert [n["r1"] for n in begun] == pytest.approx([10, 10, 0], abs=1e-3) and [
        n["ty"] for n in begun
    ] == pytest.approx([-800, -816, -816], abs=1e-3)


def test_pixels_that_do_not_count_are_black_and_do_not_dazzle(case, ct):
    xray, ones = read_xray(case.xrays[0]), torch.ones(1, 1, 64, 64)
    xray.weight = ones.clone()
    xray.weight[..., :16] = 0
    plain, xray.image = PosePicker(ct, xray).grey, xray.image.clone()
    xray.image[..., :16] = 1e6
    dazzled = PosePicker(ct, xray).grey
    assert (dazzled == plain).all() and (dazzled[:, :16] == 0).all() and dazzled[:, 16:].max() == 1


def test_only_this_machine_with_the_token(ct, tmp_path):
    picker = PosePicker(ct, detector=Detector(1020, 32, 10))
    before = picker.numbers
    with served(picker, tmp_path / "pose.json") as ask:
        for method in ("GET", "POST"):
            for wrong in (
                dict(token="x" * 22),
                dict(token=""),
                dict(host="elsewhere.example"),
                dict(host="127.0.0.1.elsewhere.example:80"),
                dict(host=""),
            ):
                assert ask({"move": {"r1": 50}, "do": ["save"]}, method=method, **wrong) == (403, "")
        assert picker.numbers == before and not (tmp_path / "pose.json").exists()
        for name in ("", "picker.css", "picker.js"):
            status, page = ask({}, method="GET", host="127.0.0.1:9", name=name)
            without_comments = re.sub(r"^(.* )?// .*$", "", page, flags=re.M)
            assert status == 200 and "://" not in page and "//" not in without_comments  # nothing from elsewhere
            assert ask({}, method="GET", token="x" * 22, name=name) == (403, "")
            assert ask({}, method="GET", host="elsewhere.example", name=name) == (403, "")
        for name in ("picker.py", "../picker.py", "..", "picker.js/", "%2e%2e/picker.py"):
            assert ask({}, method="GET", name=name) == (403, "")
        for name in ("picker.css", "picker.js"):
            assert ask({"move": {"r1": 50}}, name=name) == (403, "")
        assert picker.numbers == before


NODE = shutil.which("node")
FAKE_BROWSER = r"""
const fs = require("fs"), vm = require("vm"), [file, given, answer] = process.argv.slice(1)
const element = (tag) => ({
  tag, children: [], style: { setProperty() {} }, clientWidth: 100, clientHeight: 50, naturalWidth: 200, naturalHeight: 100,
  appendChild(child) { this.children.push(child); return child },
  setAttribute() {}, removeAttribute() {}, addEventListener(name, act) { this["on" + name] = act },
  decode: async () => {}, focus() {}, setPointerCapture() {},
})
const elements = { setup: { textContent: given } }
globalThis.document = {
  getElementById: (id) => (elements[id] ??= element(id)), createElement: element, documentElement: element("html"),
}
globalThis.location = { pathname: "/token/" }
const requests = []
globalThis.fetch = async (path, { body }) => {
  requests.push(JSON.parse(body))
  await new Promise((done) => setTimeout(done, 5))
  const parts = [answer + "\n" + answer.slice(0, 9), answer.slice(9) + "\n"]
  const read = async () => (parts.length ? { done: false, value: parts.shift() } : { done: true })
  return { ok: true, body: { pipeThrough: () => ({ getReader: () => ({ read }) }) } }
}
globalThis.TextDecoderStream = class {}
vm.runInThisContext(fs.readFileSync(file, "utf8"))
const run = (text) => vm.runInThisContext(text), rest = () => new Promise((done) => setTimeout(done, 100))
const event = (more) => ({ preventDefault() {}, pointerId: 1, clientX: 0, clientY: 0, deltaX: 0, ...more })
;(async () => {
  await rest() // the first request has its answer
  const view = elements.view, panel = elements.panel, { r1, tx } = run("inputs")
  for (const value of [1, 2, 3]) { r1.slider.value = value; r1.slider.oninput() }
  tx.number.value = "5"; tx.number.onchange()
  view.onpointerdown(event({})); view.onpointermove(event({ clientX: 3, clientY: -2 })); view.onpointerup(event({}))
  view.onkeydown(event({ key: "ArrowLeft" })); view.onkeydown(event({ key: "." })); view.onwheel(event({ deltaY: 1 }))
  const button = panel.children.flatMap((bar) => bar.children).find((child) => child.id == "left_lateral")
  button.onclick()
  await rest()
  const shown = [elements.similarity.textContent, elements.note.textContent, tx.number.value, tx.slider.max]
  panel.children.flatMap((bar) => bar.children).find((child) => child.id == "done").onclick()
  await rest()
  button.onclick() // nobody listens any more
  await rest()
  console.log(JSON.stringify({ requests, shown, end: elements.note.textContent }))
})()
"""


def test_the_page_is_in_the_package():
    for name in ("picker.html", "picker.css", "picker.js"):
        assert importlib.resources.files("xvr").joinpath(name).is_file()


@pytest.mark.skipif(not NODE, reason="node is not installed")
def test_the_script_is_javascript():
    script = importlib.resources.files("xvr").joinpath("picker.js")
    done = subprocess.run([NODE, "--check", str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not NODE, reason="node is not installed")
def test_the_script_merges_what_is_done_while_an_answer_is_on_its_way(ct, case, tmp_path):
    picker = PosePicker(ct, read_xray(case.xrays[0]))
    with served(picker, tmp_path / "pose.json") as ask:
        page = ask({}, method="GET")[1]
        state = last(ask({"move": {"tx": 4.126}}))
    setup = re.search(r'id="setup">(.+)</script>', page)[1]
    script = importlib.resources.files("xvr").joinpath("picker.js")
    words = [NODE, "-e", FAKE_BROWSER, str(script), setup, json.dumps(state)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first, move, merged, leave = found["requests"]
    assert first == {"look": "blend", "alpha": 0.5, "fine": False} and leave == {"do": ["done"]}
    assert move == {"move": {"r1": 1}}
    assert merged == {
        "move": {"r1": 3, "tx": 5},
        "shift": [6 - 1, -4, 5],  # two pixels of the picture for one of the screen, an arrow, the wheel
        "turn": [0, 0, 1],
        "do": ["left lateral"],
    }
    assert found["shown"] == [f"similarity {state['similarity']:.3f}", "", "4.13", state["ranges"]["tx"][1]]
    assert "has ended" in found["end"]


def test_many_at_once_are_done_one_after_the_other(ct, tmp_path):
    picker = PosePicker(ct, detector=Detector(1020, 64, 5))
    with served(picker, tmp_path / "pose.json") as ask, ThreadPoolExecutor(8) as pool:
        assert all(reply[0] == 200 for reply in pool.map(ask, [{"shift": [1, 0, 0]}] * 24))
        moved = project(picker.level.detector, picker.pose, torch.zeros(1, 1, 3))[0, 0]
    assert torch.allclose(moved, torch.tensor([31.5 + 24, 31.5]), atol=1e-3)


def test_a_file_is_not_written_over(ct, tmp_path):
    (tmp_path / "pose.json").write_text("mine")
    picker = PosePicker(ct, detector=Detector(1020, 32, 10))
    with served(picker, tmp_path / "pose.json") as ask:
        assert "pose.json exists already" in last(ask({"do": ["save"]}))["note"]
        assert "r9" in last(ask({"move": {"r9": 1}}))["note"] and "no X-ray" in last(ask({"do": ["refine"]}))["note"]
    assert (tmp_path / "pose.json").read_text() == "mine"


def xvr(*args):
    "Run a command in this process: exit code, stdout, and the line that it leaves"
    result = CliRunner().invoke(cli.xvr, [str(a) for a in args], prog_name="xvr")
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stdout, result.stderr.strip()


def press(monkeypatch, *said):
    "A browser in which a person does this, and leaves"

    def browser(url):
        host, token = re.fullmatch(r"http://(.+)/(.+)/", url).groups()

        def work():
            for one in (*said, {"do": ["done"]}):
                connection = http.client.HTTPConnection(host, timeout=60)
                connection.request("POST", f"/{token}/", json.dumps(one))
                connection.getresponse().read()

        threading.Thread(target=work).start()

    monkeypatch.setattr("webbrowser.open", browser)


@pytest.mark.parametrize("save", [True, False])
def test_the_command_that_goes_on_begins_there(case, tmp_path, monkeypatch, save):
    press(monkeypatch, {"move": {"r1": 12.5, "tx": 4}}, {"do": ["save"] if save else []})
    code, out, _ = xvr(
        "pick", case.xrays[0], "-v", case.ct, "-o", tmp_path / "my pose.json", "--reverse_x_axis", "--crop", 4
    )
    assert code == 0 and (tmp_path / "my pose.json").exists() == save
    line = out.splitlines()[-1].replace("-o results", f"-o {shlex.quote(str(tmp_path / 'results'))}")
    assert xvr(*shlex.split(line)[1:], "--init_only")[0] == 0
    result = json.loads((tmp_path / "results" / case.xrays[0].stem / "result.json").read_text())
    assert result["initial"]["rot"] == pytest.approx([12.5, 5, 0], abs=2e-3) and result["initial"][
        "xyz"
    ] == pytest.approx([4, -800, 0], abs=2e-3)
    assert result["detector"]["reverse_x_axis"] and result["detector"]["height"] == 60


def test_without_an_xray_it_goes_on_to_simulate(case, tmp_path, monkeypatch):
    press(monkeypatch, {"do": ["left lateral", "save"]})
    code, out, _ = xvr("pick", "-v", case.ct, "-o", tmp_path / "pose.json", "--sid", 700, "--delx", 2)
    assert code == 0
    line = out.splitlines()[-1].replace("-o xrays", f"-o {shlex.quote(str(tmp_path / 'xrays'))}")
    assert xvr(*shlex.split(line)[1:], "--height", 32)[0] == 0
    assert read_xray(tmp_path / "xrays" / "xray_000.dcm").angles == pytest.approx((90, 0), abs=1e-3)
    assert Pose.load(tmp_path / "pose.json").translation.norm().item() == pytest.approx(700, abs=1e-2)


def test_what_cannot_work_is_one_line(case, tmp_path, ct):
    (tmp_path / "there.json").write_text("{}")
    two = tmp_path / "two.json"
    case.poses.save(two)
    taken = _Server(PosePicker(ct, detector=Detector(1020, 8, 40)), None)
    for more, part in (
        (["-o", tmp_path / "there.json"], "there.json exists already; give another --outpath"),
        (["--pose", tmp_path / "there.json"], "is not a pose file"),
        (["--pose", two], "begins at one pose, not 2"),
        (["--port", taken.server_address[1]], "give another --port"),
        (["--port", 70000], "give another --port"),
        (["--sdd", -1], "sdd must be above zero"),
    ):
        code, _, err = xvr(
            "pick", "-v", case.ct, *(["-o", tmp_path / "new.json"] if "-o" not in more else []), "--no_browser", *more
        )
        assert code == 1 and err.startswith("xvr: error: ") and "\n" not in err and part in err, err
    taken.server_close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_ends_it_cleanly(case, tmp_path):
    words = [*COMMAND, "pick", "-v", case.ct, "-o", tmp_path / "pose.json", "--no_browser"]
    run = started(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    host, token = re.match(r"the picker is at http://(127\.0\.0\.1:\d+)/(\S{22})/$", run.stdout.readline()).groups()
    run.stdout.readline()
    page = http.client.HTTPConnection(host, timeout=60)
    page.request("GET", f"/{token}/")
    assert page.getresponse().status == 200  # it is at work, so that Ctrl-C ends the page and not the way there
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0 and "Traceback" not in err and out.splitlines()[-1].startswith("xvr simulate")
