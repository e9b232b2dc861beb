"Notebooks as tests: what the repository's `conftest.py` makes of them"

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(tmp_path):
    "Notebooks of these cells, run by pytest in a folder of their own: what it prints"
    for name in ("conftest.py", "settings.ini", "tools/notebook_process.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "tests").mkdir()  # which run first, and have a `conftest.py` of their own
    (tmp_path / "tests/conftest.py").touch()
    (tmp_path / "tests/test_one.py").write_text("def test_one():\n    pass\n")

    def run(**notebooks):
        for name, sources in notebooks.items():
            cells = [
                dict(cell_type="code", id=f"{name}{i}", metadata={}, source=source, outputs=[], execution_count=None)
                for i, source in enumerate(sources)
            ]
            content = dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
            (tmp_path / f"{name}.ipynb").write_text(json.dumps(content))
        options = ["-p", "no:cacheprovider", "-v", "tests", *(f"{name}.ipynb" for name in notebooks)]
        env = os.environ | {"XVR_TEST_SPENT": "1"}
        return subprocess.run(
            [sys.executable, "-m", "pytest", *options],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout

    return run


def test_a_failure_is_shown_and_skips_the_rest(run):
    printed = run(a=["x = 1", "def half(n):\n    return n / 0\n\nhalf(x)", "x = 2"])
    assert "1 failed, 2 passed, 1 skipped" in printed
    assert "a.ipynb, cell 2: ZeroDivisionError: division by zero" in printed and "in half" in printed
    assert "IPython/core" not in printed


def test_a_notebook_has_a_process_of_its_own(run):
    "What one changes in a library, the next does not see"
    printed = run(
        a=["import json\njson.left = True", "assert json.left"], b=["import json\nassert not hasattr(json, 'left')"]
    )
    assert "4 passed" in printed
    assert all(any(line.endswith(f"  {name}.ipynb") for line in printed.splitlines()) for name in "ab")


def test_a_process_that_ends_is_a_failure(run):
    printed = run(a=["import os", "os._exit(3)", "1"], b=["1"])
    assert "1 failed, 3 passed, 1 skipped" in printed
    assert "a.ipynb, cell 2: the notebook's process ended, exit code 3" in printed


@pytest.mark.skipif(os.cpu_count() < 2, reason="needs two cores")
def test_notebooks_start_ahead_of_their_turn(run):
    "The first waits for what the second does"
    wait = "import time\nfrom pathlib import Path\nfor _ in range(600):\n    if Path('b').exists(): break\n    time.sleep(0.1)\nelse: raise TimeoutError"
    printed = run(a=[wait, "1"], b=["from pathlib import Path\nPath('b').touch()"])
    assert "4 passed" in printed


def test_flags_are_obeyed(run, monkeypatch):
    cells = ["#| slow\nraise ValueError", "#| eval: false\nraise ValueError", "1"]
    assert "2 passed, 1 skipped" in run(a=cells)
    monkeypatch.setenv("NBDEV_FLAGS", "slow")
    assert "1 failed, 1 passed, 1 skipped" in run(a=cells)
