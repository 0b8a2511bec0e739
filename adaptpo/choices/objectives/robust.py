"""Robust DPO (Chowdhury et al., 2024): an unbiased loss where a known share of the labels is flipped."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adaptpo.choices.objectives.base import score
from adaptpo.choices.objectives.log_ratio import DivergenceObjective
from adaptpo.config.numbers import LabelNoise
from adaptpo.errors import ConfigError
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class RobustDPO(DivergenceObjective):
    """`[-(1 - e) * log sigmoid(m) + e * log sigmoid(-m)] / (1 - 2e)`, m DPO's margin: rDPO of the paper.

    e is `label_smoothing`, the share of labels that are flipped, 0.1; over random flips the mean of this loss is DPO's
    loss on the true labels. With s = sigmoid(m), d loss / d m = s - (1 - e) / (1 - 2e). With e = 0 it is DPO.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> RobustDPO(beta=0.1, label_smoothing=0.1).loss(logps)
    tensor([0.5731])
    """

    label_smoothing: LabelNoise = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"label_smoothing is {self.label_smoothing}; robust DPO takes the share of flipped labels, 0 or more "
                "and below 0.5, where labels say nothing"
            )
        super().__post_init__()

    def loss(self, logps: PairLogps) -> Tensor:
        margin, flipped = self.margin(logps), self.label_smoothing
        return (flipped * score(-margin) - (1 - flipped) * score(margin)) / (1 - 2 * flipped)
