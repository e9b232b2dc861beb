"""A notebook's process, which `conftest.py` starts: it runs cells as they come."""

import os
import sys
import traceback
import warnings
from pathlib import Path

import psutil


def memory() -> tuple[int, int]:
    "Of this process: now, and at most, MiB"
    now = psutil.Process().memory_info().rss
    if sys.platform == "win32":
        return now >> 20, psutil.Process().memory_info().peak_wset >> 20
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return now >> 20, most >> (20 if sys.platform == "darwin" else 10)


def serve(connection, path: Path, root: Path):
    "Run cells as they come, and send what went wrong, or None"
    os.environ["IN_TEST"] = "1"
    sys.path.insert(0, str(root))
    os.chdir(path.parent)
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    from execnb.shell import CaptureShell

    shell = CaptureShell(path.name, mpl_format="png")
    while (source := connection.recv()) is not None:
        shell.run(source)
        connection.send(shell.exc and report(shell.exc))
    connection.send(memory())
    shell.reset(new_session=False)  # temporary folders go


def report(error: BaseException) -> tuple[str, str]:
    "Its line, and its trace without the shell's own frames"
    tb = error.__traceback__
    while tb and "IPython" in tb.tb_frame.f_code.co_filename:
        tb = tb.tb_next
    return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(type(error), error, tb))
