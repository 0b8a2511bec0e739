"""The numbers of a pair that training reads from its row: the columns `weight` and `margin`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from adaptpo.data.conditions import as_number

NO_WEIGHT = "no column 'weight', which the method uses as weights"
BAD_WEIGHT = "weight is not a finite number of 0 or more"
BAD_MARGIN = "margin is not a finite number, and the reward model trains with it (another use needs another name)"


def data_weight(columns: dict[str, Any]) -> float | None:
    """The column `weight` of a row: 1 if the row has none, None unless it is a finite number of at least 0."""
    value = _finite(columns.get("weight", 1.0))
    return value if value is not None and value >= 0 else None


def data_margin(columns: dict[str, Any]) -> float | None:
    """The column `margin` of a row, the least lead of the chosen response's reward: 0 if the row has none, None unless
    it is a finite number."""
    value = columns.get("margin")
    return 0.0 if value is None else _finite(value)


def number_problem(columns: dict[str, Any], needed: Sequence[str]) -> str | None:
    """Why the row cannot be used where these of its numbers are needed."""
    if "weight" in needed and "weight" not in columns:
        return NO_WEIGHT
    if "weight" in needed and data_weight(columns) is None:
        return BAD_WEIGHT
    return BAD_MARGIN if "margin" in needed and data_margin(columns) is None else None


def _finite(value: Any) -> float | None:
    """The number, or the one that a text is, as in CSV files."""
    try:
        number = float(value) if isinstance(value, bool | int | float) else as_number(value)
    except OverflowError:  # An integer that no float holds.
        return None
    return number if math.isfinite(number) else None
