"""Direct preference optimization (Rafailov et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adaptpo.choices.objectives.base import score
from adaptpo.choices.objectives.log_ratio import DivergenceObjective
from adaptpo.config.numbers import LabelNoise
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class DPO(DivergenceObjective):
    """`-log sigmoid(beta * [(logp_w - ref_w) - (logp_l - ref_l)])`, Eq. 3 of the MetaAPO paper.

    With s = sigmoid(margin), d loss / d logp_w = -beta * (1 - s) and d loss / d logp_l = +beta * (1 - s).

    `label_smoothing` e, the share of labels believed to be wrong, makes it conservative DPO (Mitchell, 2023):
    `-(1 - e) * log sigmoid(margin) - e * log sigmoid(-margin)`, whose gradient has 1 - e - s in place of 1 - s.
    Further settings: see `DivergenceObjective` (f-DPO) and `LogRatioObjective` (LD-DPO).

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> DPO(beta=0.1).margin(logps)
    tensor([0.2000])
    >>> DPO(beta=0.1).loss(logps)
    tensor([0.5981])
    """

    label_smoothing: LabelNoise = 0.0

    def loss(self, logps: PairLogps) -> Tensor:
        margin = self.margin(logps)
        return -(1 - self.label_smoothing) * score(margin) - self.label_smoothing * score(-margin)
