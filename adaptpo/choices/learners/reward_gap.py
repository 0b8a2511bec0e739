"""The running mean of reward gaps, by which a weighting scales."""

from __future__ import annotations

from typing import Any

import torch

from adaptpo.choices.learners.base import Gather, Learner
from adaptpo.config.numbers import Decay, ranged
from adaptpo.types import PairBatch


class RunningGap(Learner):
    """The mean reward gap of annotated pairs, as a moving average over optimizer steps; 1 until a gap is observed.

    Updated once per optimizer step over all its micro-batches and ranks.
    """

    @ranged
    def __init__(self, momentum: Decay = 0.9) -> None:
        self.momentum = momentum
        self.reset(seed=0)

    def __repr__(self) -> str:
        return f"RunningGap(momentum={self.momentum})"

    def reset(self, seed: int) -> None:
        self.average: float | None = None
        self.seen = torch.zeros(0)

    @property
    def mean(self) -> float:
        return 1.0 if self.average is None else self.average

    def observe(self, batch: PairBatch) -> None:
        gaps = batch.reward_gap[~batch.reward_gap.isnan()]
        self.seen = torch.cat([self.seen, gaps.float().cpu()])

    def update(self, gather: Gather) -> None:
        gaps, self.seen = gather(self.seen), torch.zeros(0)
        if len(gaps):
            new = gaps.mean().item()
            old = new if self.average is None else self.average
            self.average = self.momentum * old + (1 - self.momentum) * new

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "seen": self.seen.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average, self.seen = state["average"], state["seen"]

    def metrics(self) -> dict[str, float]:
        return {"weight/mean_gap": self.mean}
