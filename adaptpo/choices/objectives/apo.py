"""Anchored preference optimization (D'Oosterlinck et al., 2024): which way each response's likelihood should move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, sigmoid

from adaptpo.choices.objectives.base import presence
from adaptpo.choices.objectives.log_ratio import LogRatioObjective
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class APOZero(LogRatioObjective):
    """`1 - sigmoid(a_w) + sigmoid(a_l)`, `a = beta * (logp - ref)`, their Eq. 7.

    For data whose chosen responses are better than the policy's: chosen becomes likelier, rejected less likely. A
    response without a partner (unpaired data) has its own term alone, as in TRL's `apo_zero_unpaired`. With s =
    sigmoid(a), d loss / d a_w = -s_w (1 - s_w) and d loss / d a_l = s_l (1 - s_l).

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> APOZero(beta=0.1).loss(logps)
    tensor([0.9500])
    """

    takes_unpaired: ClassVar[bool] = True

    def loss(self, logps: PairLogps) -> Tensor:
        chosen, rejected = self.rewards(logps)
        has_chosen, has_rejected = presence(logps)
        return has_chosen * (1 - sigmoid(chosen)) + has_rejected * sigmoid(rejected)


@dataclass(frozen=True)
class APODown(LogRatioObjective):
    """`sigmoid(a_w) + 1 - sigmoid(a_w - a_l)`, `a = beta * (logp - ref)`, their Eq. 8.

    For data whose chosen responses are worse than the policy's: both become less likely, rejected ones more so. With s
    = sigmoid(a_w) and t = sigmoid(a_w - a_l), d loss / d a_w = s (1 - s) - t (1 - t) and d loss / d a_l = t (1 - t).

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> APODown(beta=0.1).loss(logps)
    tensor([0.9751])
    """

    def loss(self, logps: PairLogps) -> Tensor:
        chosen, rejected = self.rewards(logps)
        return sigmoid(chosen) + 1 - sigmoid(chosen - rejected)
