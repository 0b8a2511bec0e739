"""The likelihood of the chosen response alone: supervised fine-tuning, usually one term of several."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adaptpo.choices.objectives.base import Objective
from adaptpo.choices.objectives.orpo import mean_logps
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class SFT(Objective):
    """`-logp_w / |y_w|`: the mean negative log-prob of a token of the chosen response.

    The implicit rewards are mean log-probs. Deviation: TRL's `sft` is the mean over the chosen tokens of a micro-batch,
    in which long responses count more; the two are equal if a micro-batch is one pair, or all chosen responses are
    equally long. This loss is the same for every division into micro-batches, and RPO's.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> SFT().loss(PairLogps(one(-10.0), one(-12.0), one(5), one(6)))
    tensor([2.])
    """

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        return mean_logps(logps)

    def loss(self, logps: PairLogps) -> Tensor:
        return -logps.chosen / logps.chosen_tokens
