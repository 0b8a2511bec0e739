"""What each process of the tests does first, so that runs of tiny models do not wait for what only big ones need."""

from __future__ import annotations

import gc
import os


def leave_out_of_collections() -> None:
    """Leaves what there is now out of every later collection of garbage: a run makes one before each model that it
    loads, and over all that the libraries hold each takes as long as the model."""
    gc.collect()
    gc.freeze()


def wait_for_no_disk() -> None:
    """Flushing guards against a power cut, and no test cuts the power. What is flushed, and when, is tested in
    tests/test_run_directory.py; processes that tests start as a user would do flush."""
    os.fsync = lambda descriptor: None
