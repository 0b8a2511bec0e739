"""Read what one side of a vote answered: a run folder, or a file of prompts and responses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptpo.data.conventions import as_turns, in_context, parts_beside
from adaptpo.data.conversation import spoken
from adaptpo.data.files import ACCEPTED_SUFFIXES, read_file, without_filled_nulls
from adaptpo.data.messages import check_prompt, normalize_messages
from adaptpo.data.problems import EMPTY_PROMPT, NOT_TEXT, RowProblem
from adaptpo.data.transcripts import is_transcript, prompt_messages
from adaptpo.errors import DataError
from adaptpo.report.reading import RunData, stage_order
from adaptpo.types import Message, Row

Dialogue = tuple[tuple[str, str], ...]
"""Turns of (role, content)."""
NAMES = {"prompt": ("prompt", "instruction"), "response": ("response", "output")}
"""Accepted columns; the second of each are AlpacaEval's."""
NO_RESPONSE = "no response"
NO_RECIPE = (
    "`adaptpo vote` reads no recipe: write what is to be shown into the prompt, or rename the column in the file."
)
REPEATED = "a prompt that stood in an earlier row"


@dataclass(frozen=True)
class Side:
    """Responses by prompt, in the order of the file. `left_out` counts rows by reason; `models` are names to hide."""

    name: str
    source: Path
    responses: dict[Dialogue, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    models: set[str] = field(default_factory=set)

    def add(self, row: Row) -> None:
        try:
            prompt, response = dialogue(prompt_of(row), row), answer_text(value_of(row, "response"))
        except RowProblem as problem:
            self.left_out[str(problem)] += 1
            return
        if prompt in self.responses:
            self.left_out[REPEATED] += 1
        else:
            self.responses[prompt] = response


def read_side(source: Path) -> Side:
    """The responses of a run folder (its last evaluation) or of a file.

    Raises DataError or RunError when there are none, or a file cannot be read.
    """
    side = Side(str(source), last_evaluation(source) if source.is_dir() else source)
    run = run_of(side.source)
    side.models.update(model_names(run))
    for number, row in enumerate(rows_of(side.source, stored=run is not None)):
        side.models.update(str(row[name]) for name in ("generator", "model") if isinstance(row.get(name), str))
        try:
            side.add(row)
        except DataError as error:
            raise DataError(f"{side.source}, row {number}: {error} {NO_RECIPE}") from error
    if not side.responses:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in side.left_out.items()) or "no rows"
        raise DataError(f"{side.source} holds no response to vote on ({reasons}); name another run or file")
    return side


def last_evaluation(run: Path) -> Path:
    paths = RunData.open(run).files("evaluation/*.parquet")
    if not paths:
        raise DataError(
            f"{run} keeps no held-out responses: evaluation/ is empty. Train with `eval_data`, or give a file of "
            "prompts and responses instead of the run."
        )
    return max(paths, key=lambda path: stage_order(path.stem))


def run_of(path: Path) -> RunData | None:
    """The run whose evaluation this file is, if it is one."""
    root = path.resolve().parent.parent
    return RunData.open(root) if path.parent.name == "evaluation" and (root / "config.yaml").is_file() else None


def model_names(run: RunData | None) -> set[str]:
    return set() if run is None else {Path(str(run.config.get("model", ""))).name}


def rows_of(path: Path, stored: bool) -> Iterator[Row]:
    """The rows of a file. `stored`: a run wrote it, with prompts as JSON."""
    if not path.is_file():
        raise DataError(
            f"{path} is neither a run folder nor a file; name a folder that `adaptpo train` wrote, or a file with "
            f"`prompt` and `response` ending in {', '.join(ACCEPTED_SUFFIXES)}"
        )
    rows = read_file(path)
    for number, row in enumerate(map(without_filled_nulls, rows) if path.suffix == ".parquet" else rows):
        if number == 0:
            check_columns(path, row)
        yield row | {"prompt": json.loads(row["prompt"])} if stored else row


def check_columns(path: Path, row: Row) -> None:
    missing = [name for name, accepted in NAMES.items() if not any(other in row for other in accepted)]
    if missing:
        raise DataError(
            f"{path} lacks the column {' and '.join(f'`{name}`' for name in missing)} (found {', '.join(row)}); "
            "rename its columns to `prompt` and `response`"
        )


def value_of(row: Row, column: str) -> Any:
    return next((row[name] for name in NAMES[column] if row.get(name) is not None), None)


def prompt_of(row: Row) -> Any:
    """Alpaca's `input` is a part of its `instruction`."""
    found, beside = value_of(row, "prompt"), row.get("input")
    joins = row.get("prompt") is None and isinstance(found, str) and isinstance(beside, str) and beside.strip()
    return f"{found}\n{beside}" if joins else found


def dialogue(prompt: Any, row: Row | None = None) -> Dialogue:
    """The turns of a prompt, after the system text and history of its row; the same for text and for one user message
    with this text.

    Raises RowProblem for anything that no policy could have answered, DataError for a row with a part of the prompt
    that cannot be shown.
    """
    messages = as_messages(prompt)
    check_prompt(messages)
    around = {name: (row or {})[name] for name in parts_beside(row or {})}
    shown = as_turns(in_context(messages, around, is_text=False), "user")
    return tuple((message["role"], spoken(message).strip()) for message in shown)


def as_messages(prompt: Any) -> list[Message]:
    if isinstance(prompt, list):
        return normalize_messages(prompt)
    if not isinstance(prompt, str):
        raise RowProblem(NOT_TEXT if prompt is not None else EMPTY_PROMPT)
    return prompt_messages(prompt) if is_transcript(prompt) else [{"role": "user", "content": prompt}]


def answer_text(response: Any) -> str:
    """The text of a response, without the spaces around it: they would tell tokenizers apart.

    Raises RowProblem where there is none.
    """
    if isinstance(response, list):
        response = "\n\n".join(contents(normalize_messages(response)))
    if response is not None and not isinstance(response, str):
        raise RowProblem(NOT_TEXT)
    if not response or not response.strip():
        raise RowProblem(NO_RESPONSE)
    return str(response.strip())


def contents(messages: Iterable[Message]) -> Iterator[str]:
    return (spoken(message) for message in messages if message["role"] == "assistant")
