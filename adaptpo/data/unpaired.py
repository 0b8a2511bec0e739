"""Reads unpaired rows, which have one response and a verdict on it, as TRL's KTOTrainer takes them.

Such a row is read like a pair, by the same rules, with a placeholder in the place of the response that it lacks.
"""

from __future__ import annotations

from collections.abc import Iterable

from adaptpo.data.conversation import words_of
from adaptpo.data.messages import message, read_text
from adaptpo.types import Row, Side, Text

VERDICTS = ("label", "kto_tag")
WRITTEN = {"true": True, "1": True, "false": False, "0": False}
RESPONSES = ("completion", "response", "output", "messages", "conversations")
PAIRED = frozenset({"chosen", "rejected", "rejected_response", "rejected_messages"})
PLACEHOLDERS = ("none", "no response")


def is_unpaired_row(row: Row) -> bool:
    """Whether the row has one response and a verdict: true or false, or 1 or 0, or one of these as text."""
    return PAIRED.isdisjoint(row) and _named(row, RESPONSES) is not None and _verdict(row) is not None


def unread_verdict(row: Row) -> str | None:
    """The column that should say whether the row's one response is good and says neither, if there is one."""
    name = _named(row, VERDICTS)
    alone = PAIRED.isdisjoint(row) and _named(row, RESPONSES) is not None
    return name if alone and name is not None and _verdict(row) is None else None


def absent_side(row: Row) -> Side | None:
    """The side of a pair that an unpaired row lacks; None for every other row."""
    if not is_unpaired_row(row):
        return None
    return "rejected" if _verdict(row) else "chosen"


def with_partner(row: Row) -> Row:
    """The row as a pair, with a placeholder for the response that it lacks; every other row as it is.

    Raises:
        RowProblem: its response is neither text nor messages.
    """
    absent, name = absent_side(row), _named(row, RESPONSES)
    if absent is None or name is None:
        return row
    response = read_text(row[name])
    present = "chosen" if absent == "rejected" else "rejected"
    rest = {key: value for key, value in row.items() if key != name}
    return rest | {present: response, absent: _placeholder(response)}


def _placeholder(response: Text | None) -> Text:
    """A response that differs from this one, after the same prompt."""
    if isinstance(response, list) and response:
        return [*response[:-1], message("assistant", _placeholder(words_of(response[-1])))]  # type: ignore[arg-type]
    return next(words for words in PLACEHOLDERS if words != response)


def _verdict(row: Row) -> bool | None:
    value = row.get(_named(row, VERDICTS) or "")
    if isinstance(value, str):  # CSV files have nothing else.
        return WRITTEN.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _named(row: Iterable[str], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in row), None)


def how_to_pair(columns: Row, prompt: Text) -> str:
    """The remedy for a method that compares two responses, given an unpaired row's columns and prompt."""
    response, verdict = _named(columns, RESPONSES), _named(columns, VERDICTS)
    return WAY_TO_PAIRS + (WITH_PANDAS.format(response=response, verdict=verdict) if isinstance(prompt, str) else "")


WAY_TO_PAIRS = (
    "each row has one response and a verdict on it (unpaired data, as TRL's KTOTrainer takes them). The methods kto, "
    "apo_zero and bco_pair train on it. This one compares two responses to one prompt: pair each good response with a "
    "bad one to the same prompt, as `chosen` and `rejected`. Prompts without both kinds can be the `prompt` column of "
    "`eval_data`."
)
WITH_PANDAS = (
    " With pandas: `good, bad = d[d.{verdict}], d[~d.{verdict}]`, then `good.merge(bad, on='prompt')`, whose columns "
    "`{response}_x` and `{response}_y` become `chosen` and `rejected`."
)
