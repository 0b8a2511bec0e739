"""Odds-ratio preference optimization (Hong et al., 2024): SFT on chosen responses and a penalty, in one loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptpo.choices.objectives.base import Objective, score
from adaptpo.config.numbers import NonNegative
from adaptpo.types import PairLogps


def log_odds(logp: Tensor) -> Tensor:
    """`log(p / (1 - p))` of p = exp(logp), same shape. p is clamped to 1 - eps, beyond which the result is infinite."""
    below = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    # Each form loses all digits where the other is exact.
    near_one = below > -math.log(2)
    safe = torch.where(near_one, below, -1.0)
    far = torch.where(near_one, -1.0, below)
    return below - torch.where(near_one, torch.log(-torch.expm1(safe)), torch.log1p(-torch.exp(far)))


def mean_logps(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """The mean log-prob of a token of the chosen and of the rejected responses, each [n]."""
    return logps.chosen / logps.chosen_tokens, logps.rejected / logps.rejected_tokens


@dataclass(frozen=True)
class ORPO(Objective):
    """`-a_w - odds_weight * log sigmoid(log odds(a_w) - log odds(a_l))` with the mean log-probs `a = logp / |y|`.

    `odds_weight` is lambda of the paper and TRL's beta, 0.1 as there. The margin is the log odds ratio m, and
    d loss / d a_w = -1 - odds_weight * sigmoid(-m) / (1 - exp(a_w)). Deviation: the first term is the mean over the
    tokens of each chosen response; TRL's is over all tokens of the batch, prompts included.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> ORPO().loss(logps)
    tensor([2.0693])
    """

    odds_weight: NonNegative = 0.1

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        chosen, rejected = mean_logps(logps)
        return self.odds_weight * chosen, self.odds_weight * rejected

    def margin(self, logps: PairLogps) -> Tensor:
        chosen, rejected = mean_logps(logps)
        return log_odds(chosen) - log_odds(rejected)

    def loss(self, logps: PairLogps) -> Tensor:
        return -logps.chosen / logps.chosen_tokens - self.odds_weight * score(self.margin(logps))
