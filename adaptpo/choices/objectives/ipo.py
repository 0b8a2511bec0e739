"""Identity preference optimization (Azar et al., 2023): a squared loss that stops at a finite margin."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adaptpo.choices.objectives.log_ratio import DivergenceObjective
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class IPO(DivergenceObjective):
    """`(h - 1 / (2 * beta))^2` with `h = (logp_w - ref_w) / |y_w| - (logp_l - ref_l) / |y_l|`, their Eq. 17.

    beta is their tau, 0.1 as in TRL. The margin is beta * h, and its target is 1/2. d loss / d logp_w =
    2 * (h - 1 / (2 * beta)) / |y_w|. Deviation: Eq. 17 sums log-probs; the division by token counts is TRL's, and the
    paper's authors confirmed to TRL that their results used it.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> IPO(beta=0.1).loss(logps)
    tensor([21.4678])
    """

    def margin(self, logps: PairLogps) -> Tensor:
        chosen, rejected = self.scores(logps)
        return self.beta * chosen / logps.chosen_tokens - self.beta * rejected / logps.rejected_tokens

    def loss(self, logps: PairLogps) -> Tensor:
        return (self.margin(logps) - 0.5).square() / self.beta**2
