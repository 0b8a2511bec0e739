"""Simple preference optimization (Meng et al., 2024): length-normalized, without a reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adaptpo.choices.objectives.base import Objective
from adaptpo.config.numbers import NonNegative, Positive
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class SimPO(Objective):
    """`-log sigmoid(beta / |y_w| * logp_w - beta / |y_l| * logp_l - gamma)`, Eq. A.8 of the MetaAPO paper.

    The defaults are those of its Table 3. `gamma` is subtracted from the beta-scaled margin, as in A.8 and in TRL.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> SimPO(beta=2.0, gamma=0.5).margin(logps)
    tensor([-0.5000])
    """

    beta: Positive = 2.5
    gamma: NonNegative = 0.6

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        return (
            self.beta * logps.chosen / logps.chosen_tokens,
            self.beta * logps.rejected / logps.rejected_tokens,
        )

    def margin(self, logps: PairLogps) -> Tensor:
        return super().margin(logps) - self.gamma
