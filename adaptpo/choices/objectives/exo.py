"""Efficient exact optimization on pairs (Ji et al., 2024): the reverse KL between two distributions over the pair."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, sigmoid

from adaptpo.choices.objectives.base import score
from adaptpo.choices.objectives.log_ratio import DivergenceObjective
from adaptpo.config.numbers import LabelNoise
from adaptpo.errors import ConfigError
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class EXOPair(DivergenceObjective):
    """`KL(p | q)` over the two responses, p = (s, 1 - s) with s = sigmoid(m), q = (1 - e, e): EXO-pref, their Eq. 16.

    m is DPO's margin, e is `label_smoothing`, above 0, 0.001 as the paper recommends. The loss is 0 at s = 1 - e, and
    d loss / d m = s * (1 - s) * [m - log((1 - e) / e)]: pairs ranked very wrongly have almost no gradient.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> EXOPair(beta=0.1, label_smoothing=0.001).loss(logps)
    tensor([2.4220])
    """

    label_smoothing: LabelNoise = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.label_smoothing < 1:
            raise ConfigError(
                f"label_smoothing is {self.label_smoothing}; EXO needs a number above 0 and below 1, such as 0.001"
            )
        super().__post_init__()

    def loss(self, logps: PairLogps) -> Tensor:
        margin, smoothing = self.margin(logps), self.label_smoothing
        right = sigmoid(margin) * (score(margin) - math.log1p(-smoothing))
        return right + sigmoid(-margin) * (score(-margin) - math.log(smoothing))
