"""DPO-Shift (Yang et al., 2025): DPO that at first gives rejected responses less weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from adaptpo.choices.objectives.base import score
from adaptpo.choices.objectives.log_ratio import LogRatioObjective
from adaptpo.config.numbers import Fraction
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class DPOShift(LogRatioObjective):
    """`-log sigmoid(beta * [(logp_w - ref_w) - f * (logp_l - ref_l)])`, with f rising linearly from `start` to `end`.

    f = `start + (end - start) * (share of the run's optimizer steps done)`, 0.95 to 1.0 as in B.3 of the MetaAPO
    paper. With s the sigmoid, d loss / d logp_w = -beta * (1 - s) and d loss / d logp_l = +f * beta * (1 - s).
    Deviation: `margin` is DPO's, so scores of different times can be compared; only the loss contains f.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> shifted = DPOShift(beta=0.1, start=0.9, end=1.0)
    >>> shifted.loss(logps), shifted.at(1.0).loss(logps)
    (tensor([0.6027]), tensor([0.5981]))
    """

    start: Fraction = 0.95
    end: Fraction = 1.0

    def at(self, progress: float) -> DPOShift:
        return replace(self, start=self.start + (self.end - self.start) * progress)

    def loss(self, logps: PairLogps) -> Tensor:
        chosen, rejected = self.rewards(logps)
        return -score(chosen - self.start * rejected)
