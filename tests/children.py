"Processes that a test starts: none outlives it"

import signal
import sys
import threading
from subprocess import Popen, TimeoutExpired

RUNNING: dict[Popen, threading.Timer] = {}
# Where a shell starts tests in the background, interrupts are ignored, by its children too, and Python then sets no
# handler
XVR = f"import signal; signal.signal({signal.SIGINT:d}, signal.default_int_handler); from xvr.cli import main; main()"
COMMAND = [sys.executable, "-u", "-c", XVR]  # `xvr` as somebody types it, who can interrupt it


def started(
    process: Popen,
    seconds: float = 300,  # After which it is killed, so that nobody waits for it forever
) -> Popen:
    "The same process, which ends with the test whatever happens"
    RUNNING[process] = threading.Timer(seconds, process.kill)
    RUNNING[process].daemon = True
    RUNNING[process].start()
    return process


def end_children():
    "End what still runs"
    while RUNNING:
        process, timer = RUNNING.popitem()
        timer.cancel()
        if process.poll() is None:
            process.terminate()  # so that torchrun can end its own children
        try:
            process.communicate(timeout=10)
        except TimeoutExpired:
            process.kill()
            process.communicate()
        except ValueError:  # its pipes are closed: it was waited for
            process.wait()
