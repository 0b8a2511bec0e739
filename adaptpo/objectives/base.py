"""What an objective is: the margin of a pair, its score `log sigmoid(margin)`, and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of n pairs: sums over response tokens in nats, float32, every field of shape [n].

    The reference fields are None for objectives that do not need a reference. Length normalization is the
    objective's own business, hence the token counts.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None

    def ratios(self) -> Tensor:
        """[n, 2]: log pi / pi_ref of chosen and rejected; log pi where there is no reference."""
        sides = torch.stack([self.chosen, self.rejected], dim=1)
        if self.reference_chosen is None or self.reference_rejected is None:
            return sides
        return sides - torch.stack([self.reference_chosen, self.reference_rejected], dim=1)


class Objective(ABC):
    """One of the four choices: how well the policy agrees with a pair, and what it pays if it does not."""

    beta: float
    needs_reference: ClassVar[bool] = False

    @abstractmethod
    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """Implicit rewards of the chosen and of the rejected responses, each [n]."""

    def margin(self, logps: PairLogps) -> Tensor:
        """Implicit reward of chosen minus rejected (and minus a target margin, where there is one), [n]."""
        chosen, rejected = self.rewards(logps)
        return chosen - rejected

    def loss(self, logps: PairLogps) -> Tensor:
        """The loss of each pair, [n]; `-log sigmoid(margin)` unless the objective says otherwise."""
        return -score(self.margin(logps))


def score(margin: Tensor) -> Tensor:
    """Preference score `log sigmoid(margin)` of MetaAPO's Eq. 4 (Eq. A.9 with SimPO's margin); same shape, <= 0."""
    return logsigmoid(margin)
