"""Ratings in a judge's answers, and their averages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaptpo.errors import DataError
from adaptpo.evaluation.intervals import Interval, clustered_mean
from adaptpo.evaluation.result import Number, Origin, PromptScore, Result
from adaptpo.types import Row

SUITE = "MT-Bench"
DOUBLE = re.compile(r"\[\[(\d+\.?\d*)\]\]")
SINGLE = re.compile(r"\[(\d+\.?\d*)\]")
NO_RATING, OUT_OF_RANGE = "without a rating", "rating outside 1 to 10"
LOWEST, HIGHEST = 1.0, 10.0


@dataclass(frozen=True)
class Rating:
    """Of one turn; `value` is None where the judge gave none."""

    question: str
    turn: int
    value: float | None
    problem: str = ""


def rating_of(text: str) -> tuple[float | None, str]:
    """The first number in double brackets, else the first in single ones; None with the reason where there is none."""
    found = DOUBLE.search(text) or SINGLE.search(text)
    if found is None:
        return None, NO_RATING
    value = float(found[1])
    return (value, "") if LOWEST <= value <= HIGHEST else (None, OUT_OF_RANGE)


def read_ratings(rows: Iterable[Row]) -> list[Rating]:
    """FastChat's judgments of one model, or ours."""
    return [Rating(str(row["question_id"]), int(row["turn"]), *rating_in(row)) for row in rows]


def rating_in(row: Row) -> tuple[float | None, str]:
    """A judgment with a problem, such as one that was cut off, has no rating."""
    return (None, row["problem"]) if row.get("problem") else rating_of(row["judgment"] or "")


def score(ratings: Sequence[Rating], origin: Origin, categories: Mapping[str, str]) -> Result:
    """Means over all valid ratings, over each turn, and over each category (by question).

    Raises DataError where no rating is valid.
    """
    valid = [rating for rating in ratings if rating.value is not None]
    if not valid:
        raise DataError(f"none of {len(ratings)} judgments holds a rating such as [[7]]; look at the judge's answers")
    return Result(
        suite=SUITE,
        origin=origin,
        n=len(valid),
        invalid=Counter(rating.problem for rating in ratings if rating.value is None),
        numbers=[mean("score", valid), *by_turn(valid), *by_category(valid, categories)],
        scores=question_scores(valid, categories),
        warnings=[*duplicates(ratings), *incomplete(ratings)],
    )


def mean(name: str, ratings: Sequence[Rating]) -> Number:
    return Number(name, float(np.mean(values(ratings))), interval(ratings))


def values(ratings: Sequence[Rating]) -> np.ndarray:
    return np.array([rating.value for rating in ratings], dtype=np.float64)


def interval(ratings: Sequence[Rating]) -> Interval | None:
    """Over questions, whose turns are not independent."""
    questions = [rating.question for rating in ratings]
    return clustered_mean(values(ratings), questions) if len(set(questions)) > 1 else None


def by_turn(ratings: Sequence[Rating]) -> list[Number]:
    turns = sorted({rating.turn for rating in ratings})
    return [mean(f"turn {turn}", [rating for rating in ratings if rating.turn == turn]) for turn in turns]


def by_category(ratings: Sequence[Rating], categories: Mapping[str, str]) -> list[Number]:
    names = dict.fromkeys(categories[rating.question] for rating in ratings if rating.question in categories)
    parts = {name: [rating for rating in ratings if categories.get(rating.question) == name] for name in names}
    return [mean(name, part) for name, part in parts.items()]


def question_scores(ratings: Sequence[Rating], categories: Mapping[str, str]) -> list[PromptScore]:
    """The mean rating of each question."""
    by_question: dict[str, list[float]] = {}
    for rating in ratings:
        by_question.setdefault(rating.question, []).append(float(rating.value or 0))
    return [
        PromptScore(key, float(np.mean(found)), categories.get(key, ""), float(len(found)))
        for key, found in by_question.items()
    ]


def duplicates(ratings: Sequence[Rating]) -> list[str]:
    counts = Counter((rating.question, rating.turn) for rating in ratings)
    several = sum(count > 1 for count in counts.values())
    if not several:
        return []
    return [
        f"{several} turns are judged more than once ({len(ratings)} judgments of {len(counts)} turns): is this one "
        "model, judged twice, or two under one name?"
    ]


def incomplete(ratings: Sequence[Rating]) -> list[str]:
    """A warning where some question lacks a turn that others have."""
    turns = {rating.turn for rating in ratings}
    questions = {rating.question for rating in ratings}
    missing = len(turns) * len(questions) - len({(rating.question, rating.turn) for rating in ratings})
    return [f"{missing} turns have no judgment; the means are over the others"] if missing else []
