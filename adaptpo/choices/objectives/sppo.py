"""Self-play preference optimization (Wu et al., 2024) with certain preferences."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adaptpo.choices.objectives.log_ratio import LogRatioObjective
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class SPPOHard(LogRatioObjective):
    """`(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2`, `r = logp - ref`: Eq. 4.7 of the paper, P = 1 and 0.

    beta is 1 / eta. d loss / d logp_w = 2 * (r_w - 1 / (2 beta)): each log-ratio is pulled to its own target.
    Deviation: the paper estimates the probability P of winning with PairRM; here, as in TRL's `sppo_hard`, the chosen
    response wins for certain.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> SPPOHard(beta=0.1).loss(logps)
    tensor([32.])
    """

    def loss(self, logps: PairLogps) -> Tensor:
        chosen, rejected = self.log_ratios(logps)
        target = 0.5 / self.beta
        return (chosen - target).square() + (rejected + target).square()
