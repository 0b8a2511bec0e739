"""Kahneman-Tversky optimization (Ethayarajh et al., 2024): chosen responses are desirable, rejected ones are not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, sigmoid

from adaptpo.choices.iteration import Iteration
from adaptpo.choices.learners.base import Gather, Learner
from adaptpo.choices.objectives.base import Objective, log_ratios, presence
from adaptpo.config.numbers import NonNegative, Positive
from adaptpo.types import PairBatch, PairLogps


class ReferencePoint(Learner):
    """z0, an estimate of KL(policy | reference): `max(0, mean log-ratio)` of the previous step's responses.

    It is one number for a whole optimizer step, regardless of micro-batches. Every iteration starts at 0, which is
    exact if the policy starts as the reference; elsewhere the estimate is one step behind.
    """

    def __init__(self) -> None:
        self.reset(seed=0)

    def reset(self, seed: int) -> None:
        self.value, self.seen = 0.0, torch.zeros(0)

    def start_iteration(self, now: Iteration) -> None:
        self.value, self.seen = 0.0, torch.zeros(0)

    def observe(self, batch: PairBatch) -> None:
        self.seen = torch.cat([self.seen, batch.ratios[~batch.ratios.isnan()].cpu()])

    def update(self, gather: Gather) -> None:
        seen, self.seen = gather(self.seen), torch.zeros(0)
        if len(seen):
            self.value = max(0.0, seen.mean().item())

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "seen": self.seen.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.seen = state["value"], state["seen"].clone()

    def metrics(self) -> dict[str, float]:
        return {"kto/reference_point": self.value}


@dataclass(frozen=True)
class KTO(Objective):
    """Half of `D * [1 - sigmoid(beta * (r_w - z0))] + U * [1 - sigmoid(beta * (z0 - r_l))]`, `r = logp - ref`.

    D and U are `desirable_weight` and `undesirable_weight` (lambda_D and lambda_U), 1 as in TRL; beta is 0.1 as for
    DPO. The loss is halved because TRL takes the mean over responses, not over pairs; an unpaired response has its own
    term, not halved. With s the first sigmoid,
    d loss / d logp_w = -D / 2 * beta * s * (1 - s); z0 has no gradient and cancels in the margin. Deviation: the paper
    and TRL estimate z0 in each micro-batch, from prompts with other prompts' responses; see `ReferencePoint`.

    >>> import torch
    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-12.0), one(5), one(6), one(-11.0), one(-11.0))
    >>> KTO(beta=0.1).loss(logps)
    tensor([0.4750])
    """

    beta: Positive = 0.1
    desirable_weight: NonNegative = 1.0
    undesirable_weight: NonNegative = 1.0
    reference_point: ReferencePoint = field(default_factory=ReferencePoint, init=False, repr=False, compare=False)
    needs_reference: ClassVar[bool] = True
    takes_unpaired: ClassVar[bool] = True

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        chosen, rejected = log_ratios(logps)
        return self.beta * chosen, self.beta * rejected

    def loss(self, logps: PairLogps) -> Tensor:
        chosen, rejected = self.rewards(logps)
        zero = self.beta * self.reference_point.value
        desirable = self.desirable_weight * (1 - sigmoid(chosen - zero))
        undesirable = self.undesirable_weight * (1 - sigmoid(zero - rejected))
        has_chosen, has_rejected = presence(logps)
        return (has_chosen * desirable + has_rejected * undesirable) / (has_chosen + has_rejected)

    def learners(self) -> tuple[Learner, ...]:
        return (self.reference_point,)
