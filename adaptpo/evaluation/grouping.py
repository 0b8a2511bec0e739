"""Rows of several models in one file, and what they say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from adaptpo.errors import DataError
from adaptpo.evaluation.result import UNKNOWN, Origin
from adaptpo.types import Row


def by_model(rows: Sequence[Row], columns: Sequence[str], chosen: str | None) -> dict[str, list[Row]]:
    """The rows of each model, or of the chosen one. Raises DataError where that has none."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = next((row[column] for column in columns if row.get(column)), UNKNOWN)
        found.setdefault(str(name), []).append(row)
    if chosen is not None and chosen not in found:
        raise DataError(f"there is no model '{chosen}' here; found {', '.join(found)}")
    return found if chosen is None else {chosen: found[chosen]}


def origin_of(
    rows: Sequence[Row], known: Origin, model: str, judge: str = "judge", baseline: str = "baseline"
) -> Origin:
    """`known`, completed by what the rows say in these columns."""
    said = {"model": model, "judge": said_in(rows, judge), "baseline": said_in(rows, baseline)}
    return replace(known, **{name: value for name, value in said.items() if getattr(known, name) == UNKNOWN})


def said_in(rows: Sequence[Row], column: str) -> str:
    values: dict[Any, None] = dict.fromkeys(name_of(row[column]) for row in rows if row.get(column))
    return " and ".join(map(str, values)) or UNKNOWN


def name_of(value: Any) -> str:
    """FastChat writes a judge's name and its template."""
    return str(value[0]) if isinstance(value, list) and value else str(value)
