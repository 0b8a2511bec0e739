"""Noise-contrastive alignment on pairs (Chen et al., 2024): absolute likelihoods, not only their difference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adaptpo.choices.objectives.base import score
from adaptpo.choices.objectives.log_ratio import LogRatioObjective
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class NCAPair(LogRatioObjective):
    """`-log sigmoid(a_w) - 1/2 log sigmoid(-a_w) - 1/2 log sigmoid(-a_l)`, `a = beta * (logp - ref)`: pairwise NCA.

    NCA of the paper with one response of each label; beta is 0.1 as in TRL. The chosen reward is pulled to
    log 2 and does not fall with the rejected one: d loss / d a_w = 3/2 sigmoid(a_w) - 1.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> NCAPair(beta=0.1).loss(logps)
    tensor([1.3388])
    """

    def loss(self, logps: PairLogps) -> Tensor:
        chosen, rejected = self.rewards(logps)
        return -score(chosen) - score(-chosen) / 2 - score(-rejected) / 2
