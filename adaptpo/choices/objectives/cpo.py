"""Contrastive preference optimization (Xu et al., 2024): DPO without a reference, and a likelihood term."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adaptpo.choices.objectives.base import Objective, score
from adaptpo.config.numbers import LabelNoise, NonNegative, Positive
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class CPO(Objective):
    """`-log sigmoid(beta * (logp_w - logp_l)) - cpo_alpha * logp_w / |y_w|`, Eq. 3 of the paper.

    `label_smoothing` is DPO's. With s = sigmoid(margin), d loss / d logp_w = -beta * (1 - s) - cpo_alpha / |y_w|.
    Deviation: the likelihood term is the mean over each chosen response's tokens; the paper sums them, and TRL's is the
    mean over the chosen tokens of a micro-batch, which is the same if a micro-batch is one pair.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> CPO(beta=0.1).loss(PairLogps(one(-10.0), one(-12.0), one(5), one(6)))
    tensor([2.5981])
    """

    beta: Positive = 0.1
    cpo_alpha: NonNegative = 1.0
    label_smoothing: LabelNoise = 0.0

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        return self.beta * logps.chosen, self.beta * logps.rejected

    def loss(self, logps: PairLogps) -> Tensor:
        margin = self.margin(logps)
        preference = -(1 - self.label_smoothing) * score(margin) - self.label_smoothing * score(-margin)
        return preference - self.cpo_alpha * logps.chosen / logps.chosen_tokens
