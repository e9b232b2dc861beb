"`import xvr` alone: light, and every public name in its place"

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import xvr

SOURCE = Path(xvr.__file__)


def loaded(script: str) -> str:
    "What a fresh interpreter prints"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, cwd=SOURCE.parents[1]
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    script = "import sys; before = set(sys.modules); import xvr; dir(xvr); print(*set(sys.modules) - before)"
    assert set(loaded(script).split()) == {"xvr"}


@pytest.mark.parametrize("name, module", xvr._MODULE_OF.items())
def test_each_name_is_defined_where_the_table_says(name, module):
    found = getattr(xvr, name)
    assert found is getattr(import_module(f"xvr.{module}"), name)
    assert found.__module__ == f"xvr.{module}", f"_NAMES in xvr/__init__.py: {name} is defined in {found.__module__}"


def test_type_checkers_read_the_same_table():
    lines = SOURCE.with_suffix(".pyi").read_text().splitlines()
    table = sorted(f"from .{module} import {name} as {name}" for name, module in xvr._MODULE_OF.items())
    assert sorted(line for line in lines if line.startswith("from ")) == table, "xvr/__init__.pyi needs these lines"


@pytest.mark.parametrize("name", [name for name in xvr._MODULE_OF if name.islower()])
def test_what_a_function_takes_is_a_name_too(name):
    "One import is enough: settings and inputs of the functions are beside them"
    function = getattr(xvr, name)
    taken = inspect.signature(function).parameters.values()
    words = {word for parameter in taken for word in re.findall(r"[A-Z]\w+", str(parameter.annotation))}
    ours = {word for word in words if getattr(function.__globals__.get(word), "__module__", "").startswith("xvr")}
    assert ours <= set(dir(xvr)), f"_NAMES in xvr/__init__.py lacks {', '.join(ours - set(dir(xvr)))}"


def test_all_and_dir_list_them():
    assert set(xvr.__all__) == {"__version__", "name_clash", *xvr._MODULE_OF} <= set(dir(xvr))
    assert not {"os", "sys"} & set(dir(xvr))


def test_a_function_stays_in_sight_of_its_module():
    module = import_module("xvr.demo")
    xvr.demo = module  # as the import of the module does
    assert xvr.demo is module.demo
    from xvr import demo

    assert demo is module.demo


def test_modules_are_reached_by_name():
    assert loaded("import xvr; print(xvr.conventions.XvrError is xvr.XvrError)") == "True"
    assert loaded("from xvr import conventions, XvrError; print(conventions.XvrError is XvrError)") == "True"


@pytest.mark.parametrize(
    "wrong, near", [("registr", "xvr.register"), ("read_xrays", "xvr.read_xray"), ("qqq", "dir(xvr)")]
)
def test_a_wrong_name_is_answered_with_the_nearest(wrong, near):
    with pytest.raises(AttributeError, match=wrong) as caught:
        getattr(xvr, wrong)
    assert near in str(caught.value) and "\n" not in str(caught.value)
    assert not hasattr(xvr, "_private")


def test_name_clash(tmp_path):
    "The distribution xvreg has the same import and the same command"
    assert xvr.name_clash([tmp_path, tmp_path / "absent"]) is None
    (tmp_path / "xvreg_other-1.0.dist-info").mkdir()
    assert xvr.name_clash([tmp_path]) is None
    (tmp_path / "xvreg-0.1.0.dist-info").mkdir()
    line = xvr.name_clash([tmp_path])
    assert "pip uninstall -y xvr xvreg" in line and str(tmp_path) in line and "\n" not in line


def test_a_mixed_installation_warns(tmp_path):
    (tmp_path / "xvr").mkdir()
    (tmp_path / "xvr" / "__init__.py").write_bytes(SOURCE.read_bytes())
    start = [sys.executable, "-c", "import xvr; print(xvr.__version__)"]
    for clash in (False, True):
        done = subprocess.run(start, cwd=tmp_path, env={"PYTHONPATH": ""}, capture_output=True, text=True)
        assert done.stdout.strip() == xvr.__version__ and ("xvreg" in done.stderr) == clash, done.stderr
        (tmp_path / "xvreg-0.1.0.dist-info").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    "name, advice",
    {
        "registr": "did you mean xvr.register?",
        "from_rtk": "from xvr.cameras import from_rtk",
        "qqqq": "see dir(xvr)",
    }.items(),
)
def test_an_unknown_name_leads_on(name, advice):
    with pytest.raises(AttributeError) as error:
        getattr(xvr, name)
    assert str(error.value) == f"xvr has no {name!r}; {advice}"
