"""DPO with the optimism term of SELM (Zhang et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adaptpo.choices.objectives.dpo import DPO
from adaptpo.config.numbers import NonNegative
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class OptimisticDPO(DPO):
    """DPO's loss `+ optimism * beta * log pi(y | x)`, y a fresh response from the policy that started the iteration.

    Eq. 4.2 of SELM (arXiv 2405.19332): the term moves the policy away from its common responses, so that it explores
    responses of high implicit reward. d loss / d log pi(y | x) = optimism * beta; the pair's own derivatives are DPO's.
    The authors' code subtracts the reference's log-prob of y, a constant. `optimism` (alpha) is 0.001 in their Zephyr
    configuration and 0.0001 in that for Llama 3, both with beta 0.01. A pair without a sample has DPO's loss.
    """

    optimism: NonNegative = 0.001
    needs_sample: ClassVar[bool] = True

    def loss(self, logps: PairLogps) -> Tensor:
        loss = super().loss(logps)
        return loss if logps.sample is None else loss + self.optimism * self.beta * logps.sample
