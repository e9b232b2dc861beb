"The page of a result and the index of several: what they state, and how they work in a browser"

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from browser import CHROMIUM, WHY_NOT, Browser

from xvr.batch import Files, register_files
from xvr.cli import REGISTER, xvr
from xvr.initialisers import Starts, fixed, from_dicom
from xvr.pose import Pose
from xvr.report import report, write_report

NAME = "a&b <i>c #1"  # of an X-ray


class Page(HTMLParser):
    "A page's elements with their attributes, and its text"

    def __init__(self, path: Path):
        super().__init__()
        self.elements, self.text = [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.elements if attrs.get(name) is not None]


@pytest.fixture(scope="module")
def made(case, tmp_path_factory):
    "Two results that are right and one that failed, with pages"
    out, odd = tmp_path_factory.mktemp("report"), tmp_path_factory.mktemp("odd") / f"{NAME}.dcm"
    shutil.copy(case.xrays[1], odd)
    files = Files(report=True, saveimg=True, verbose=0)
    register_files(case.xrays, case.ct, from_dicom(), out, files=files)
    wrong, still = fixed(Pose.from_euler([[60.0, -20, 30]], [[30.0, -700, 60]])), Starts(init_only=True)
    register_files([odd], case.ct, wrong, out, starts=still, files=files)
    names = {"right": case.xrays[0].stem, "failed": NAME}
    found = {k: json.loads((out / name / "result.json").read_text()) for k, name in names.items()}
    assert {k: v["verdict"] for k, v in found.items()} == dict(right="ok", failed="failed")
    pages = {k: out / name / "report.html" for k, name in names.items()}
    return SimpleNamespace(out=out, found=found, pages=pages | dict(index=out / "index.html"))


def test_all_register_commands_take_it():
    group = xvr.get_command(None, "register")
    for name in REGISTER:
        assert "--report" in [flag for p in group.get_command(None, name).params for flag in p.opts]


@pytest.mark.parametrize("which", ["right", "failed", "index"])
def test_a_page_holds_all_it_needs(made, which):
    page = Page(made.pages[which])
    assert not [tag for tag, attrs in page.elements if tag == "script" and "src" in attrs]
    for link in page.of("href") + page.of("src") + re.findall(r"url\(([^)]*)\)", page.source):
        assert link.startswith(("data:", "#")) or (made.pages[which].parent / unquote(link)).exists(), link
    ids = page.of("id")
    assert len(ids) == len(set(ids))
    named = " ".join(page.of("aria-labelledby") + page.of("aria-describedby") + page.of("for")).split()
    assert set(named) | {link[1:] for link in page.of("href") if link.startswith("#")} <= set(ids)
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_its_numbers_are_those_of_the_result(made):
    page, found = Page(made.pages["right"]), made.found["right"]
    for axis, deviation in enumerate(np.sqrt(np.diag(found["covariance"]["matrix"]))):
        unit = "°" if axis < 3 else " mm"
        assert f"{deviation:.3f}{unit}" in page.text and f"± {1.96 * deviation:.3f}{unit}" in page.text
    assert f"probability of {found['probability']:.0%}" in page.text
    assert ", ".join(f"{v:.3f}" for v in found["geometry"]["source"]) in page.text
    for pose in ("initial", "final"):
        assert ", ".join(f"{v:z.2f}" for v in found[pose]["xyz"]) in page.text
    assert found["versions"]["torch"] in page.text and "gaussnewton" in page.text
    for word in ("RAS", "LPS", "mm", "degrees", "camera's axes"):
        assert word in page.text


def test_a_failed_result_states_no_deviation(made):
    page, index = Page(made.pages["failed"]), Page(made.pages["index"])
    assert "no uncertainty is stated" in page.text and "±" not in page.text and "ellips" not in page.text.lower()
    assert all(reason.replace("`", "") in page.text for reason in made.found["failed"]["warnings"])
    assert index.text.count("not stated") == 3 and len(index.of("src")) == 3  # pictures
    assert f"{NAME}.dcm" in page.text and f"{NAME}.dcm" in index.text and "<i>" not in page.source + index.source


def test_notes_are_stated(made, tmp_path):
    folder = tmp_path / "noted"
    shutil.copytree(made.out / "xray_000", folder)
    found = made.found["right"]
    found = found | dict(settings=found["settings"] | dict(notes=["the file lacks <sdd>; `sdd` was given"]))
    (folder / "result.json").write_text(json.dumps(found))
    page = Page(write_report(folder))
    assert "the file lacks <sdd>; sdd was given" in page.text and "<code>sdd</code>" in page.source


def test_made_later_it_is_the_same(made, tmp_path, capsys):
    shutil.copytree(made.out, tmp_path / "out")
    before = {p: p.read_text() for p in (tmp_path / "out").rglob("*.html")}
    for path in before:
        path.unlink()
    assert report(tmp_path / "out") == tmp_path / "out" / "index.html"
    assert capsys.readouterr().out == f"report: {tmp_path / 'out' / 'index.html'}\n"
    # but for the pictures, which were PNG in between
    without = lambda text: re.sub(r"<defs>.*?</defs>|data:[^\"]*|-glb\">[^<]*", "", text, flags=re.S)
    assert {p: without(p.read_text()) for p in before} == {p: without(text) for p, text in before.items()}


def test_without_fine_pictures_small_ones_are_shown(made, tmp_path):
    folder = tmp_path / "small"
    shutil.copytree(made.out / "xray_000", folder, ignore=shutil.ignore_patterns("*.png"))
    page = Page(report(folder))
    assert "have 64 rows" in page.text and "image-initial" not in page.of("id") and "image-final" in page.of("id")
    assert page.of("data-edges") == ["rendering"]


def test_edges_are_those_of_bones(made):
    page = Page(made.pages["right"])
    assert page.of("data-edges") == ["bones"] and {"edges-initial", "edges-final"} <= set(page.of("id"))
    assert "X-ray with the edges of the bones at the final pose" in page.text and "image-final_bones" not in page.of(
        "id"
    )


def test_twenty_of_1024_rows_are_small(made, tmp_path):
    folder = tmp_path / "large"
    shutil.copytree(made.out / "xray_000", folder)
    small = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(small, size=(1024, 1024), mode="bicubic")
    noise = 0.03 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    bones = torch.nn.functional.interpolate(small[..., ::2, ::2], size=(1024, 1024), mode="bicubic")
    pictures = dict(xray=image + noise, initial=image, final=image, initial_bones=bones, final_bones=bones)
    page = write_report(folder, pictures)
    assert 20 * page.stat().st_size < 15e6 and 'id="scene-three"' in page.read_text()


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return tmp_path_factory.mktemp("profile")


@pytest.fixture
def browser(profile):
    browser = Browser(profile)
    yield browser
    browser.close()


STATE = "[find('stage').getAttribute('class'), find('amount').value, find('divider').getAttribute('transform')]"


@needs_browser
def test_the_viewer(made, browser):
    browser.open(made.pages["right"])
    assert browser.run(STATE) == ["divider", "50", "translate(0 0)"]
    x, y, wide = browser.run("(b => [b.x, b.y, b.width])(find('stage').getBoundingClientRect())")
    for kind, share in [("mousePressed", 0.5), ("mouseMoved", 0.4), ("mouseMoved", 0.25), ("mouseReleased", 0.25)]:
        browser.mouse(kind, x + share * wide, y + 100)
    assert browser.run(STATE) == ["divider", "25", "translate(-250 0)"]
    assert browser.run("[find('beyond-box').getAttribute('x'), find('amount').ariaValueText]") == [
        "250",
        "25 % from the left",
    ]
    browser.run("find('amount').focus()")
    browser.press("ArrowRight")
    assert browser.run(STATE) == ["divider", "26", "translate(-240 0)"]
    look = "(s => [s.clipPath, s.opacity, s.animationName, s.maskImage, s.mixBlendMode, s.display])(getComputedStyle(find('over')))"
    usual = browser.run(look.replace("'over'", "'edges'"))[:5]
    looks = {}
    for key, mode in enumerate(["divider", "blend", "blink", "squares", "difference", "xray", "rendering"], 1):
        browser.press(str(key))
        assert browser.run(STATE)[0] == mode == browser.run("document.activeElement.value")
        looks[mode] = browser.run(look)
        assert browser.run("find('shown').textContent").startswith(("X-ray", "Difference", "rendering at the final"))
    assert looks["rendering"] == [*usual, "inline"] and looks["blend"][1] == "0.5" and looks["xray"][5] == "none"
    assert looks["blink"][2] == "blink" and "board" in looks["squares"][3] and looks["difference"][4] == "difference"
    browser.press("i")
    browser.press("e")
    assert browser.run("[find('rendering'), find('edges')].map(use => use.getAttribute('href'))") == [
        "#image-initial",
        "#edges-initial",
    ]
    assert browser.run("getComputedStyle(find('edges')).display") == "none"
    browser.press("f")
    assert browser.run("find('rendering').getAttribute('href')") == "#image-final"
    assert asked(browser) == [made.pages["right"].resolve().as_uri()] and browser.complaints() == []


def asked(browser) -> list[str]:
    "What the page asked for outside itself"
    return [url for url in browser.requests() if not url.startswith("blob:")]


@needs_browser
def test_the_scene_turns(made, browser):
    browser.open(made.pages["right"])
    ended = "find('scene').className || find('seen').textContent"
    browser.run(f"new Promise(done => {{ const wait = () => {ended} ? done() : setTimeout(wait, 50); wait() }})")
    if browser.run("find('scene').className") != "live":
        pytest.skip(browser.run("find('seen').textContent"))
    shown = "['img', 'canvas'].map(tag => getComputedStyle(document.querySelector('#scene ' + tag)).display)"
    assert browser.run(shown) == ["none", "block"]
    canvas = "document.querySelector('#scene canvas')"
    browser.run(f"{canvas}.focus()")
    assert browser.run("document.activeElement.getAttribute('aria-label')").startswith("3D view. The bones of the CT")
    browser.press("s")
    boxes = "[...find('scene-controls').elements].filter(e => e.checked).map(e => e.name)"
    assert browser.run(boxes) == ["bones", "xray"] and "Seen from the source" in browser.run("find('seen').textContent")
    for key in ("ArrowRight", "+", "-", "o"):
        browser.press(key)
    assert browser.run(boxes) == ["bones", "xray", "camera", "initial", "path"]
    browser.run("find('scene-controls').elements.bones.click()")
    assert browser.run(boxes) == ["xray", "camera", "initial", "path"]
    assert browser.run("find('scene-file').href").startswith("blob:")
    assert asked(browser) == [made.pages["right"].resolve().as_uri()] and browser.complaints() == []
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert browser.run(shown) == ["block", "none"]


@needs_browser
def test_keys_are_only_the_viewers(made, browser):
    browser.open(made.pages["right"])
    browser.run("document.activeElement.blur()")
    browser.press("5")
    assert browser.run(STATE)[0] == "divider"


@needs_browser
def test_the_index_is_sorted_by_its_buttons(made, browser):
    browser.open(made.pages["index"])
    texts = "[...find('index').tBodies[0].rows].map(row => row.%s.textContent.trim().split(/\\s+/).at(-1))"
    verdicts, across = texts % "querySelector('.verdict')", texts % "cells[5]"
    press = "[...document.querySelectorAll('th button')].find(b => b.textContent === '%s').click()"
    browser.run(press % "Verdict")
    assert browser.run(verdicts) == ["failed", "ok", "ok"]
    assert browser.run("document.querySelectorAll('[aria-sort]').length") == 1
    browser.run(press % "Verdict")
    assert browser.run(verdicts) == ["ok", "ok", "failed"]
    assert browser.run("document.querySelector('[aria-sort]').ariaSort") == "descending"
    for _ in range(2):  # in either order, what is not stated comes last
        browser.run(press % "Across ± (mm)")
        assert browser.run(across)[-1] == "stated"
    assert browser.requests() == [made.pages["index"].resolve().as_uri()] and browser.complaints() == []


@needs_browser
def test_it_prints_on_paper(made, browser):
    browser.open(made.pages["right"])
    pdf = base64.b64decode(browser.send("Page.printToPDF", printBackground=False)["data"])
    assert pdf.startswith(b"%PDF") and 1 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 4
    browser.send("Emulation.setEmulatedMedia", media="print")
    shown = "['#viewer', '.plates'].map(name => getComputedStyle(document.querySelector(name)).display)"
    assert browser.run(shown) == ["none", "grid"]
    assert browser.run("dispatchEvent(new Event('beforeprint')), document.querySelector('details').open")
    browser.open(made.pages["index"])  # a head that Chromium repeats on the next page would lack its buttons
    assert browser.run("getComputedStyle(document.querySelector('th button')).display") == "contents"


AXE = next(
    (
        path
        for name in ("axe_playwright_python", "axe_selenium_python", "axe_core_python")
        if (spec := find_spec(name)) and spec.submodule_search_locations
        for path in Path(spec.submodule_search_locations[0]).rglob("axe.min.js")
    ),
    None,
)


FAULTS = "axe.run(document).then(r => r.violations.map(v => `${v.id}: ${v.help}`))"
KINDS = ("radio", "slider", "checkbox", "button", "link", "image", "region", "table", "heading")


@needs_browser
@pytest.mark.parametrize("which", ["right", "failed", "index"])
def test_it_is_read_aloud(made, browser, which):
    for scheme, width in [("light", 1280), ("dark", 400)]:
        browser.send("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value=scheme)])
        browser.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        browser.open(made.pages[which])
        assert browser.run("document.documentElement.scrollWidth") <= width
        nodes = [node for node in browser.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
        told = [(n["role"]["value"], n["name"]["value"]) for n in nodes if n["role"]["value"] in KINDS]
        assert len(told) > 10 and all(name for _, name in told), told
        if AXE:
            browser.run(AXE.read_text(encoding="utf-8") + ";0")
            assert browser.run(FAULTS) == []


@needs_browser
@pytest.mark.skipif(AXE is None, reason="axe is not installed: pip install axe-playwright-python")
def test_axe_finds_a_fault(tmp_path, browser):
    "The check above would fail"
    (tmp_path / "bad.html").write_text("<html><body><img src='data:,'></body></html>")
    browser.open(tmp_path / "bad.html")
    browser.run(AXE.read_text(encoding="utf-8") + ";0")
    assert any(fault.startswith("image-alt") for fault in browser.run(FAULTS))
