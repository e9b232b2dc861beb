"""pytest runs the notebooks: one test a code cell, one shell a notebook, nbdev's flags obeyed.

A cell under a flag in `tst_flags` (`#| slow`, `#| cuda`) is skipped unless the flag is asked for: `NBDEV_FLAGS=slow
pytest`. A cell under `#| eval: false` and a cell that calls `nbdev_export()` are not tests. After a failure the rest of
that notebook is skipped. `XVR_TEST_MEMORY=1 pytest` adds a table of the memory that the process holds after each file.
"""

import atexit
import ctypes
import gc
import os
import sys
import traceback

import psutil
import pytest

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line does
for name in ("no_proxy", "NO_PROXY"):  # a lesson's own server is not behind the proxy that a build server may have
    os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb":
        return Notebook.from_parent(parent, path=file_path)


try:
    malloc_trim = ctypes.CDLL(None).malloc_trim  # of glibc, which else keeps what is freed for itself: gigabytes
except (AttributeError, OSError, TypeError):
    malloc_trim = None
RESIDENT = {}  # After each file: what the process holds of the machine's memory, and the most so far, bytes


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    yield
    if nextitem is not None and nextitem.path == item.path:
        return
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()  # what was compiled
    gc.collect()
    if malloc_trim:
        malloc_trim(0)
    if os.environ.get("XVR_TEST_MEMORY"):
        RESIDENT[item.path.name] = psutil.Process().memory_info().rss


def pytest_terminal_summary(terminalreporter):
    before = 0
    for name, now in RESIDENT.items():
        terminalreporter.write_line(f"{now / 2**20:6.0f} MiB {(now - before) / 2**20:+6.0f}  {name}")
        before = now


class CellFailed(Exception):
    "A cell raised; its own exception is the cause"


class Notebook(pytest.File):
    "A notebook: its cells share a shell, which starts with the first of them to run"

    def collect(self):
        from execnb.nbio import read_nb
        from nbdev.config import get_config
        from nbdev.process import extract_directives

        self.shell, self.failed, self.cells = None, None, []
        flags = set(get_config(path=self.config.rootpath).tst_flags.split()) - set(
            os.environ.get("NBDEV_FLAGS", "").split()
        )
        for number, cell in enumerate(read_nb(self.path).cells, 1):
            if cell.cell_type != "code" or not cell.source.strip() or "nbdev_export(" in cell.source:
                continue
            directives = extract_directives(cell, remove=False)
            if directives.get("eval:", [""])[0].lower() == "false" or "default_exp" in directives:
                continue
            item = Cell.from_parent(
                self, name=f"cell {number}", source=cell.source, skip=sorted(flags & directives.keys())
            )
            self.cells.append(item)
        return self.cells

    def setup(self):
        self.before = os.getcwd(), list(sys.path)

    def start(self):
        "Start the shell in the notebook's folder"
        from execnb.shell import CaptureShell

        os.environ["IN_TEST"] = "1"
        sys.path.insert(0, str(self.config.rootpath))
        os.chdir(self.path.parent)
        self.shell = CaptureShell(self.path.name, mpl_format="png")

    def teardown(self):
        if self.shell:
            import matplotlib.pyplot as plt

            plt.close("all")
            if "ipywidgets" in sys.modules:
                sys.modules["ipywidgets"].Widget.close_all()  # each is kept, with all that it calls, until it is closed
            self.shell.reset(new_session=False)
            self.shell.restore_sys_module_state()  # also `__main__`, which new processes look at
            atexit.unregister(self.shell.atexit_operations)
            self.shell = None
        os.chdir(self.before[0])
        sys.path[:] = self.before[1]


class Cell(pytest.Item):
    "One code cell; running it runs those before it that have not run yet"

    def __init__(self, *, source, skip, **kwargs):
        super().__init__(**kwargs)
        self.source, self.skip, self.ran = source, skip, False

    def runtest(self):
        if self.skip:
            pytest.skip(f"#| {' '.join(self.skip)}: NBDEV_FLAGS='{' '.join(self.skip)}' pytest runs it")
        if self.parent.failed:
            pytest.skip(f"{self.parent.failed} above failed")
        if not self.parent.shell:
            self.parent.start()
        for cell in self.parent.cells[: self.parent.cells.index(self) + 1]:
            if not cell.ran and not cell.skip:
                cell.run()

    def run(self):
        self.ran = True
        shell = self.parent.shell
        shell.run(self.source)
        if shell.exc:
            self.parent.failed = self.name
            raise CellFailed(self) from shell.exc

    def repr_failure(self, excinfo):
        if not isinstance(excinfo.value, CellFailed):
            return super().repr_failure(excinfo)
        cell, error = excinfo.value.args[0], excinfo.value.__cause__
        tb = error.__traceback__
        while tb and "IPython" in tb.tb_frame.f_code.co_filename:  # the shell's own frames
            tb = tb.tb_next
        lines = (f"{n:4} {line}" for n, line in enumerate(cell.source.splitlines(), 1))
        trace = traceback.format_exception(type(error), error, tb)
        return (
            f"{cell.path.name}, {cell.name}: {type(error).__name__}: {error}\n"
            + "\n".join(lines)
            + "\n\n"
            + "".join(trace)
        )

    def reportinfo(self):
        return self.path, None, f"{self.path.name}: {self.name}"
