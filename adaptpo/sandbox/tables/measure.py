"""Measures one finished run in a world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any, ClassVar, Self

from adaptpo.report.reading import RunData
from adaptpo.report.tables import iteration_counts
from adaptpo.sandbox.tables.labels import label_separation
from adaptpo.sandbox.tables.statistics import win_rate_at_equal_length, wins
from adaptpo.stage.diagnostics import quality
from adaptpo.stage.score import BOUNDARY

MEASURED = "iterations/0/stage"
"""The phase that measures a run's first stage."""


@dataclass(frozen=True)
class Boundary:
    """A boundary score with its 95 % interval over prompts, and whether Algorithm 1 recommends preference injection.

    The score is the mean of its two parts, the shares won `against_chosen` and `against_rejected` responses.
    """

    score: float
    low: float
    high: float
    injection: bool
    against_chosen: float | None = None
    against_rejected: float | None = None

    @classmethod
    def of(cls, run: RunData) -> Boundary | None:
        """The measurement at the start of the run's first iteration; None if there is none."""
        phase = run.phases.get(MEASURED, {})
        if not phase.get("done"):
            return None
        columns = run.table(f"{MEASURED}/comparisons/*.parquet", "offline", "preference")
        rows = [
            dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)
        ]
        parts = (quality(rows, side) for side in ("chosen", "rejected"))
        return cls(phase["boundary_score"], phase["low"], phase["high"], phase["injection"], *parts)

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 0.5."""
        return not self.low <= BOUNDARY <= self.high


@dataclass(frozen=True)
class Measurement:
    """What is measured of a run in every world; a world that measures more has a subclass. `metrics`: the fields that a
    table averages.

    `true_reward`: what the world measures and no run trains on, as a mean over the responses to held-out prompts;
    `sft_reward`: that of the policy that the run started from. Win rates (shares) are against as many responses of that
    policy, by true reward, ties half. `annotated`: share of the iterations' prompts that got fresh, annotated
    responses; a prompt that the stage was also measured on got them twice, so the share can exceed 1. `answers`:
    annotated responses for each prompt of the data, offline ones included. `words`: mean length of the responses;
    `count_term`: the true reward's term for the number of items, 0 in worlds without it. `steps`: optimizer steps of
    the policy, warm-up included.

    Seconds are CPU time, which other work on the machine hardly affects (a run of a table has one thread), in each
    phase's last attempt: `training` covers the warm-up and the iterations, `overall` everything, measurements of the
    stage included. `repeated` names the phases that took several attempts.

    `weight_auc`, `margin_auc`: how well the weights and the margins of the last visits separate offline pairs with a
    right label from those with a wrong one (`adaptpo.sandbox.tables.labels`); None unless there are both kinds.
    `boundary`: the stage of the policy at the start of the first iteration, if the run measured it.
    """

    metrics: ClassVar[tuple[str, ...]] = (
        "true_reward",
        "win_rate",
        "length_controlled",
        "annotated",
        "answers",
        "steps",
        "words",
        "weight_auc",
        "margin_auc",
        "generation_seconds",
        "annotation_seconds",
        "training_seconds",
        "overall_seconds",
    )

    true_reward: float
    sft_reward: float
    win_rate: float
    length_controlled: float
    annotated: float
    generation_seconds: float
    annotation_seconds: float
    training_seconds: float
    overall_seconds: float
    answers: float = 0.0
    steps: int = 0
    words: float = 0.0
    repeated: tuple[str, ...] = ()
    weight_auc: float | None = None
    margin_auc: float | None = None
    boundary: Boundary | None = None
    count_term: float = 0.0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The measurement that `asdict` turned into this record of a JSON file, which may hold other keys."""
        values = {each.name: record[each.name] for each in fields(cls) if each.name in record}
        boundary = values.get("boundary")
        kept = {"repeated": tuple(values.get("repeated", ())), "boundary": boundary and Boundary(**boundary)}
        return cls(**values | kept)

    @property
    def gain(self) -> float:
        """Gain in true reward over the policy that the run started from, which is not the SFT policy for every row."""
        return self.true_reward - self.sft_reward


@dataclass(frozen=True)
class Responses:
    """A policy's responses to the held-out prompts, one after another: their true rewards, their lengths in words, and
    the terms of the rewards for the number of items, in worlds that have such a term."""

    rewards: Sequence[float]
    words: Sequence[int]
    counts: Sequence[float] = ()


def measure(run: RunData, new: Responses, old: Responses) -> Measurement:
    """Measures a run by its files, the responses of its policy, and as many of the policy that it started from.

    Raises RunError if one of the files is broken.
    """
    outcomes = wins(new.rewards, old.rewards)
    return Measurement(
        true_reward=fmean(new.rewards),
        sft_reward=fmean(old.rewards),
        win_rate=float(outcomes.mean()),
        length_controlled=win_rate_at_equal_length(outcomes, new.words, old.words),
        annotated=annotated_share(run),
        answers=annotated_answers(run) / len(run.parts),
        steps=sum(facts.get("steps", 0) for name, facts in run.phases.items() if name.endswith(("warmup", "train"))),
        words=fmean(new.words),
        generation_seconds=seconds(run, "generate"),
        annotation_seconds=seconds(run, "annotate"),
        training_seconds=seconds(run, "train") + run.cpu_seconds("warmup"),
        overall_seconds=run.cpu_seconds(),
        repeated=tuple(run.repeated()),
        weight_auc=label_separation(run, "weight"),
        margin_auc=label_separation(run, "margin"),
        boundary=Boundary.of(run),
        count_term=fmean(new.counts or [0.0]),
    )


def annotated_share(run: RunData) -> float:
    counts = [iteration_counts(run, t) for t in run.iterations]
    generated_for = sum(c.generated_for or 0 for c in counts)
    return (generated_for + stage_prompts(run)) / sum(c.prompts or 0 for c in counts)


def annotated_answers(run: RunData) -> int:
    """Number of responses that were annotated: by the iterations, for a filter, and both fresh and offline ones for
    measurements of the stage."""
    return sum(facts.get("annotated", 0) for facts in run.phases.values()) + 4 * stage_prompts(run)


def stage_prompts(run: RunData) -> int:
    """Number of prompts that got two fresh responses for measurements of the stage, answered or not."""
    found = [run.phases.get(f"iterations/{t}/stage", {}) for t in run.iterations]
    return sum(state.get("measured", 0) + state.get("unanswered", 0) for state in found)


def seconds(run: RunData, name: str) -> float:
    """CPU seconds of this phase over all iterations."""
    return sum(run.cpu_seconds(f"iterations/{t}/{name}") for t in run.iterations)
