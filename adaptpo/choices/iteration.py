"""What a method's choices know about the coming iteration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class StageReading:
    """The boundary measurement at an iteration's start: the boundary score in [0, 1], whether Algorithm 1 says
    preference injection, and, if prompts are grouped, the score of each prompt's group by prompt id."""

    score: float
    injection: bool
    by_prompt: Mapping[int, float] = field(default_factory=dict)

    def of_prompts(self, prompt_id: Tensor) -> Tensor:
        """The score for each of n prompts, [n], float32: that of its group, or the overall score."""
        scores = [self.by_prompt.get(number, self.score) for number in prompt_id.tolist()]
        return torch.tensor(scores, device=prompt_id.device)


UNKNOWN_STAGE = StageReading(score=0.5, injection=False)
"""The stage that a choice assumes outside a run: halfway."""


@dataclass(frozen=True)
class Iteration:
    """Iteration `number` (from 0) of `count`; `stage` is set if the method needs a measurement."""

    number: int
    count: int
    stage: StageReading | None = None

    def measured(self) -> StageReading:
        """The measurement. Raises ValueError if there is none: the choice did not declare `needs_stage`."""
        if self.stage is None:
            raise ValueError("this choice needs the policy's alignment stage, which was not measured")
        return self.stage
