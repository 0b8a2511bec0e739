"""Turns rows of any accepted format into preference examples and prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from adaptpo.data.columns import check_preference_columns, check_prompt_columns
from adaptpo.data.conventions import SPEAK_OF_A_CHAT, is_preference_row, is_prompt_alone
from adaptpo.data.pairs import TextFormat, split_pair, split_prompt
from adaptpo.data.problems import NO_RESPONSES, NO_VERDICT, RowProblem
from adaptpo.data.shapes import plain_row
from adaptpo.data.source import DataSource, describe, open_rows
from adaptpo.data.unpaired import absent_side, unread_verdict
from adaptpo.errors import DataError
from adaptpo.types import Dropped, PreferenceExample, Row, Text

Numbered = tuple[int, Row]
"""A row with its number in its data set."""
LOOK_AHEAD = 1000
"""The first rows, which decide together what the strings of all rows are."""


@dataclass(frozen=True)
class PromptExample:
    """A prompt without responses; `columns` holds all other columns of the row except `chosen` and `rejected`."""

    row: int
    prompt: Text
    columns: dict[str, Any] = field(default_factory=dict)


def read_examples(
    source: DataSource, split: str = "train", name: str | None = None, text_format: TextFormat = "messages"
) -> Iterator[PreferenceExample | Dropped]:
    """Opens a source and reads its preference examples: `open_rows`, then `iter_examples`."""
    return iter_examples(open_rows(source, split, name), text_format)


def read_prompts(
    source: DataSource, split: str = "train", name: str | None = None, text_format: TextFormat = "messages"
) -> Iterator[PromptExample | Dropped]:
    """Opens a prompt-only or preference data set and reads its prompts: `open_rows`, then `iter_prompts`."""
    return iter_prompts(open_rows(source, split, name), text_format)


def iter_examples(rows: Iterable[Row], text_format: TextFormat = "messages") -> Iterator[PreferenceExample | Dropped]:
    r"""Yields one `PreferenceExample` or `Dropped` per row, in row order; rows count from 0.

    `chosen` and `rejected` may be message lists or strings, with or without `prompt`:

    - Messages: the prompt is what both conversations share, and the response is one assistant message. The responses
      may repeat the prompt or leave it out. Next to conversations that contain the prompt, a string `prompt` is only a
      copy; next to bare replies it is the user's turn. Text parts are joined.
    - HH-RLHF transcripts ("\n\nHuman: ...\n\nAssistant: ..."): the prompt ends with the last "\n\nAssistant:".
      `text_format` "messages" gives chat messages without surrounding whitespace, "text" the strings as they are.
    - Strings with a `prompt` string are taken as they are.
    - Strings without `prompt` and without turns follow TRL's rule: the prompt is their common beginning, here never
      splitting a word. Opening words that both responses share count as prompt; only a `prompt` column avoids this.
    - The columns of other tools, and `system`, `history` and `input` beside the prompt: see `adaptpo.data.conventions`.
    - Messages stored as strings: see `adaptpo.data.stored`.
    - One response with a verdict, `completion` and `label`: see `adaptpo.data.unpaired`.

    Raises:
        DataError: the first row lacks a required column (the message has the columns found and the name probably
            meant), or a row has text beside the prompt that cannot become a part of it.
    """
    yield from read_pairs(enumerate(rows), text_format)


def iter_prompts(rows: Iterable[Row], text_format: TextFormat = "messages") -> Iterator[PromptExample | Dropped]:
    """Yields one `PromptExample` or `Dropped` per row of a prompt-only or preference data set (see `iter_examples`).

    Raises:
        DataError: the rows have neither `prompt` nor `chosen` and `rejected`.
    """
    for example in read_pairs_or_prompts(enumerate(rows), text_format):
        yield example if isinstance(example, PromptExample | Dropped) else _prompt_of(example)


def read_pairs(rows: Iterable[Numbered], text_format: TextFormat) -> Iterator[PreferenceExample | Dropped]:
    """`iter_examples` of rows with their numbers."""
    first, rows = _peek(rows)
    if first is not None:
        check_preference_columns(first)
    for number, row in _alike(rows, first):
        yield _parse_row(number, row, text_format)


def read_pairs_or_prompts(
    rows: Iterable[Numbered], text_format: TextFormat
) -> Iterator[PreferenceExample | PromptExample | Dropped]:
    """The examples of a preference data set, or of a prompt-only one: its first row decides."""
    first, rows = _peek(rows)
    if first is not None and is_preference_row(first):
        yield from read_pairs(rows, text_format)
        return
    if first is not None:
        check_prompt_columns(first)
    for number, row in _alike(rows, first):
        yield _parse_prompt_row(number, row, text_format)


def read_pairs_and_prompts(
    rows: Iterable[Numbered], text_format: TextFormat
) -> Iterator[PreferenceExample | PromptExample | Dropped]:
    """The examples of a data set in which each row has either a pair or a prompt alone."""
    first, rows = _peek(rows)
    if first is not None:
        (check_prompt_columns if is_prompt_alone(first) else check_preference_columns)(first)
    for number, row in _alike(rows, first):
        yield (_parse_prompt_row if is_prompt_alone(row) else _parse_row)(number, row, text_format)


def require_rows(kept: int, dropped: Mapping[str, int], source: DataSource) -> None:
    """Raises DataError, with the count of every reason, if no row of `source` was kept."""
    if kept:
        return
    what = describe(source)
    if not dropped:
        raise DataError(f"{what} holds no rows; check the path and the split.")
    counts = "; ".join(f"{count} x {reason}" for reason, count in sorted(dropped.items(), key=lambda item: -item[1]))
    raise DataError(f"{what}: none of {sum(dropped.values())} rows can be used. Reasons: {counts}.")


def _peek(rows: Iterable[Numbered]) -> tuple[Row | None, Iterable[Numbered]]:
    iterator = ((number, plain_row(row)) for number, row in rows)
    first = next(iterator, None)
    return (None, []) if first is None else (first[1], chain([first], iterator))


def _alike(rows: Iterable[Numbered], first: Row | None) -> Iterator[Numbered]:
    """The rows, all with the columns that decide what a string is: the prompt's, if the first row has it, and those
    that make a string prompt a user's turn, if one of the first rows does. JSON lines may leave out what is empty.

    Raises DataError if a later row is the first with such a column: earlier ones were read as text.
    """
    rows = iter(rows)
    seen = list(islice(rows, LOOK_AHEAD))
    columns = {name: None for name in SPEAK_OF_A_CHAT if any(name in row for _, row in seen)}
    columns |= {"prompt": None} if "prompt" in (first or {}) else {}
    for number, row in chain(seen, rows):
        if isinstance(row.get("prompt"), str) and (late := [n for n in SPEAK_OF_A_CHAT if row.get(n)]):
            refuse_late(number, [name for name in late if name not in columns])
        yield number, columns | row


def refuse_late(number: int, names: Sequence[str]) -> None:
    if names:
        raise DataError(
            f"row {number} is the first with a column `{names[0]}`, which makes a string prompt a user's turn, and the "
            f"first {LOOK_AHEAD} were read as text; give the first row the column too, with null, or write the prompts "
            "as messages."
        )


def _prompt_of(example: PreferenceExample) -> PromptExample:
    return PromptExample(example.row, example.prompt, example.columns)


def _parse_row(number: int, row: Row, text_format: TextFormat) -> PreferenceExample | Dropped:
    if is_prompt_alone(row):
        return Dropped(number, NO_VERDICT if unread_verdict(row) else NO_RESPONSES)
    try:
        prompt, chosen, rejected = split_pair(row, text_format)
    except RowProblem as problem:
        return Dropped(number, str(problem))
    columns = {key: value for key, value in row.items() if key not in ("prompt", "chosen", "rejected")}
    return PreferenceExample(number, prompt, chosen, rejected, columns, absent_side(row))


def _parse_prompt_row(number: int, row: Row, text_format: TextFormat) -> PromptExample | Dropped:
    try:
        prompt = split_prompt(row, text_format)
    except RowProblem as problem:
        return Dropped(number, str(problem))
    columns = {key: value for key, value in row.items() if key not in ("prompt", "chosen", "rejected")}
    return PromptExample(number, prompt, columns)
