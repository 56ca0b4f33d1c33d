"""Processes in the background, which no test leaves behind."""

import contextlib
import os
import subprocess
import time

STOP_TIMEOUT_S = 120


@contextlib.contextmanager
def started(command, **options):
    """A process that is killed at the end of the block if it is still there, stopped or not."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def stops(process):
    """Waits until a process stops itself: whether it has; false if it ended instead, and then its status is left for wait()."""
    end = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < end:
        found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is not None:
            return found.si_code == os.CLD_STOPPED
        time.sleep(0.005)
    raise AssertionError("the process neither stops nor ends")
