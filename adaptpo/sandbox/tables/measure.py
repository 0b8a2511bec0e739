"""Measures one finished run in a sandbox world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from adaptpo.report.reading import RunData
from adaptpo.report.tables import iteration_counts
from adaptpo.sandbox.check import stage_rewards
from adaptpo.sandbox.tables.labels import label_separation
from adaptpo.sandbox.tables.statistics import win_rate_at_equal_length, wins
from adaptpo.stage.score import BOUNDARY


@dataclass(frozen=True)
class Boundary:
    """A boundary score with its 95 % interval over prompts, and whether Algorithm 1 recommends preference injection."""

    score: float
    low: float
    high: float
    injection: bool

    @classmethod
    def of(cls, phase: Mapping[str, Any]) -> Boundary | None:
        """Reads a measurement's phase in `state.json`; None if it is not done."""
        if not phase.get("done"):
            return None
        return cls(phase["boundary_score"], phase["low"], phase["high"], phase["injection"])

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 0.5."""
        return not self.low <= BOUNDARY <= self.high


@dataclass(frozen=True)
class Measurement:
    """True rewards are means over the held-out prompts; win rates (shares) are against the SFT policy's responses by
    true reward, ties half. `annotated`: share of the iterations' prompts that got fresh, annotated responses; a prompt
    that the stage was also measured on got them twice, so the share can exceed 1.

    Seconds are CPU time, which other work on the machine hardly affects (a run of a table has one thread), in each
    phase's last attempt: `training` covers the warm-up and the iterations, `overall` everything except evaluations,
    measurements of the stage included. `repeated` names the phases that took several attempts.

    `weight_auc`, `margin_auc`: how well the weights and the margins of the last visits separate offline pairs with a
    right label from those with a wrong one (`adaptpo.sandbox.tables.labels`); None unless there are both kinds.
    `boundary`: the stage of the policy at the start of the first iteration, if the run measured it.
    """

    true_reward: float
    sft_reward: float
    win_rate: float
    length_controlled: float
    annotated: float
    generation_seconds: float
    annotation_seconds: float
    training_seconds: float
    overall_seconds: float
    repeated: tuple[str, ...] = ()
    weight_auc: float | None = None
    margin_auc: float | None = None
    boundary: Boundary | None = None

    @property
    def gain(self) -> float:
        """Gain in true reward over the policy that the run started from, which is not the SFT policy for every row."""
        return self.true_reward - self.sft_reward


def measure(folder: Path) -> Measurement:
    """Measures a run from its folder alone. Raises RunError if a file in it is broken."""
    run = RunData.open(folder)
    last = run.stages[-1].key
    new, old = stage_rewards(folder, last), stage_rewards(folder, "initial")
    outcomes = wins(new, old)
    return Measurement(
        true_reward=fmean(new),
        sft_reward=fmean(old),
        win_rate=float(outcomes.mean()),
        length_controlled=win_rate_at_equal_length(outcomes, words(run, last), words(run, "initial")),
        annotated=annotated_share(run),
        generation_seconds=seconds(run, "generate"),
        annotation_seconds=seconds(run, "annotate"),
        training_seconds=seconds(run, "train") + run.cpu_seconds("warmup"),
        overall_seconds=run.cpu_seconds() - run.cpu_seconds("evaluate/"),
        repeated=tuple(run.repeated()),
        weight_auc=label_separation(run, "weight"),
        margin_auc=label_separation(run, "margin"),
        boundary=Boundary.of(run.phases.get("iterations/0/stage", {})),
    )


def words(run: RunData, stage: str) -> list[int]:
    """Length of each held-out response in words, which are the sandbox's tokens."""
    return [len(text.split()) for text in run.table(f"evaluation/{stage}.parquet", "response")["response"]]


def annotated_share(run: RunData) -> float:
    counts = [iteration_counts(run, t) for t in run.iterations]
    generated_for = sum(c.generated_for or 0 for c in counts)
    return (generated_for + stage_prompts(run)) / sum(c.prompts or 0 for c in counts)


def stage_prompts(run: RunData) -> int:
    """Number of prompts that got two fresh responses for measurements of the stage, answered or not."""
    found = [run.phases.get(f"iterations/{t}/stage", {}) for t in run.iterations]
    return sum(state.get("measured", 0) + state.get("unanswered", 0) for state in found)


def seconds(run: RunData, name: str) -> float:
    """CPU seconds of this phase over all iterations."""
    return sum(run.cpu_seconds(f"iterations/{t}/{name}") for t in run.iterations)
