"""Files of answers: ours, AlpacaEval's, Arena-Hard's and FastChat's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptpo.data import open_rows
from adaptpo.data.stored import is_message
from adaptpo.errors import DataError
from adaptpo.evaluation.result import UNKNOWN
from adaptpo.evaluation.suite import Answer
from adaptpo.types import Row

KEYS = ("id", "question_id", "uid", "instruction")
MODELS = ("model", "model_id", "generator")


@dataclass(frozen=True)
class Answered:
    """A model's answers by question."""

    model: str
    answers: Mapping[str, Answer]


def read_answers(path: Path | str) -> Answered:
    """Raises DataError for a row that is no answer, or for answers of several models."""
    rows = list(open_rows(path))
    models = {str(next((row[name] for name in MODELS if row.get(name)), UNKNOWN)) for row in rows}
    if len(models) != 1:
        raise DataError(f"{path} holds answers of {len(models)} models; give a file of one model's answers")
    return Answered(models.pop(), {answer.id: answer for answer in answers_of(rows, str(path))})


def read_several(paths: Sequence[Path | str]) -> Answered:
    """One baseline in several files, as Arena-Hard v2.0 has one for each category."""
    files = [read_answers(path) for path in paths]
    answers: dict[str, Answer] = {}
    for file in files:
        if shared := answers.keys() & file.answers.keys():
            raise DataError(f"two baselines answer the same question, for instance {min(shared)[:60]!r}; give one each")
        answers |= file.answers
    return Answered(" and ".join(file.model for file in files), answers)


def answers_of(rows: Iterable[Row], place: str) -> list[Answer]:
    return [answer_of(row, f"{place}, row {number}") for number, row in enumerate(rows)]


def answer_of(row: Row, place: str) -> Answer:
    key = next((row[name] for name in KEYS if row.get(name) is not None), None)
    turns = turns_of(row)
    if key is None or turns is None or None in turns:
        raise DataError(
            f"{place}: no answer (it holds {', '.join(row)}); accepted are files of `adaptpo eval generate`, "
            "AlpacaEval's outputs, Arena-Hard's and FastChat's model_answer"
        )
    return Answer(
        str(key),
        tuple(map(str, turns)),
        tuple(row.get("tokens") or ()),
        tuple(row.get("ended") or ()),
        published_count(row),
    )


def turns_of(row: Row) -> list[str | None] | None:
    """The texts of an answer, whichever benchmark wrote it."""
    if isinstance(row.get("turns"), list):
        return [text_of(turn) for turn in row["turns"]]
    if row.get("choices"):
        return [text_of(turn) for turn in row["choices"][0]["turns"]]
    if row.get("messages"):
        return [text_of(message.get("content")) for message in row["messages"] if message["role"] == "assistant"]
    single = next(
        (row[name] for name in ("output", "content", "answer", "completion") if row.get(name) is not None), None
    )
    return None if single is None else [text_of(single)]


def text_of(value: Any) -> str | None:
    """Arena-Hard v0.1 wraps a turn in `content`, v2.0 in `answer`, and a message may hold its text in parts. An answer
    that is null is empty; None for anything that is no text."""
    if isinstance(value, dict):
        return text_of(value.get("content", value.get("answer")))
    if isinstance(value, list) and len(value) == 1 and is_message(value[0]):
        return text_of(value[0].get("content"))
    if isinstance(value, list) and value and all(map(is_text_part, value)):
        return "".join(part["text"] for part in value)
    return "" if value is None else value if isinstance(value, str) else None


def is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def published_count(row: Row) -> int | None:
    """Arena-Hard's `token_len`, wherever one of its versions writes it."""
    first_turn = next(iter(row["choices"][0].get("turns") or ()), None) if row.get("choices") else None
    places = (row, row.get("metadata"), row.get("conv_metadata"), first_turn)
    counts = [place.get("token_len") for place in places if isinstance(place, dict)]
    return next((int(count) for count in counts if count is not None), None)


def answer_row(answer: Answer, model: str) -> Row:
    """As `answers.jsonl` holds it."""
    return {
        "id": answer.id,
        "model": model,
        "turns": list(answer.turns),
        "tokens": list(answer.tokens),
        "ended": list(answer.ended),
        **({} if answer.token_len is None else {"token_len": answer.token_len}),
    }
