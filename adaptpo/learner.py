"""What weighting and learners see of a micro-batch, and the protocol of everything that learns beside the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adaptpo.errors import TrainingError
from adaptpo.iteration import Iteration

SOURCES = ("offline", "online", "mixed")
OFFLINE, ONLINE, MIXED = range(3)

if TYPE_CHECKING:  # Features know objectives, which know learners.
    from adaptpo.features import PairFeature

METHOD_STATE = "method.pt"
"""The learners' state in the folder of a checkpoint."""

Gather = Callable[[Tensor], Tensor]
"""Concatenates the rows of a tensor [n, ...] over all ranks; the identity on one process."""


@dataclass(frozen=True)
class PairBatch:
    """Detached facts about the n pairs of a micro-batch of whole prompt groups; every tensor has shape [n].

    `group` numbers the prompt groups of the micro-batch from 0; `group_size` is how many pairs the pair's prompt has
    in all; `reward_gap` is NaN where nobody annotated the pair; `data_weight` is the row's column `weight`, or 1;
    `ratios` [n, 2] are log pi / pi_ref of chosen and rejected in nats (log pi without a reference); `features` hold, by
    name, the [n, width] that learners asked for about the offline pair of each pair's prompt.

    Raises TrainingError if a group is torn: its weights would no longer be shares of one prompt.
    """

    prompt_id: Tensor
    group: Tensor
    group_size: Tensor
    source: Tensor
    reward_gap: Tensor
    data_weight: Tensor
    margin: Tensor
    ratios: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        present = torch.bincount(self.group)[self.group]
        if not torch.equal(present, self.group_size):
            torn = self.prompt_id[present != self.group_size].unique().tolist()
            raise TrainingError(
                f"prompts {torn[:5]} came with only some of their pairs in one micro-batch; "
                "batch whole prompt groups, or the weights within a prompt no longer sum to 1"
            )


class Learner:
    """Something with state that learns beside the policy. Every hook is a no-op until overridden."""

    def reset(self, seed: int) -> None:
        """Start afresh for a run with this seed."""

    def needs_stage(self, iteration: int) -> bool:
        """Whether `start_iteration` wants the alignment stage measured before this iteration."""
        return False

    def start_iteration(self, now: Iteration) -> None:
        """Called before anything is decided in an iteration, also where a killed run goes on in it."""

    def observe(self, batch: PairBatch) -> None:
        """See a micro-batch that the policy was just trained on. Never called in evaluation."""

    def update(self, gather: Gather) -> None:
        """Called after every optimizer step of the policy; learn if it is time to."""

    def needed_features(self) -> tuple[PairFeature, ...]:
        """What the run has to compute about every offline pair for this learner."""
        return ()

    def sources(self) -> dict[str, str]:
        """Models and files beside those of the run that this learner reads: name -> path or hub id."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def metrics(self) -> dict[str, float]:
        """Scalars for the log of the current step."""
        return {}

    def snapshot(self) -> dict[str, Any]:
        """JSON-ready facts for the report, taken at the start and after each iteration."""
        return {}
