"""Answers side by side on one page, for reading."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptpo.errors import DataError
from adaptpo.evaluation.comparing import Entry, Run, read_entries
from adaptpo.evaluation.folder import EvaluationFolder
from adaptpo.evaluation.refusal.detector import refuses
from adaptpo.evaluation.suite import Answer, Question
from adaptpo.report.page import template
from adaptpo.run.files import write_text

BASELINE_LABEL = "baseline"


@dataclass(frozen=True)
class Side:
    """A run on the page: its name, what it answered and what each answer scored."""

    name: str
    run: Run
    answers: dict[str, Answer]

    def value(self, key: str) -> float:
        return self.run.scores[key].value


@dataclass(frozen=True)
class ShownAnswer:
    label: str
    note: str
    text: str


@dataclass(frozen=True)
class ShownTurn:
    question: str
    answers: list[ShownAnswer]


@dataclass(frozen=True)
class ShownCase:
    """A question with the answers of all runs, turn by turn."""

    note: str
    turns: list[ShownTurn]


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    note: str
    cases: list[ShownCase]


def write_cases(arguments: Sequence[str], out: Path, count: int = 8, seed: int = 0) -> Path:
    """Write one self-contained page of answers of scored evaluations; of several seeds the first is shown.

    Raises DataError where the runs answered no question in common.
    """
    entries = read_entries(arguments)
    sides = [side_of(entry) for entry in entries]
    folder = EvaluationFolder(sides[0].run.path)
    keys = [question.id for question in folder.questions() if all(shown(side, question.id) for side in sides)]
    if not keys:
        raise DataError("these runs answered no question in common; judge them on the same questions")
    page = template("cases.html.j2").render(
        title=" against ".join(side.name for side in sides),
        sections=[section for section in sections(folder, sides, keys, count, seed) if section.cases],
        sources=", ".join(str(side.run.path) for side in sides),
    )
    write_text(out, page)
    return out


def side_of(entry: Entry) -> Side:
    run = entry.runs[0]
    return Side(entry.name, run, EvaluationFolder(run.path).answers())


def shown(side: Side, key: str) -> bool:
    return key in side.answers and key in side.run.scores


def sections(
    folder: EvaluationFolder, sides: Sequence[Side], keys: Sequence[str], count: int, seed: int
) -> Iterable[Section]:
    questions = {question.id: question for question in folder.questions()}
    baseline = folder.baseline()

    def section(name: str, title: str, note: str, chosen: Sequence[str]) -> Section:
        cases = [shown_case(questions[key], sides, baseline.get(key)) for key in chosen[:count]]
        return Section(name, title, note, cases)

    first, last = sides[0], sides[-1]
    gain: Callable[[str], float] = lambda key: last.value(key) - first.value(key)  # noqa: E731
    ranked = sorted(keys, key=lambda key: (-gain(key), key))
    wins, losses = [key for key in ranked if gain(key) > 0], [key for key in reversed(ranked) if gain(key) < 0]
    refused = [key for key in keys if any(refuses(turn) for side in sides for turn in side.answers[key].turns)]
    talks = [key for key in keys if len(questions[key].turns) > 1]
    sample = random.Random(seed).sample(list(keys), min(count, len(keys)))
    yield section("wins", "Largest wins", f"Where {last.name} scored most above {first.name}.", wins)
    yield section("losses", "Largest losses", f"Where {last.name} scored most below {first.name}.", losses)
    yield section("refusals", "Refusals", "Where an answer holds words of refusal, found by string match.", refused)
    yield section("conversations", "Conversations", "Questions of several turns.", talks)
    yield section("sample", "A sample", f"Drawn with seed {seed}, whatever the scores.", sample)


def shown_case(question: Question, sides: Sequence[Side], baseline: Answer | None) -> ShownCase:
    scores = ", ".join(f"{side.name} {side.value(question.id):.3g}" for side in sides)
    category = f"{question.category} · " if question.category else ""
    turns = [shown_turn(number, text, question.id, sides, baseline) for number, text in enumerate(question.turns)]
    return ShownCase(f"{category}{scores}", turns)


def shown_turn(number: int, text: str, key: str, sides: Sequence[Side], baseline: Answer | None) -> ShownTurn:
    own = [shown_answer(side.name, side.answers[key], number) for side in sides]
    others = [] if baseline is None else [shown_answer(BASELINE_LABEL, baseline, number)]
    return ShownTurn(text, [answer for answer in own + others if answer is not None])


def shown_answer(label: str, answer: Answer, turn: int) -> ShownAnswer | None:
    if turn >= len(answer.turns):
        return None
    text = answer.turns[turn]
    cut = " · cut off" if turn < len(answer.ended) and not answer.ended[turn] else ""
    return ShownAnswer(label, f"{len(text):,} characters{cut}", text)
