"""Checks once, on the first row, that a data set has the required columns."""

from __future__ import annotations

from difflib import get_close_matches

from adaptpo.errors import DataError
from adaptpo.types import Row

USUAL_OTHER_NAMES = {
    "prompt": ("question", "instruction", "query", "input", "context", "prompts"),
    "chosen": ("response_j", "chosen_response", "response_chosen", "preferred", "accepted", "winner", "positive"),
    "rejected": ("response_k", "rejected_response", "response_rejected", "dispreferred", "loser", "negative"),
}
ACCEPTED = "accepted: `chosen` and `rejected`, with `prompt` if they do not contain it"


def is_preference_row(row: Row) -> bool:
    """Whether the row has both responses."""
    return "chosen" in row and "rejected" in row


def check_preference_columns(row: Row, implicit_prompt_is_text: bool) -> None:
    """Raises DataError unless `chosen` and `rejected` exist and no other column is evidently the prompt.

    `implicit_prompt_is_text`: the responses are plain strings. Without a `prompt` column, their common beginning would
    be taken for the prompt. A column such as `question` beside them is therefore an error.
    """
    missing = [name for name in ("chosen", "rejected") if name not in row]
    if "prompt" not in row and (missing or implicit_prompt_is_text) and _meant_column("prompt", row):
        missing.insert(0, "prompt")
    _raise_if_missing(missing, row, ACCEPTED)


def check_prompt_columns(row: Row) -> None:
    """Raises DataError unless the row of a prompt-only data set has a `prompt`."""
    missing = [] if "prompt" in row else ["prompt"]
    _raise_if_missing(missing, row, "accepted: `prompt`, or `chosen` and `rejected`")


def _raise_if_missing(missing: list[str], row: Row, accepted: str) -> None:
    if not missing:
        return
    renames = {name: meant for name in missing if (meant := _meant_column(name, row))}
    advice = "; ".join(f"rename `{meant}` to `{name}`" for name, meant in renames.items()) or "rename the columns"
    raise DataError(
        f"the data set lacks the column {', '.join(f'`{name}`' for name in missing)}: "
        f"found {', '.join(map(str, row)) or 'none'}; {accepted}. To fix it, {advice}."
    )


def _meant_column(name: str, row: Row) -> str | None:
    known = [other for other in USUAL_OTHER_NAMES[name] if other in row]
    taken = {"prompt", "chosen", "rejected"}
    close = get_close_matches(name, [str(column) for column in row if column not in taken], n=1, cutoff=0.75)
    return next(iter([*known, *close]), None)
