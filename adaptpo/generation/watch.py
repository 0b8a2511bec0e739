"""`python watch.py COMMAND...`: runs a command and ends it, with all its processes, when standard input closes.

The process that started this holds the other end of that pipe. The system closes the pipe when that process ends, even
by SIGKILL: no server outlives its run. This file is started by its path and imports nothing from adaptpo.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

LOOK_EVERY, GRACE = 0.1, 10.0
"""Seconds between two checks, and for the command to end by itself."""


def watch(command: list[str]) -> int:
    """Runs the command until it ends or standard input closes; returns its exit code."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while process.poll() is None and not select.select([sys.stdin], [], [], LOOK_EVERY)[0]:
            pass
    finally:
        end(process)
    return process.returncode


def end(process: subprocess.Popen[bytes]) -> None:
    """Asks the command to end, then kills the rest of its process group."""
    until = time.monotonic() + GRACE
    if process.poll() is None:
        process.terminate()
    while process.poll() is None and time.monotonic() < until:
        time.sleep(LOOK_EVERY)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(watch(sys.argv[1:]))
