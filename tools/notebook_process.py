"""A notebook's process, which `conftest.py` starts: it runs the cells."""

import os
import sys
import time
import traceback
import warnings
from pathlib import Path

import psutil


def spent() -> tuple[int, int, int]:
    "By this process: seconds of the processor, with its children's; memory now, and at most, MiB"
    seconds, now = round(sum(os.times()[:4])), psutil.Process().memory_info().rss
    if sys.platform == "win32":
        return seconds, now >> 20, psutil.Process().memory_info().peak_wset >> 20
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds, now >> 20, most >> (20 if sys.platform == "darwin" else 10)


def serve(connection, path: Path, root: Path, sources: list[str]):
    "Run cells, and send what went wrong in each, or None, and its seconds; the first that fails is the last"
    os.environ["IN_TEST"] = "1"
    sys.path.insert(0, str(root))
    os.chdir(path.parent)
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    from execnb.shell import CaptureShell

    shell = CaptureShell(path.name, mpl_format="png")
    for source in sources:
        began = time.perf_counter()
        shell.run(source)
        connection.send((shell.exc and report(shell.exc), time.perf_counter() - began))
        if shell.exc:
            break
    connection.send(spent())
    shell.reset(new_session=False)  # temporary folders go


def report(error: BaseException) -> tuple[str, str]:
    "Its line, and its trace without the shell's own frames"
    tb = error.__traceback__
    while tb and "IPython" in tb.tb_frame.f_code.co_filename:
        tb = tb.tb_next
    return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(type(error), error, tb))
