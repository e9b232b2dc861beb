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
from browser import CHROMIUM, FIREFOX, WHY_NOT, Browser, Firefox
from children import COMMAND, started
from click.testing import CliRunner
from ipywidgets.embed import embed_data
from PIL import Image

from xvr import cli
from xvr.detector import Detector, project
from xvr.picker import PosePicker, _open, _Server, _widget, pick
from xvr.pose import Pose
from xvr.renderer import render
from xvr.volume import read_volume
from xvr.xray import Reading, read_xray


@pytest.fixture(scope="module")
def ct(case):
    return read_volume(case.ct)


@contextmanager
def served(picker, path):
    "A server at work, and how to ask it: status, and the states that came back"
    server = _Server(picker, path)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def ask(*actions, token=server.token, host="localhost", method="POST", name="", **look):
        connection = http.client.HTTPConnection(*server.server_address, timeout=60)
        connection.putrequest(method, f"/{token}/{name}", skip_host=True)
        connection.putheader("Host", host)
        body = json.dumps(dict(client="me", number=1, actions=actions, look=look)).encode()
        connection.putheader("Content-Length", len(body))
        connection.endheaders(body)
        reply = connection.getresponse()
        return reply.status, reply.read()

    ask.url = server.url
    try:
        yield ask
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def last(reply):
    "The last state of an answer, with its pictures"
    (status, data), state = reply, None
    assert status == 200
    while data:
        size = int.from_bytes(data[:4], "big")
        state, data = json.loads(data[4 : 4 + size]), data[4 + size :]
        state["pictures"] = []
        for size in state["sizes"]:
            state["pictures"].append(data[:size])
            data = data[size:]
    return state


def shift(*by, **more):
    return dict(do="shift", by=by, view=0) | more


def move(**numbers):
    return dict(do="move", by=numbers, view=0)


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
        where = lambda: project(picker.views[0].level.detector, picker.pose, torch.zeros(1, 1, 3))[0, 0]
        before = where()
        picker.shift(by[0].item(), by[1].item())
        assert torch.allclose(where() - before, by[:2], atol=2e-3)
        still = where()
        picker.turn(*by.tolist())
        assert torch.allclose(where(), still, atol=2e-3)  # the isocentre stays where it is


DONE = [
    shift(3.0, -2.0, 5.0, view=1),
    dict(do="turn", by=[3, -2, 1], view=1),
    move(r1=20.5, tz=-7.25),
    dict(do="preset", by="LAO 45", view=1),
    dict(do="antipode", view=1),
    dict(do="window", by=[0.2, -0.1], view=1),
    dict(do="undo"),
    dict(do="undo"),
    dict(do="redo"),
    dict(do="save"),
]


def two_views(case, ct):
    return PosePicker(ct, [read_xray(path) for path in case.xrays], rig=[case.poses[:1], case.poses[1:]])


def test_notebook_and_page_do_the_same_and_the_picture_is_what_render_makes(case, ct, tmp_path):
    page, notebook = two_views(case, ct), two_views(case, ct)
    widget, sent = _widget(notebook, tmp_path / "a.json"), []
    widget.send = lambda state, pictures: sent.append(state | dict(pictures=pictures))
    with served(page, tmp_path / "b.json") as ask:
        for action in DONE:
            answered = last(ask(action, look="colours"))
            request = dict(client="me", number=1, actions=[action], look=dict(look="colours"))
            widget._handle_custom_msg(request, [])
            answered["note"] = sent[-1]["note"] = None
            assert len(answered.pop("sizes")) == 2 and answered == sent[-1]
            for n, view in enumerate(page.views):
                expected = render(view.level.volume, view.level.detector, page.pose_of(n))
                assert torch.equal(page.image(n), expected)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_the_cameras_keep_their_relation(case, ct):
    picker = two_views(case, ct)
    relation = lambda: picker._pose_of(0).inverse().matrix @ picker._pose_of(1).matrix
    before, draw = relation(), torch.Generator().manual_seed(0)
    for n in range(20):
        by = (20 * torch.rand(3, generator=draw) - 10).tolist()
        (picker.shift if n % 2 else picker.turn)(*by, view=n // 2 % 2)
        assert (relation() - before).abs().max() < 1e-9 * 800


def test_undo_and_redo_return_the_exact_pose(case, ct):
    picker, draw, seen = two_views(case, ct), torch.Generator().manual_seed(0), []
    for n in range(30):
        seen.append((picker.numbers, picker.pose.matrix))
        picker.gesture = n
        for _ in range(3):
            by = (20 * torch.rand(3, generator=draw) - 10).tolist()
            (picker.shift if n % 2 else picker.turn)(*by, view=n // 2 % 2)
    seen.append((picker.numbers, picker.pose.matrix))
    for step, there in ((picker.undo, seen[-2::-1]), (picker.redo, seen[1:])):
        for numbers, matrix in there:
            step()
            assert picker.numbers == numbers and torch.equal(picker.pose.matrix, matrix)


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
    plain = PosePicker(ct, xray)
    plain.look = "X-ray"
    plain, xray.image = plain.picture(), xray.image.clone()
    xray.image[..., :16] = 1e6
    dazzled = PosePicker(ct, xray)
    dazzled.look = "X-ray"
    dazzled = dazzled.picture()
    assert (dazzled == plain).all() and (dazzled[:, :16] == 0).all() and dazzled[:, 16:].max() == 255


def test_a_picture_without_a_pose_says_where_the_picker_begins(ct, tmp_path):
    Image.linear_gradient("L").save(tmp_path / "x.png")
    begin = lambda **known: _open(ct, [tmp_path / "x.png"], Reading(sdd=1000, delx=1.5, **known), None, None, None)
    said = lambda picker: [note for note in picker.xrays[0].notes if "to begin with; give `sid` in mm" in note]
    assumed, stated = begin(), begin(sid=700)
    assert "800 mm from the CT's centre" in said(assumed)[0] and assumed.numbers["ty"] == pytest.approx(-800)
    assert not said(stated) and stated.numbers["ty"] == pytest.approx(-700)


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
                assert ask(move(r1=50), dict(do="save"), method=method, **wrong) == (403, b"")
        assert picker.numbers == before and not (tmp_path / "pose.json").exists()
        for name in ("", "picker.css", "picker.js", "picker_page.js"):
            status, page = ask(method="GET", host="127.0.0.1:9", name=name)
            without_comments = re.sub(r"^(.* )?// .*$", "", page.decode(), flags=re.M)
            assert status == 200 and b"://" not in page and "//" not in without_comments  # nothing from elsewhere
            assert ask(method="GET", token="x" * 22, name=name) == (403, b"")
            assert ask(method="GET", host="elsewhere.example", name=name) == (403, b"")
        for name in ("picker.py", "../picker.py", "..", "picker.js/", "%2e%2e/picker.py"):
            assert ask(method="GET", name=name) == (403, b"")
        for name in ("picker.css", "picker.js", "picker_page.js"):
            assert ask(move(r1=50), name=name) == (403, b"")
        assert picker.numbers == before


NODE = shutil.which("node")
FAST_HAND = """
import { makeLine } from "./picker.mjs"
const requests = [], told = []
let answer
const model = { on: (_, listen) => (answer = listen), off() {}, send: (request) => requests.push(request) }
const line = makeLine(model, async () => {}, (how) => told.push(how))
const done = async (more = {}) => answer({ client: requests[0].client, number: requests.length, ...more })
const act = (action, by, gesture, view = 0) => line.act({ do: action, by, view, gesture }, { quick: true })
line.show({ look: "edges" })
act("shift", [1, 0, 0], 1)
act("shift", [1, 2, 0], 1)
act("turn", [1, 2, 3], 1)
act("shift", [1, 0, 0], 1, 1)
act("move", { r1: 1, tx: 2 }, 2)
act("move", { r1: 3 }, 2)
act("move", { r1: 3 }, 3)
line.act({ do: "undo" })
line.act({ do: "undo" })
line.show({ quick: false })
const early = requests.length
await answer({ client: "another page", number: 1 })
await done({ working: true })
const still = requests.length
await done()
await done()
console.log(JSON.stringify({ early, still, requests, told }))
"""


def text_of(name):
    return importlib.resources.files("xvr").joinpath(name).read_text(encoding="utf-8")


def in_node(script, folder):
    "What a script that imports the picker prints"
    (folder / "picker.mjs").write_text(text_of("picker.js"), encoding="utf-8")
    (folder / "test.mjs").write_text(script)
    done = subprocess.run([NODE, str(folder / "test.mjs")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not NODE, reason="node is not installed")
def test_what_is_done_while_an_answer_is_on_its_way_is_merged(tmp_path):
    found = in_node(FAST_HAND, tmp_path)
    first, second = found["requests"]
    assert found["early"] == found["still"] == 1 and found["told"] == ["waiting", "waiting", "idle"]
    assert first["actions"] == [] and first["look"] == {"look": "edges"} and second["look"] == {"quick": False}
    assert [tuple(a.get(k) for k in ("do", "by", "gesture", "view")) for a in second["actions"]] == [
        ("shift", [2, 2, 0], 1, 0),
        ("turn", [1, 2, 3], 1, 0),
        ("shift", [1, 0, 0], 1, 1),
        ("move", {"r1": 3, "tx": 2}, 2, 0),
        ("move", {"r1": 3}, 3, 0),
        ("undo", None, None, None),
        ("undo", None, None, None),
    ]


WHILE_DRAWING = """
import { makeLine } from "./picker.mjs"
const requests = [], told = []
let answer, drawn
const model = { on: (_, listen) => (answer = listen), off() {}, send: (request) => requests.push(request) }
const line = makeLine(model, () => new Promise((done) => (drawn = done)), (how) => told.push(how))
line.show({ look: "edges" })
line.act({ do: "undo" })
const shown = answer({ client: requests[0].client, number: 1 })
const sent = requests.length
drawn()
await shown
const last = answer({ client: requests[0].client, number: 2 })
const early = [...told]
drawn()
await last
console.log(JSON.stringify({ sent, early, told }))
"""


@pytest.mark.skipif(not NODE, reason="node is not installed")
def test_the_next_request_does_not_wait_for_the_drawing_but_idle_does(tmp_path):
    found = in_node(WHILE_DRAWING, tmp_path)
    assert found == dict(sent=2, early=["waiting", "waiting"], told=["waiting", "waiting", "idle"])


TWO_UNDER_WAY = """
import { makeLine } from "./picker.mjs"
const requests = [], told = []
let answer
const model = { on: (_, listen) => (answer = listen), off() {}, send: (request) => requests.push(request) }
const line = makeLine(model, async () => {}, (how) => told.push(how), 2)
const done = (number, more = {}) => answer({ client: requests[0].client, number, ...more })
const shift = (by) => line.act({ do: "shift", by: [by, 0, 0], view: 0, gesture: 1 }, { quick: true })
const counts = []
const count = () => counts.push(requests.length)
for (const by of [1, 2, 3, 4]) shift(by)
count() // two are under way, two wait as one
await done(1)
count() // the third
shift(5)
line.act({ do: "refine" })
line.show({ quick: false })
await done(2)
count() // what is no move does not go ahead of an answer
await done(3)
count() // but after the last
shift(6)
await done(4, { working: true })
count() // and no move ahead of it
await done(4)
count()
await done(5)
console.log(JSON.stringify({ counts, moves: requests.map((r) => r.actions.map((a) => a.by?.[0] ?? a.do)), told }))
"""


@pytest.mark.skipif(not NODE, reason="node is not installed")
def test_two_moves_are_under_way_and_nothing_else(tmp_path):
    found = in_node(TWO_UNDER_WAY, tmp_path)
    assert found["counts"] == [2, 3, 3, 4, 4, 5]
    assert found["moves"] == [[1], [2], [7], [5, "refine"], [6]]
    assert found["told"] == 5 * ["waiting"] + ["idle"]


ROOT = "document.querySelector('.xvr-picker')"
BROWSERS = [
    pytest.param(Browser, id="chromium", marks=pytest.mark.skipif(not CHROMIUM, reason=WHY_NOT)),
    pytest.param(Firefox, id="firefox", marks=pytest.mark.skipif(not FIREFOX, reason="Firefox is not installed")),
]


@pytest.fixture(params=BROWSERS)
def browser(request, tmp_path_factory):
    browser = request.param(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


class Hand:
    "A person at the page"

    def __init__(self, browser, url):
        self.browser = browser
        browser.open(url)
        self.rest()

    def rest(self):
        "Until the picture of what was done is drawn"
        self.browser.until(f"{ROOT}?.dataset.line === 'idle' && {ROOT}.dataset.drawn > 0")

    def drag(self, right, down, view=0, **how):
        box = (
            f"(b => [b.x, b.y, b.width, b.height])(document.querySelectorAll('canvas')[{view}].getBoundingClientRect())"
        )
        x, y, width, height = self.browser.run(box)
        x, y = x + width / 2, y + height / 4
        self.browser.drag([(x + k / 4 * right, y + k / 4 * down) for k in range(5)], **how)
        self.rest()
        return width

    def press(self, *keys):
        self.browser.press(*keys)
        self.rest()

    def click(self, name):
        self.browser.run(f"[...document.querySelectorAll('button')].find(b => b.textContent === '{name}').click()")
        self.rest()

    def text(self, what):
        return self.browser.run(f"document.querySelector('{what}').textContent")


def test_gestures_in_a_browser(browser, case, ct, tmp_path):
    picker = two_views(case, ct)
    first = picker.numbers
    where = lambda view=0: project(picker.views[view].level.detector, picker.pose_of(view), torch.zeros(1, 1, 3))[0, 0]
    with served(picker, tmp_path / "pose.json") as ask:
        hand = Hand(browser, ask.url)
        for view in (0, 1):
            for how in (dict(held=("shift",)), dict(button=1)):  # the patient goes with the pointer
                before = where(view)
                width = hand.drag(40, -20, view, **how)
                pixel = 64 / width
                assert torch.allclose(where(view) - before, torch.tensor([40.0, -20.0]) * pixel, atol=0.05)
        assert len(picker.past) == 4
        before, place = picker.numbers, where()
        hand.drag(30, 10)  # a turn about the isocentre
        assert picker.numbers != before and torch.allclose(where(), place, atol=1e-2)
        hand.drag(30, 10, held=("ctrl",))
        hand.drag(0, 50, button=2)  # nearer
        assert len(picker.past) == 7 and not picker.quick
        far = picker.pose.translation.norm()
        browser.wheel(
            *browser.run("(b => [b.x + 50, b.y + 50])(document.querySelector('canvas').getBoundingClientRect())"), 100
        )
        browser.until(f"{ROOT}.dataset.line === 'idle'")
        hand.rest()
        numbers, steps = picker.numbers, len(picker.past)
        hand.drag(40, 0, held=("alt",))
        assert picker.numbers == numbers and picker.views[0].window and len(picker.past) == steps
        for _ in range(3):  # a series of keys is one step
            hand.press("ArrowLeft")
        assert len(picker.past) == steps + 1
        hand.press("z", "ctrl")
        assert picker.numbers == numbers
        hand.press("y", "ctrl")
        assert picker.numbers != numbers
        while picker.past:
            hand.press("u")
        assert picker.numbers == first and far > 0  # bit by bit
        if isinstance(browser, Browser):
            assert browser.complaints() == []


def test_what_the_page_says(browser, case, ct, tmp_path):
    picker = two_views(case, ct)
    (tmp_path / "pose.json").write_text("mine")
    with served(picker, tmp_path / "pose.json") as ask:
        hand = Hand(browser, ask.url)
        assert [hand.text("figcaption"), hand.text(".side.left")] == ["xray_000.dcm", "R"]
        hand.click("Save")
        assert "exists already" in hand.text("[role=alert]") and not hand.text("[role=status]")
        red, green, _ = map(
            int,
            re.findall(r"\d+", browser.run("getComputedStyle(document.querySelector('.error')).backgroundColor"))[:3],
        )
        assert red > 150 and green < 60
        hand.drag(40, 0)
        assert not hand.text("[role=alert]")
        hand.click("Refine")
        browser.until(f"{ROOT}.ariaBusy === 'false'")
        said = hand.text("[role=alert]") + hand.text("[role=status]")
        assert said.startswith(("ok", "doubtful", "failed")), said
        assert browser.run("document.querySelector('.help').hidden")
        hand.press("?")
        assert not browser.run("document.querySelector('.help').hidden") and "redo" in hand.text(".help")
        untitled = "[...document.querySelectorAll('.xvr-picker button, .xvr-picker .bar > label')].filter(b => !b.title && !b.querySelector('select'))"
        assert browser.run(f"{untitled}.length") == 0
        open_to_others = (
            "canvas, button, input, select"  # JupyterLab takes their keys, unless they say that it must not
        )
        taken = f"[...{ROOT}.querySelectorAll('{open_to_others}')].filter(one => !one.dataset.lmSuppressShortcuts)"
        assert browser.run(f"{taken}.length") == 0
        numbers = picker.numbers
        browser.run("(f => { f.value = '12.5'; f.onchange() })(document.querySelector('input[name=r1]'))")
        hand.rest()
        assert picker.numbers == numbers | dict(r1=12.5)
        browser.run("(s => { s.value = 'checkerboard'; s.onchange() })(document.querySelector('select'))")
        hand.rest()
        assert picker.look == "checkerboard"


@pytest.mark.skipif(not CHROMIUM, reason=WHY_NOT)
def test_without_a_kernel_it_is_a_picture(case, ct, tmp_path):
    "What nbconvert keeps of a widget, on a page where nothing answers"
    picker, browser = two_views(case, ct), Browser(tmp_path / "profile")
    (widget,) = embed_data([_widget(picker, "pose.json")])["view_specs"]
    kept = embed_data(None)["manager_state"]["state"][widget["model_id"]]
    assert [part["path"] for part in kept["buffers"]] == [["setup", "first", "pictures", n] for n in (0, 1)]
    setup = kept["state"]["setup"]
    setup["first"]["pictures"] = [part["data"] for part in kept["buffers"]]
    (tmp_path / "page.html").write_text(
        f"""<!doctype html><div id="here"></div><script type="module">{text_of("picker.js")}
        const setup = {json.dumps(setup)}, bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0))
        setup.first.pictures = setup.first.pictures.map(bytes)
        render({{ model: {{ get: () => setup, on() {{}}, send() {{}} }}, el: document.getElementById("here") }})
        </script>""",
        encoding="utf-8",
    )
    browser.open(tmp_path / "page.html")
    assert "without a running kernel" in browser.until("document.querySelector('[role=status]').textContent")
    brightest = (
        "Math.max(...c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((_, n) => n % 4 === 0))"
    )
    assert min(browser.run(f"[...document.querySelectorAll('canvas')].map(c => {brightest})")) > 150
    shown = browser.run(f"[...{ROOT}.querySelectorAll('.numbers input')].map(i => +i.value)")
    assert shown == [round(value, 2) for value in picker.numbers.values()] and browser.complaints() == []
    browser.close()


@pytest.mark.skipif(not CHROMIUM, reason=WHY_NOT)
def test_two_fingers(case, ct, tmp_path):
    picker, browser = PosePicker(ct, read_xray(case.xrays[0])), Browser(tmp_path / "profile")
    before = picker.numbers
    where = lambda: project(picker.views[0].level.detector, picker.pose, torch.zeros(1, 1, 3))[0, 0]
    with served(picker, tmp_path / "pose.json") as ask:
        hand, place = Hand(browser, ask.url), where()
        x, y, width = browser.run(
            "(b => [b.x, b.y, b.width])(document.querySelector('canvas').getBoundingClientRect())"
        )
        x, y = x + width / 2, y + width / 2
        browser.touch("touchStart", (x - 50, y), (x + 50, y))
        browser.touch("touchMove", (x - 80, y), (x + 100, y))  # apart by 80 pixels, so nearer, and right by 10
        browser.touch("touchEnd")
        hand.rest()
        browser.close()
    assert picker.numbers["ty"] == pytest.approx(before["ty"] + 80, abs=1)
    assert len(picker.past) == 1 and (where() - place)[0] * width / 64 == pytest.approx(10, abs=1.5)


def test_many_at_once_are_done_one_after_the_other(ct, tmp_path):
    picker = PosePicker(ct, detector=Detector(1020, 64, 5))
    with served(picker, tmp_path / "pose.json") as ask, ThreadPoolExecutor(8) as pool:
        assert all(reply[0] == 200 for reply in pool.map(ask, [shift(1, 0, 0)] * 24))
        moved = project(picker.views[0].level.detector, picker.pose, torch.zeros(1, 1, 3))[0, 0]
    assert torch.allclose(moved, torch.tensor([31.5 + 24, 31.5]), atol=1e-3)


def test_a_file_is_not_written_over(ct, tmp_path):
    (tmp_path / "pose.json").write_text("mine")
    picker = PosePicker(ct, detector=Detector(1020, 32, 10))
    with served(picker, tmp_path / "pose.json") as ask:
        assert "pose.json exists already" in last(ask(dict(do="save")))["error"]
        assert "r9" in last(ask(move(r9=1)))["error"] and "no X-ray" in last(ask(dict(do="refine")))["error"]
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
            for one in (*said, dict(do="done")):
                connection = http.client.HTTPConnection(host, timeout=60)
                request = dict(client="me", number=1, actions=[one], look={})
                connection.request("POST", f"/{token}/", json.dumps(request))
                connection.getresponse().read()

        threading.Thread(target=work).start()

    monkeypatch.setattr("webbrowser.open", browser)


@pytest.mark.parametrize("save", [True, False])
def test_the_command_that_goes_on_begins_there(case, tmp_path, monkeypatch, save):
    press(monkeypatch, move(r1=12.5, tx=4), *([dict(do="save")] if save else []))
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


def test_two_xrays_go_on_together(case, tmp_path, monkeypatch):
    rig = tmp_path / "rig.json"
    case.poses.save(rig)
    press(monkeypatch, move(tx=4.0), dict(do="save"))
    code, out, _ = xvr("pick", *case.xrays, "-v", case.ct, "-o", tmp_path / "pose.json", "--rig", rig)
    assert code == 0
    line = out.splitlines()[-1].replace("-o results", f"-o {shlex.quote(str(tmp_path / 'results'))}")
    assert "--together" in line and xvr(*shlex.split(line)[1:], "--init_only")[0] == 0
    folders = [tmp_path / "results" / path.stem for path in case.xrays]
    first, second = (json.loads((folder / "result.json").read_text())["initial"] for folder in folders)
    assert first["xyz"] == pytest.approx([4, -800, 0], abs=2e-3) and second["rot"] == pytest.approx(
        [-15, 0, 0], abs=2e-3
    )


def test_without_an_xray_it_goes_on_to_simulate(case, tmp_path, monkeypatch):
    press(monkeypatch, dict(do="preset", by="left lateral", view=0), dict(do="save"))
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
    two_and_one = tmp_path / "three.json"
    Pose.cat([case.poses, case.poses[:1]]).save(two_and_one)
    taken = _Server(PosePicker(ct, detector=Detector(1020, 8, 40)), None)
    for more, part in (
        (["-o", tmp_path / "there.json"], "there.json exists already; give another --outpath"),
        (["--pose", tmp_path / "there.json"], "is not a pose file"),
        (["--pose", two], "begins at one pose, not 2"),
        (["--port", taken.server_address[1]], "give another --port"),
        (["--port", 70000], "give another --port"),
        (["--sdd", -1], "sdd must be above zero"),
        ([case.xrays[0], case.xrays[1], "--rig", two_and_one], "2 views need as many poses, not 3"),
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
