"""The weighting axis: how much each pair counts.

Adding one: the class here, and its line in `WEIGHTINGS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptpo.learner import OFFLINE, Learner, PairBatch
from adaptpo.meta_learner import MetaLearner


class Weighting(ABC):
    """One of the four choices. Pure: weights are a function of detached values; learning is the learners' business."""

    @abstractmethod
    def weights(self, batch: PairBatch) -> Tensor:
        """The weight of each pair, [n], no gradient; the loss is divided by the number of prompts, not of pairs."""

    def learners(self) -> tuple[Learner, ...]:
        return ()


@dataclass(frozen=True)
class Uniform(Weighting):
    """Every prompt counts 1, shared equally by its pairs."""

    def weights(self, batch: PairBatch) -> Tensor:
        return 1.0 / batch.group_size


@dataclass(frozen=True)
class LearnedBlend(Weighting):
    """`w = h(l_off)` for the offline pair and `1 - w` for the online pair of a prompt (MetaAPO, Eq. 5).

    `w` is recomputed from the current policy's margin at every step; a pair that is alone counts 1.
    """

    learner: MetaLearner

    def weights(self, batch: PairBatch) -> Tensor:
        trust = torch.ones_like(batch.margin)
        offline = batch.source == OFFLINE
        trust[batch.group[offline]] = self.learner.weight(batch.margin[offline])
        trust = trust[batch.group]
        blend = torch.where(offline, trust, 1 - trust)
        return torch.where(batch.group_size == 1, torch.ones_like(blend), blend)

    def learners(self) -> tuple[Learner, ...]:
        return (self.learner,)


WEIGHTINGS: dict[str, type[Weighting]] = {"uniform": Uniform, "learned_blend": LearnedBlend}
