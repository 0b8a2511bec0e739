"""The selection axis: which prompts get fresh responses in this iteration.

Adding one: the class here, and its line in `SELECTIONS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptpo.learner import Learner
from adaptpo.meta_learner import MetaLearner


@dataclass(frozen=True)
class ScoredPrompts:
    """The prompts of an iteration as selection sees them: their number n, and the policy's margins of their offline
    pairs, [n] (None unless the selection needs them)."""

    count: int
    margin: Tensor | None = None


class Selection(ABC):
    """One of the four choices. The loop scores the offline pairs first only where `needs_margins` says so."""

    needs_margins: ClassVar[bool] = False

    @abstractmethod
    def probability(self, prompts: ScoredPrompts) -> Tensor:
        """Probability in [0, 1] that a prompt gets fresh responses, [n]; the loop draws with the prompt's own seed."""

    def learners(self) -> tuple[Learner, ...]:
        return ()


@dataclass(frozen=True)
class SelectNone(Selection):
    """Offline training."""

    def probability(self, prompts: ScoredPrompts) -> Tensor:
        return torch.zeros(prompts.count)


@dataclass(frozen=True)
class SelectAll(Selection):
    """Online training on every prompt."""

    def probability(self, prompts: ScoredPrompts) -> Tensor:
        return torch.ones(prompts.count)


@dataclass(frozen=True)
class SelectByLearner(Selection):
    """Generate when `u > h(l_off)`: with probability `1 - w` (MetaAPO, section 4.1; Algorithm 1, lines 7-9)."""

    learner: MetaLearner
    needs_margins: ClassVar[bool] = True

    def probability(self, prompts: ScoredPrompts) -> Tensor:
        if prompts.margin is None:
            raise ValueError("SelectByLearner needs the margins of the offline pairs")
        return 1 - self.learner.weight(prompts.margin)

    def learners(self) -> tuple[Learner, ...]:
        return (self.learner,)


SELECTIONS: dict[str, type[Selection]] = {
    "none": SelectNone,
    "all": SelectAll,
    "meta_learner": SelectByLearner,
}
