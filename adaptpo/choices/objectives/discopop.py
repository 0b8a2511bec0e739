"""DiscoPOP (Lu et al., 2024), a loss found by a language model: logistic at one end of the margin, exponential at the
other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptpo.choices.objectives.base import score
from adaptpo.choices.objectives.log_ratio import DivergenceObjective
from adaptpo.config.numbers import Positive
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class DiscoPOP(DivergenceObjective):
    """`-(1 - c) * log sigmoid(m) + c * exp(-m)`, `c = sigmoid(m / tau)`, m DPO's margin, their Eq. 5.

    Their log-ratio modulated loss. tau is `discopop_tau`, 0.05. c moves within a few tau from 0 (logistic) to 1
    (exponential); the loss is not convex near m = 0.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> DiscoPOP(beta=0.1).loss(logps)
    tensor([0.8148])
    """

    discopop_tau: Positive = 0.05

    def loss(self, logps: PairLogps) -> Tensor:
        margin = self.margin(logps)
        exponential = torch.sigmoid(margin / self.discopop_tau)
        return -(1 - exponential) * score(margin) + exponential * torch.exp(-margin)
