"""What the launcher of several processes (torchrun, accelerate) set in the environment."""

from __future__ import annotations

import os


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")


def process_count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_process_count() -> int:
    """Number of the run's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first_process() -> bool:
    return process_count() == 1 or os.environ.get("RANK") == "0"


def name_of_process() -> str:
    """The process's name for messages; empty if it was started alone."""
    return "" if process_count() == 1 else f" (process {os.environ.get('RANK', '?')} of {process_count()})"
