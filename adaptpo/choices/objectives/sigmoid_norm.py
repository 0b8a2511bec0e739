"""Length-normalized DPO (Lambert et al., 2024, Tülu 3): DPO on the mean log-ratio of a token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adaptpo.choices.objectives.log_ratio import DivergenceObjective
from adaptpo.config.numbers import Positive
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class SigmoidNorm(DivergenceObjective):
    """`-log sigmoid(beta * [(logp_w - ref_w) / |y_w| - (logp_l - ref_l) / |y_l|])`, as in Tülu 3.

    beta is 5.0 as in Tülu 3: a token's log-ratio is far smaller than a response's. The logged rewards are not
    divided, as in TRL. d loss / d logp_w = -beta * (1 - sigmoid(margin)) / |y_w|.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> SigmoidNorm(beta=5.0).margin(logps)
    tensor([1.8333])
    """

    beta: Positive = 5.0

    def margin(self, logps: PairLogps) -> Tensor:
        chosen, rejected = self.scores(logps)
        return self.beta * (chosen / logps.chosen_tokens - rejected / logps.rejected_tokens)
