"""Reference answers that a judge compares with, and the questions that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adaptpo.data import open_rows
from adaptpo.errors import DataError
from adaptpo.evaluation.answers import KEYS, read_answers
from adaptpo.evaluation.suite import Case, Question
from adaptpo.types import Row

COLUMN = "reference_answer"
COLUMNS = (COLUMN, "reference")
Turns = tuple[str, ...]


@dataclass(frozen=True)
class References:
    """The references of a file, one text a turn, by the question's id, and by its turns where the file holds them."""

    name: str
    by_id: Mapping[str, Turns]
    by_turns: Mapping[Turns, Turns] = field(default_factory=dict)

    def of(self, question: Question) -> Turns | None:
        return self.by_turns.get(question.turns) or self.by_id.get(question.id)


def reference_in(row: Row) -> Turns:
    """The reference in a question's own columns; empty where it has none."""
    found = next((row[name] for name in COLUMNS if row.get(name)), ())
    texts = (found,) if isinstance(found, str) else tuple(found)
    return texts if any(texts) else ()


def read_references(path: Path | str) -> References:
    """FastChat's `reference_answer`, or questions that hold their references. Raises DataError for anything else."""
    questions = [(row, found) for row in open_rows(path) if (found := reference_in(row))]
    if not questions:
        answers = read_answers(path).answers
        return References(Path(path).name, {key: answer.turns for key, answer in answers.items()})
    by_id = {key_of(row): found for row, found in questions}
    return References(Path(path).name, by_id, {turns_of(row): found for row, found in questions})


def key_of(row: Row) -> str:
    return next((str(row[name]) for name in (*KEYS, "prompt_id") if row.get(name) is not None), "")


def turns_of(row: Row) -> Turns:
    found = row.get("turns") or row.get("prompt") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def matched(cases: Sequence[Case], references: References) -> int:
    """How many questions the file has a reference for. Raises DataError where it is none."""
    count = sum(references.of(case.question) is not None for case in cases)
    if not count:
        raise DataError(
            f"{references.name} has no reference for any of {len(cases)} questions: their ids differ (the first "
            f"question's is {cases[0].question.id if cases else 'missing'}). FastChat's references belong to its "
            "question.jsonl: generate with --questions question.jsonl, or leave --references out for the questions' own"
        )
    return count


def with_references(case: Case, references: References) -> Case:
    """With the file's reference in place of the question's own."""
    found = references.of(case.question)
    if found is None:
        return case
    columns = case.question.columns | {COLUMN: list(found)}
    return replace(case, question=replace(case.question, columns=columns))
