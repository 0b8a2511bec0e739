"""Rows whose columns have other shapes than those that the rest reads: OpenAI's preference rows, and missing values."""

from __future__ import annotations

from typing import Any

from adaptpo.data.stored import Unreadable, read_literal
from adaptpo.types import Row

OPENAI = {"input", "preferred_output", "non_preferred_output"}
ANSWERS = {"chosen": "preferred_output", "rejected": "non_preferred_output"}


def plain_row(row: Row) -> Row:
    """The row with None for values that are missing (NaN, as pandas has them), and, if it is one of OpenAI's preference
    rows, with its messages, tools and outputs under our names."""
    row = {name: None if _is_nan(value) else value for name, value in row.items()}
    if not row.keys() >= OPENAI or not isinstance(request := _parsed(row["input"]), dict):
        return row
    rest = {name: value for name, value in row.items() if name not in OPENAI}
    asked = {"prompt": request.get("messages"), "tools": request.get("tools")}
    return rest | asked | {name: row[source] for name, source in ANSWERS.items()}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _parsed(value: Any) -> Any:
    try:
        return read_literal(value) if isinstance(value, str) else value
    except Unreadable:
        return value
