"Tutorials as a reader meets them: the raw file, opened alone on Colab, read on a page"

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "nbs/tutorials").glob("*.ipynb"))
each = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[str]:
    return [
        "".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind
    ]


@pytest.fixture(scope="module")
def home() -> dict[str, str]:
    "The project's address, as tools/home.py writes it"
    spec = importlib.util.spec_from_file_location("home", ROOT / "tools/home.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.words()


def is_seen(source: str) -> bool:
    return not re.search(r"^#\| *hide$", source, re.M)


@each
def test_begins_with_a_badge_and_an_install_cell(path, home):
    title, badge = cells(path, "markdown")[:2]
    target = f"https://colab.research.google.com/github/{home['slug']}/blob/{home['branch']}/nbs/tutorials/{path.name}"
    assert title.startswith("# ") and badge.endswith(f"]({target})")
    assert cells(path, "code")[0] == f"#| hide\n#| eval: false\n%pip install -q git+{home['address']}"


@each
def test_ends_with_its_neighbours(path):
    assert re.match(
        r"(Previous: \[[^]]+\]\((\w+)\.ipynb\))?( \| )?(Next: \[[^]]+\]\(\w+\.ipynb\))?$", cells(path, "markdown")[-1]
    )


@each
def test_needs_nothing_beside_it(path):
    code = "\n".join(cells(path, "code"))
    assert not re.search(r"\.\./\.\.|shared/|__file__|from (?:tools|tests|conftest)", code)


@each
def test_shows_what_a_reader_would_type(path):
    "No asserts, no tricks for quiet, and few imports at once"
    for source in filter(is_seen, cells(path, "code")):
        tree = ast.parse(re.sub(r"^(\s*)[!%](?:.*\\\n)*.*", r"\1pass", source, flags=re.M))
        found = {type(node).__name__ for node in ast.walk(tree)}
        assert "Assert" not in found, source
        assert not re.search(r"redirect_stdout|capture_output|CliRunner|_version__", source), source
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert len(imports) <= 9, source


@each
def test_its_outputs_are_as_a_terminal_leaves_them(path):
    "No bar that has moved on stays in a stored page"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for out in cell.get("outputs", []):
            assert "\r" not in "".join(out.get("text", [])).replace("\r\n", "\n"), cell["id"]


def test_its_lines_are_at_most_100_long():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "E501", ROOT / "nbs/tutorials"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "line-length = 100" in (ROOT / "nbs/tutorials/ruff.toml").read_text(encoding="utf-8")
