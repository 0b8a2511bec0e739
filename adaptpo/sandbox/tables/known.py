"""Runs that were measured elsewhere: read from the JSON files of their tables, by what was run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptpo.errors import ConfigError
from adaptpo.sandbox.tables.cells import Cell, Outcome

Known = Mapping[str, Mapping[str, Any]]
"""Records of measured cells, by `Cell.key`."""


def read_known(files: Sequence[Path]) -> Known:
    """The measured cells in these files; if several have a cell, the first one's.

    Raises ConfigError for a file that is not a table's.
    """
    return {key: cell for path in reversed(files) for key, cell in keyed_cells(path).items()}


def keyed_cells(path: Path) -> Known:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        measured = [cell for row in rows for cell in row["cells"] if cell["error"] is None]
        return {key_text(cell["key"]): cell for cell in measured}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--known {path} is not the JSON file of a table ({type(error).__name__}: {error}); a table of this "
            "version writes it to tables/ below its --out"
        ) from error


def key_text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def known_outcome(cell: Cell, known: Known) -> Outcome | None:
    """The cell's outcome by its record; None if it has none."""
    if (record := known.get(key_text(cell.key))) is None:
        return None
    return Outcome(cell, Path(record["run"]), cell.world.measurement.from_record(record))


def check_worlds(outcomes: Sequence[Outcome]) -> None:
    """Raises ConfigError if runs of one world were measured in several builds of it.

    Machines round differently, so the same seed gives each of them other models; rows are compared in one world.
    """
    before: dict[str, float] = {}
    for outcome in outcomes:
        cell, found = outcome.cell, outcome.measurement
        if found is not None and cell.start is None:
            first = before.setdefault(cell.world.key, found.sft_reward)
            if first != found.sft_reward:
                raise ConfigError(
                    f"the runs in {cell.world.name} come from several builds of that world: its policy before training "
                    f"has {first:.4f} in one and {found.sft_reward:.4f} in another; let each machine build worlds of "
                    "its own (--first), or leave one of the files out"
                )
