"The site's pages: nbdev's part of building them, then pandoc, which reads Markdown inside Quarto"

import json
import posixpath
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pypandoc
import pytest
import yaml
from nbdev.config import get_config
from nbdev.processors import FilterDefaults
from nbdev.serve_drv import exec_nb

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PAGES = sorted(p.relative_to(NBS).as_posix() for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


class _Page(HTMLParser):
    "What of a page others lead to, where it leads, its pictures' descriptions, the classes and the text of it"

    def __init__(self, html):
        super().__init__()
        self.anchors, self.links, self.alts, self.classes, self.words = set(), [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors.add(attrs.get("id"))
        self.classes += (attrs.get("class") or "").split()
        self.links += [attrs["href"]] if tag == "a" and "href" in attrs else []
        self.alts += [attrs.get("alt") or ""] if tag == "img" else []

    def handle_data(self, data):
        self.words += data.split()


def _text(cell):
    "The Markdown that Quarto makes of a cell, as far as it has headings, links, tables or pictures"
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    data = [{kind: "".join(some) for kind, some in out.get("data", {}).items()} for out in cell.get("outputs", [])]
    if "output: asis" in source:
        raw = lambda html: f"```{{=html}}\n{html}\n```"
        return "\n\n".join(raw(d["text/html"]) if "text/html" in d else d.get("text/markdown", "") for d in data)
    return "\n\n".join("![](picture)" for d in data if any(k.startswith("image/") for k in d) and "text/html" not in d)


def _html(text):
    "What pandoc makes of Markdown by the site's filter; code has no colours, which take most of the time"
    return pypandoc.convert_text(
        text, "html5", "markdown", extra_args=[f"--lua-filter={NBS / 'pages.lua'}", "--mathjax", "--no-highlight"]
    )


@cache
def _built(page, folder):
    "A page's cells after nbdev, its front matter, and what pandoc makes of it"
    folder.mkdir(exist_ok=True)
    path = folder / page.replace("/", "-")
    exec_nb(NBS / page, path, FilterDefaults)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    front = yaml.safe_load("".join(cells[0]["source"]).strip().strip("-"))
    return cells, front, _Page(_html("\n\n".join(map(_text, cells[1:]))))


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    "Builds a page in the repository's folder"
    folder = tmp_path_factory.getbasetemp() / "pages"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("IN_TEST", "1")
        # IPython would keep each page's shell until the end, and then collect garbage once for each: most of a minute
        patch.setattr("IPython.core.interactiveshell.atexit", SimpleNamespace(register=lambda _: None))
        yield lambda page: _built(page, folder)


@pytest.mark.parametrize("page", PAGES)
def test_page_is_built(page, build):
    "nbdev 2.4.14 runs a notebook's definitions in order to document them, and evaluates annotations as it meets them"
    cells, front, html = build(page)
    sources = "\n".join("".join(cell["source"]) for cell in cells)
    assert "#| export" not in sources and "#| hide" not in sources
    assert front["title"] and front["description"]
    assert all(html.alts)
    assert not [word for word in html.words if "](http" in word]  # a link in a link


@pytest.mark.parametrize("page", PAGES)
def test_parameters_are_tables(page, build):
    "Each function, method and class that has a parameter and no underscore in front"
    cells, _, html = build(page)
    shown = [_text(cell) for cell in cells if "show_doc(" in "".join(cell["source"])]
    public = r"^### (?!_[A-Za-z]).*\n\n```python\ndef .*\(\n    "
    assert html.classes.count("parameters") == sum(bool(re.search(public, text, re.M)) for text in shown)


def test_filter():
    "nbs/pages.lua on what nbdev writes for a function, for a class, for what is private, and for links"
    text = """
Look at [[`Ray`](https://x/ray.html#ray)](ray.ipynb) and [`_hidden`](https://x/ray.html#_hidden).

![](a.png)

### march

```python
def march(
    rays:dict[str, list[int]]={'a': [1, 2]}, step:float=0.5, # Length, mm
    # in [`_two`](https://x/ray.html#_two) lines
    *options, # Others
)->Tensor: # Shape, (B,)
```

*Sum along a ray*

---

[source](https://x)

### _March.one

```python
def one(
    n:int
)->None:
```

*Nothing to see*

### Ray

```python
def Ray(
    start:Tensor, end:Tensor
)->None:
```

``` {.python .cell-code}
class Ray:
    # Where it starts,
    # mm
    start: Tensor
    end: Tensor = zero()  # Where it ends

    def of(self):
        end: int  # not this
```
"""
    html = _html(text)
    rows = [re.findall("<td.*?>(.*?)</td>", row, re.S) for row in re.findall("<tr.*?>(.*?)</tr>", html, re.S)]
    rows = [[re.sub("<.*?>", "", cell) for cell in row] for row in rows if row]
    assert rows == [
        ["rays", "dict[str, list[int]]", "{'a': [1, 2]}", ""],
        ["step", "float", "0.5", "Length, mm in _two lines"],
        ["*options", "", "", "Others"],
        ["returns", "Tensor", "", "Shape, (B,)"],
        ["start", "Tensor", "Where it starts, mm"],
        ["end", "Tensor", "Where it ends"],
    ]
    page = _Page(html)
    assert [link for link in page.links if link[0] != "#"] == ["ray.ipynb"]  # and none of a line of code
    assert "_March" not in html and "Nothing" not in html
    assert page.alts == ["Look at Ray and _hidden"]


def test_links_lead_somewhere(build):
    "Each link of a page to a page of the site is to one that is there, and to a heading of it"
    home = get_config().doc_host + get_config().doc_baseurl + "/"
    targets = {page: page.replace(Path(page).name, build(page)[1].get("output-file") or "") for page in PAGES}
    targets = {page: name if name.endswith(".html") else page[:-5] + "html" for page, name in targets.items()}
    anchors = {name: build(page)[2].anchors for page, name in targets.items()}
    for page in PAGES:
        for link in build(page)[2].links:
            path, _, anchor = link.removeprefix(home).partition("#")
            if re.match("[a-z]+:", path):
                continue
            if not link.startswith(home):
                path = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
            name = targets.get(path, path)
            assert name in anchors or (NBS / path).is_file(), f"{page}: {link}"
            assert not anchor or anchor in anchors[name], f"{page}: {link}"


def test_commands_are_the_commands(build):
    "What the page of commands keeps is what a build writes from the commands: run the notebook if not"
    page = "explanations/commands.ipynb"
    tables = lambda cells: [
        "".join(out["data"]["text/html"]) for c in cells for out in c.get("outputs", []) if "text/html" in out["data"]
    ]
    kept = tables(json.loads((NBS / page).read_text(encoding="utf-8"))["cells"])
    assert len(kept) > 10 and kept == tables(build(page)[0]), f"run nbs/{page} again"


def test_readme_links():
    "Files and headings that the README, and what it leads to, name"
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        page = _Page(pypandoc.convert_text(text, "html5", "gfm", extra_args=["--no-highlight"]))
        for link in page.links:
            path, _, anchor = link.partition("#")
            assert re.match("[a-z]+:", path) or (ROOT / path).exists(), f"{name}: {link}"
            assert path or anchor in page.anchors, f"{name}: {link}"
        assert all(page.alts), name
