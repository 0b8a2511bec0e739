"""Measurements of the MetaAPO paper: Table 8, minutes of whole runs of Llama-3.1-8B on 64,000 pairs, 8 x H100."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from adaptpo.plan.job import Job


@dataclass(frozen=True)
class Published:
    """One row: `sampling`, `training` and `overall` in minutes; `annotated` in percent of the prompts' responses."""

    name: str
    method: str
    sampling: float | None
    training: float | None
    overall: float
    annotated: float

    @property
    def parts(self) -> str:
        return f"sampling {self.sampling:g}, training {self.training:g}" if self.sampling else "parts not stated"


TABLE_8 = (
    Published("Online DPO", "online_dpo", 337, 58, 395, 100),
    Published("SELM", "selm", 363, 60, 423, 125),
    Published("PPO", "ppo", None, None, 936, 100),
    Published("MetaAPO", "metaapo", 106, 59, 186, 58),
)
SIZE = (7e9, 9e9)
"""Range of model sizes, in parameters, to which its minutes apply."""
SAMPLING = ("score", "generate", "annotate")
TRAINING = ("reference", "pair reference", "rollouts", "train")
"""Without warm-up and reward model: for Online DPO and SELM, the paper's sampling and training add up to the total."""


class Timed(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def seconds(self) -> float: ...


def minutes(costs: Iterable[Timed], phases: Sequence[str]) -> float:
    return sum(cost.seconds for cost in costs if cost.name in phases) / 60


def beside_paper(job: Job, costs: Sequence[Timed]) -> list[str]:
    """Notes that compare the plan with Table 8; [] unless the method is in it and the model is of about its size."""
    row = next((row for row in TABLE_8 if row.method == job.method.name), None)
    if row is None or not SIZE[0] < job.shape.parameters < SIZE[1]:
        return []
    sampling, training = minutes(costs, SAMPLING), minutes(costs, TRAINING)
    rest = sum(cost.seconds for cost in costs) / 60 - sampling - training
    return [
        f"The MetaAPO paper's Table 8 has {row.overall:g} minutes for {row.name} ({row.parts}) of 64,000 pairs, K = 8, "
        f"on 8 x H100; the same phases of this plan take {sampling + training:.0f} (scores, generation and annotation "
        f"{sampling:.0f}, reference and steps {training:.0f}) for {job.data.pairs:,} pairs. Another {rest:.0f} go to "
        "what that table leaves out: warm-up, reward model, evaluation",
        "Possible reasons for the difference, besides pairs and machine: the paper states neither the length of its "
        "responses nor its engine. Its Online DPO trains at 16 to 27 % of the machine's peak if responses have 300 to "
        "600 tokens, and samples 950 to 1,900 tokens per second and accelerator, far below a server with continuous "
        "batching. 21 of MetaAPO's 186 minutes are in neither of its parts. docs/planning.md has the table",
    ]
