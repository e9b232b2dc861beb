"""pytest runs the notebooks: one test a code cell, one shell and one process a notebook, nbdev's flags obeyed.

A cell under a flag in `tst_flags` (`#| slow`, `#| cuda`) is skipped unless the flag is asked for: `NBDEV_FLAGS=slow
pytest`. A cell under `#| eval: false` and a cell that calls `nbdev_export()` are not tests. After a failure the rest of
that notebook is skipped. On Linux a notebook's process is forked from one that has imported the libraries, and has
done nothing else. Notebooks start ahead of their turn, as many as there are cores (four at most, one less while
other tests run); `XVR_TEST_AHEAD=0 pytest` starts each in its turn. `XVR_TEST_SPENT=1 pytest` adds a table of the
time and the memory that each file took.
"""

import ctypes
import gc
import multiprocessing
import os
import sys
import tempfile
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "tools"))  # also of the processes
from notebook_process import serve, spent

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # several notebooks share the cores: threads that wait yield
CACHE = tempfile.TemporaryDirectory(prefix="xvr-cache-", ignore_cleanup_errors=True)  # of the CTs that tests read
os.environ.setdefault("XVR_CACHE", CACHE.name)
SAMPLE = Path(os.environ.get("XVR_DATA", Path(__file__).parent.parent / "shared/data")).resolve() / "wrist"
if SAMPLE.is_dir():  # else it is downloaded where a slow cell needs it
    os.environ.setdefault("XVR_SAMPLES", str(SAMPLE))
for name in ("no_proxy", "NO_PROXY"):  # a lesson's own server is not behind the proxy that a build server may have
    os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))

PROCESSES = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    modules = [f"xvr.{p.stem}" for p in Path(__file__).parent.glob("xvr/[!_]*.py")]
    PROCESSES.set_forkserver_preload(["torch._dynamo", "matplotlib.pyplot", "pandas", "execnb.shell", *modules])


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb":
        return Notebook.from_parent(parent, path=file_path)


# What each file took of the processor's time, what its process holds of the machine's memory, and the most so far

try:
    malloc_trim = ctypes.CDLL(None).malloc_trim  # of glibc, which else keeps what is freed for itself: gigabytes
except (AttributeError, OSError, TypeError):
    malloc_trim = None
SPENT = {}  # By each file: seconds of the processor; memory at its end, and at most, MiB


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    yield
    if (nextitem is not None and nextitem.path == item.path) or isinstance(item, Cell):
        return
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()  # what was compiled
    gc.collect()
    if malloc_trim:
        malloc_trim(0)
    before, (seconds, *held) = sum(took for name, (took, *_) in SPENT.items() if name.endswith(".py")), spent()
    SPENT[item.path.name] = seconds - before, *held


def pytest_terminal_summary(terminalreporter):
    if os.environ.get("XVR_TEST_SPENT"):
        terminalreporter.write_line("seconds of the processor; MiB at the end, and at most")
        for name, (seconds, now, most) in SPENT.items():
            terminalreporter.write_line(f"{seconds:5} {now:5} {most:5}  {name}")


class CellFailed(Exception):
    "A cell raised: the line and the trace of its exception"


class Notebook(pytest.File):
    "A notebook: its cells share a process, which runs all that are wanted, up to the first that fails"

    def collect(self):
        from execnb.nbio import read_nb
        from nbdev.config import get_config
        from nbdev.process import extract_directives

        self.process, self.failed, self.cells, self.wanted = None, None, [], 0
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

    def start(self):
        "Start the notebook's process, unless it was started ahead"
        with STARTING:
            if not self.process:
                self.start_process()

    def start_process(self):
        sources = [cell.source for cell in self.cells[: self.wanted] if not cell.skip]
        self.connection, theirs = PROCESSES.Pipe()
        with theirs:  # so that a process that ends leaves an end of file
            self.process = PROCESSES.Process(target=serve, args=(theirs, self.path, self.config.rootpath, sources))
            self.process.start()

    def receive(self) -> tuple[tuple[str, str] | None, float]:  # What went wrong: a line, and a trace; seconds
        "What the next cell did"
        self.start()
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return (f"the notebook's process ended, exit code {self.process.exitcode}", ""), 0

    def teardown(self):
        if not self.process:
            return
        try:
            SPENT[self.path.name] = self.connection.recv()
        except (EOFError, OSError):
            if not self.failed:  # by the cell that ended it
                raise
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()


# Notebooks ahead of their turn

AHEAD = min(int(os.environ.get("XVR_TEST_AHEAD", 4)), os.cpu_count())  # Each takes up to 3 GB
STARTING = threading.RLock()


def pytest_collection_finish(session):
    cells = [item for item in session.items if isinstance(item, Cell)]
    for cell in cells:
        cell.parent.wanted = max(cell.parent.wanted, cell.parent.cells.index(cell) + 1)
    session.notebooks, session.over = list(dict.fromkeys(cell.parent for cell in cells)), None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    session = item.session
    session.busy = not isinstance(item, Cell)
    if session.over is None:
        session.over = threading.Event()
        threading.Thread(target=keep_ahead, args=(session,), daemon=True).start()


def keep_ahead(session):
    "Start the next notebooks as soon as there is a core for them: one is taken while this process is busy"
    while not session.over.wait(0.2):
        with STARTING:
            running = sum(bool(nb.process and nb.process.is_alive()) for nb in session.notebooks)
            waiting = [nb for nb in session.notebooks if not nb.process]
            for notebook in waiting[: max(0, AHEAD - session.busy - running)]:
                notebook.start()


def pytest_sessionfinish(session):
    if getattr(session, "over", None):
        session.over.set()
    with STARTING:
        for notebook in getattr(session, "notebooks", []):
            if notebook.process and notebook.process.is_alive():
                notebook.process.kill()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if isinstance(item, Cell) and call.when == "call":
        report.duration = item.seconds  # not how long it was waited for
    return report


class Cell(pytest.Item):
    "One code cell; its process runs those before it, too"

    def __init__(self, *, source, skip, **kwargs):
        super().__init__(**kwargs)
        self.source, self.skip, self.ran, self.seconds = source, skip, False, 0

    def runtest(self):
        if self.skip:
            pytest.skip(f"#| {' '.join(self.skip)}: NBDEV_FLAGS='{' '.join(self.skip)}' pytest runs it")
        if self.parent.failed:
            pytest.skip(f"{self.parent.failed} above failed")
        for cell in self.parent.cells[: self.parent.cells.index(self) + 1]:
            if not cell.ran and not cell.skip:
                cell.run()

    def run(self):
        self.ran = True
        failure, self.seconds = self.parent.receive()
        if failure:
            self.parent.failed = self.name
            raise CellFailed(self, *failure)

    def repr_failure(self, excinfo):
        if not isinstance(excinfo.value, CellFailed):
            return super().repr_failure(excinfo)
        cell, line, trace = excinfo.value.args
        lines = (f"{n:4} {text}" for n, text in enumerate(cell.source.splitlines(), 1))
        return f"{cell.path.name}, {cell.name}: {line}\n" + "\n".join(lines) + "\n\n" + trace

    def reportinfo(self):
        return self.path, None, f"{self.path.name}: {self.name}"
