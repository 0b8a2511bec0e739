"""Sequence likelihood calibration from human feedback (Zhao et al., 2023), and its hinge on DPO's margin."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import relu

from adaptpo.choices.objectives.base import Objective
from adaptpo.choices.objectives.log_ratio import DivergenceObjective
from adaptpo.config.numbers import NonNegative, Positive
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class SLiCHF(Objective):
    """`max(0, delta - logp_w + logp_l) - sft_weight * logp_w`: a hinge on log-probs, without a reference model.

    Inside the hinge d loss / d logp_w = -(1 + sft_weight) and d loss / d logp_l = 1; outside, -sft_weight and 0. The
    margin is logp_w - logp_l. The defaults are ours, because none are published: a hinge of one nat, and an SFT weight
    under which the hinge dominates. Deviation: the regularizer's target is the chosen response, not a separate SFT
    target.
    """

    delta: Positive = 1.0
    sft_weight: NonNegative = 0.1

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        return logps.chosen, logps.rejected

    def loss(self, logps: PairLogps) -> Tensor:
        return relu(self.delta - self.margin(logps)) - self.sft_weight * logps.chosen


@dataclass(frozen=True)
class Hinge(DivergenceObjective):
    """`max(0, 1 - beta * [(logp_w - ref_w) - (logp_l - ref_l)])`: SLiC's hinge on DPO's margin, like TRL's `hinge`.

    d loss / d logp_w = -beta and d loss / d logp_l = +beta while the margin is below 1, and 0 beyond. beta is DPO's.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> Hinge(beta=0.1).loss(logps)
    tensor([0.8000])
    """

    def loss(self, logps: PairLogps) -> Tensor:
        return relu(1 - self.margin(logps))
