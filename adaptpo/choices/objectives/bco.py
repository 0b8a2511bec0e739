"""Binary classifier optimization (Jung et al., 2024) on pairs: each response is judged by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adaptpo.choices.objectives.base import presence, score
from adaptpo.choices.objectives.log_ratio import LogRatioObjective
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class BCOPair(LogRatioObjective):
    """`-log sigmoid(a_w) - log sigmoid(-a_l)`, `a = beta * (logp - ref)`, as TRL's `bco_pair`.

    d loss / d a_w = -(1 - sigmoid(a_w)) and d loss / d a_l = sigmoid(a_l), each without the other
    response, which unpaired data lack. Deviation:
    the paper subtracts a reward shift, a running mean of the rewards, from both; TRL's loss has none.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> BCOPair(beta=0.1).loss(logps)
    tensor([1.2888])
    """

    takes_unpaired: ClassVar[bool] = True

    def loss(self, logps: PairLogps) -> Tensor:
        chosen, rejected = self.rewards(logps)
        has_chosen, has_rejected = presence(logps)
        return -has_chosen * score(chosen) - has_rejected * score(-rejected)
