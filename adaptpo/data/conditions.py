"""Which rows of a data set are read, by declared conditions on their columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from adaptpo.errors import DataError
from adaptpo.types import Row

MINUS = " - "


@dataclass(frozen=True)
class Condition:
    """What a value must be. Bounds hold for numbers, and for text that is one (CSV files have nothing else).

    >>> Condition(at_least=7, below=9).holds("8.5"), Condition(any_of=["en"]).holds("de")
    (True, False)
    """

    any_of: Sequence[Any] | None = None
    none_of: Sequence[Any] | None = None
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: Any) -> bool:
        if self.any_of is not None and not any(same(value, one) for one in self.any_of):
            return False
        if self.none_of is not None and any(same(value, one) for one in self.none_of):
            return False
        return self._bounds_hold(value)

    def _bounds_hold(self, value: Any) -> bool:
        low, high = self.at_least, self.at_most
        if (low, high, self.above, self.below) == (None, None, None, None):
            return True
        number = as_number(value)
        if math.isnan(number) or (low is not None and number < low) or (high is not None and number > high):
            return False
        return (self.above is None or number > self.above) and (self.below is None or number < self.below)


def same(value: Any, wanted: Any) -> bool:
    """Whether they are equal; text equals a number or truth value that is written so."""
    if isinstance(value, str) and isinstance(wanted, bool | int | float):
        return value in (str(wanted), str(wanted).lower())
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def as_number(value: Any) -> float:
    """The number, NaN for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


@dataclass(frozen=True)
class RowFilter:
    """Conditions by column, or by difference of two columns (`score_chosen - score_rejected`)."""

    conditions: Mapping[str, Condition]

    def keeps(self, row: Row) -> bool:
        return all(condition.holds(value_of(row, name)) for name, condition in self.conditions.items())

    def refuse_unknown_columns(self, description: str, rows: Iterable[Row]) -> None:
        """Raises DataError for a column that no row has, with the nearest one."""
        first = next(iter(rows), {})
        for name in self.conditions if first else ():
            if any(all(part in row for part in columns_of(row, name)) for row in rows):
                continue
            part = next((part for part in columns_of(first, name) if part not in first), name)
            close = get_close_matches(part, map(str, first), n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"found {', '.join(map(str, first))}."
            raise DataError(f"{description}: the filter reads the column '{part}', which no row has: {hint}")


def columns_of(row: Row, name: str) -> list[str]:
    """The column, or the two columns whose difference the name means."""
    return [name] if name in row else name.split(MINUS, 1)


def value_of(row: Row, name: str) -> Any:
    """The value of the column, or the difference of the two; None if the row lacks the column."""
    columns = columns_of(row, name)
    if len(columns) == 1:
        return row.get(name)
    first, second = (as_number(row.get(column)) for column in columns)
    return first - second
