"""A report that follows a run: written again whenever the run has written something."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from adaptpo.errors import RunError
from adaptpo.report.page import write_report
from adaptpo.report.reading import RunData

SECONDS = 10
WATCHED = ("config.yaml", "state.json", "metrics.jsonl", "dropped.jsonl")


def watch(run: Path, out: Path | None, say: Callable[[str], object] = print, seconds: float = SECONDS) -> Path:
    """Writes the report until the run is finished; the browser loads the open page again by itself.

    Returns the path of the page. Waits for a run that has not begun. Raises RunError for a folder that holds other
    things, and for files that cannot be read.
    """
    page, seen = None, None
    while True:
        if (run / "config.yaml").is_file():
            now = stamp(run)
            if now != seen:
                done = finished(run)
                page, seen = write_report(run, out, refresh=None if done else max(1, round(seconds))), now
                say(f"{page}: {'finished' if done else 'written'} at {time.strftime('%H:%M:%S')}")
                if done:
                    return page
        elif run.is_dir() and any(run.iterdir()):
            raise RunError(f"{run} holds other things than a run; pass the output_dir of the recipe")
        time.sleep(seconds)


def stamp(run: Path) -> tuple[float, ...]:
    """When the run last wrote its files."""
    return tuple(path.stat().st_mtime if (path := run / name).exists() else 0.0 for name in WATCHED)


def finished(run: Path) -> bool:
    return bool(RunData.open(run).phases.get("final", {}).get("done"))
