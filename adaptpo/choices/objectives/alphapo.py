"""AlphaPO (Gupta et al., 2025): SimPO with another shape of the reward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptpo.choices.objectives.orpo import mean_logps
from adaptpo.choices.objectives.simpo import SimPO
from adaptpo.config.numbers import Number
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class AlphaPO(SimPO):
    """SimPO on the rewards `beta * (1 - p^-alpha) / alpha`, `p = exp(logp / |y|)`, which approach SimPO's at alpha 0.

    d reward / d logp = beta * p^-alpha / |y|: with alpha > 0, unlikely responses have a steeper reward. `beta` and
    `gamma` are SimPO's; alpha is 0.25 (ours). With alpha 0 it is SimPO.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6))
    >>> AlphaPO(alpha=0.25).rewards(logps)
    (tensor([-6.4872]), tensor([-6.4872]))
    """

    alpha: Number = 0.25

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        if self.alpha == 0:
            return super().rewards(logps)
        chosen, rejected = (torch.expm1(-self.alpha * mean) for mean in mean_logps(logps))
        return -self.beta / self.alpha * chosen, -self.beta / self.alpha * rejected
