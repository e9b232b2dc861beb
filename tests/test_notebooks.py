"Notebooks as tests: what the repository's `conftest.py` makes of them"

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


WAIT = """import time
from pathlib import Path
for _ in range(600):
    if Path('b').exists(): break
    time.sleep(0.1)
else: raise TimeoutError"""
FLAGS = ["#| slow\nraise ValueError", "#| eval: false\nraise ValueError", "1"]
NOTEBOOKS = dict(
    waits=[WAIT, "1"],  # for what the next one does, which starts ahead of its turn
    meanwhile=["from pathlib import Path\nPath('b').touch()"],
    fails=["x = 1", "def half(n):\n    return n / 0\n\nhalf(x)", "x = 2"],
    leaves=["import json\njson.left = True", "assert json.left"],
    clean=["import json\nassert not hasattr(json, 'left')"],
    ends=["import os", "os._exit(3)", "1"],
    last=["1"],
    flags=FLAGS,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "Runs notebooks of these cells by pytest in a folder of their own: what it prints"

    def run(notebooks, **env):
        folder = tmp_path_factory.mktemp("notebooks")
        for name in ("conftest.py", "settings.ini", "tools/notebook_process.py"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        (folder / "tests").mkdir()  # which run first, and have a `conftest.py` of their own
        (folder / "tests/conftest.py").touch()
        (folder / "tests/test_one.py").write_text("def test_one():\n    pass\n")
        for name, sources in notebooks.items():
            cells = [
                dict(cell_type="code", id=f"{name}{i}", metadata={}, source=source, outputs=[], execution_count=None)
                for i, source in enumerate(sources)
            ]
            content = dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
            (folder / f"{name}.ipynb").write_text(json.dumps(content))
        options = ["-p", "no:cacheprovider", "-v", "tests", *(f"{name}.ipynb" for name in notebooks)]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *options],
            cwd=folder,
            env=os.environ | {"XVR_TEST_SPENT": "1"} | env,
            capture_output=True,
            text=True,
            timeout=300,
        ).stdout

    return run


@pytest.fixture(scope="module")
def printed(run):
    return run({k: v for k, v in NOTEBOOKS.items() if os.cpu_count() > 1 or k not in ("waits", "meanwhile")})


def results(printed: str, name: str) -> list[str]:
    "Of a notebook's cells"
    return re.findall(rf"^{name}\.ipynb::.*? (PASSED|FAILED|SKIPPED)", printed, re.MULTILINE)


def test_a_failure_is_shown_and_skips_the_rest(printed):
    assert results(printed, "fails") == ["PASSED", "FAILED", "SKIPPED"]
    assert "fails.ipynb, cell 2: ZeroDivisionError: division by zero" in printed and "in half" in printed
    assert "IPython/core" not in printed and "cell 2 above failed" in printed


def test_a_notebook_has_a_process_of_its_own(printed):
    "What one changes in a library, the next does not see"
    assert results(printed, "leaves") == 2 * ["PASSED"] and results(printed, "clean") == ["PASSED"]
    assert all(any(line.endswith(f"  {name}.ipynb") for line in printed.splitlines()) for name in ("leaves", "clean"))


def test_a_process_that_ends_is_a_failure(printed):
    assert results(printed, "ends") == ["PASSED", "FAILED", "SKIPPED"] and results(printed, "last") == ["PASSED"]
    assert "ends.ipynb, cell 2: the notebook's process ended, exit code 3" in printed


@pytest.mark.skipif(os.cpu_count() < 2, reason="needs two cores")
def test_notebooks_start_ahead_of_their_turn(printed):
    assert results(printed, "waits") == 2 * ["PASSED"] and results(printed, "meanwhile") == ["PASSED"]


def test_flags_are_obeyed(printed, run):
    assert results(printed, "flags") == ["SKIPPED", "PASSED"]
    assert "1 failed, 1 passed, 1 skipped" in run(dict(flags=FLAGS), NBDEV_FLAGS="slow")
