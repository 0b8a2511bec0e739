"""The goal that MetaPO's weights are learned for: the objective on held-out pairs (section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptpo.config.numbers import NonNegative, Ranged


@dataclass(frozen=True)
class ValidationGoal(Ranged):
    """Eq. 11: `L_val + margin * L_margin`, with the mean loss of the held-out pairs (Eq. 12) and minus the mean margin
    of those that the policy ranks correctly (Eq. 13). `margin` is the paper's lambda; 0 is Table 15's "L_val only"."""

    margin: NonNegative = 0.1

    def __call__(self, losses: Tensor, margins: Tensor, pairs: int, positives: int) -> Tensor:
        """The contribution of these pairs, [n] losses and margins with a graph, to the goal over all `pairs`, of which
        `positives` have a positive margin. Scalar."""
        kept = torch.where(margins > 0, margins, torch.zeros_like(margins)).sum()
        return losses.sum() / pairs - self.margin * kept / max(positives, 1)


def weight_entropy(weights: Tensor) -> Tensor:
    """Entropy of the weights [n] as shares of their sum, in nats (Table 15)."""
    shares = weights / weights.sum()
    return -(shares * shares.clamp(min=torch.finfo(shares.dtype).tiny).log()).sum()
