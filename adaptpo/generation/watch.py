"""`python watch.py COMMAND...`: run a command and end it, with all its processes, when standard input closes.

Whoever started this holds the other end of that pipe. The system closes it with them, however they end, SIGKILL
included, so that no server outlives its run. Alone in its file, and started by its path: it imports nothing of ours.
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
"""Seconds between two looks, and for the command to end by itself."""


def watch(command: list[str]) -> int:
    """The command's exit code."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while process.poll() is None and not select.select([sys.stdin], [], [], LOOK_EVERY)[0]:
            pass
    finally:
        end(process)
    return process.returncode


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the command to end, then kill what is left of its process group."""
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
