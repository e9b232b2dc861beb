"The site's pages: nbdev's part of building them, which Quarto then renders"

import json
from pathlib import Path

import pytest
from nbdev.processors import FilterDefaults
from nbdev.serve_drv import exec_nb

NBS = Path(__file__).resolve().parent.parent / "nbs"
PAGES = sorted(p.relative_to(NBS).as_posix() for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.mark.parametrize("page", PAGES)
def test_page_is_built(page, tmp_path, monkeypatch):
    "nbdev 2.4.14 runs a notebook's definitions in order to document them, and evaluates annotations as it meets them"
    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.chdir(NBS.parent)
    exec_nb(NBS / page, tmp_path / "page.ipynb", FilterDefaults)
    cells = json.loads((tmp_path / "page.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = "\n".join("".join(cell["source"]) for cell in cells)
    assert "#| export" not in sources and "#| hide" not in sources
