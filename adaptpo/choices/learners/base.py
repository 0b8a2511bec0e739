"""What weighting and learners see of a micro-batch, and the protocol of everything that learns beside the policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from adaptpo.choices.iteration import Iteration
from adaptpo.errors import TrainingError

SOURCES = ("offline", "online", "mixed")
OFFLINE, ONLINE, MIXED = range(3)

if TYPE_CHECKING:  # Features know objectives, which know learners.
    from adaptpo.choices.learners.pair_features import PairFeature

Measure = Literal["divergence", "head_gradient_norm"]
"""Fields of `PairBatch` that a training step computes from the whole vocabulary, for a weighting that asks for them."""

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
    name, the [n, width] that learners asked for about the offline pair of each pair's prompt; `divergence` is that of
    `PairLogps`, None where the run keeps no reference log-probs of tokens, or the exact one for a weighting that
    measures it; `head_gradient_norm` is `log(1 + norm)` of the gradient of the pair's loss by the weight of the
    language-model head, None where the weighting does not measure it.

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
    divergence: Tensor | None = None
    head_gradient_norm: Tensor | None = None

    def __post_init__(self) -> None:
        present = torch.bincount(self.group)[self.group]
        if not torch.equal(present, self.group_size):
            torn = self.prompt_id[present != self.group_size].unique().tolist()
            raise TrainingError(
                f"prompts {torn[:5]} came with only some of their pairs in one micro-batch; "
                "batch whole prompt groups, or the weights within a prompt no longer sum to 1"
            )


Estimator = Literal["central", "jvp", "exact"]
"""How a derivative through an optimizer step is found: by a central difference, in forward mode, or by
differentiating the step itself."""

Goal = Callable[[Tensor, Tensor, int, int], Tensor]
"""From losses [n] and margins [n] of some held-out pairs, the number of all of them, and the number of those with a
positive margin, to the part of a goal (the less, the better) that these n make: a scalar with a graph."""


@dataclass(frozen=True)
class Influence:
    """`goal`: its value after a step. `of_weights` [n]: its derivatives with respect to the weights of the pairs of
    that step, in their order."""

    goal: float
    of_weights: Tensor


class TakenStep(Protocol):
    """An optimizer step that the policy has just taken, for learners that ask what its weights were worth."""

    @property
    def batches(self) -> Sequence[tuple[PairBatch, Tensor]]:
        """The pairs of each micro-batch (of this rank) with their weights [n]."""

    def influence(self, goal: Goal) -> Influence | None:
        """What the weights did to the policy's goal on held-out pairs; None where no pairs are held out."""


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

    @property
    def looks_ahead(self) -> bool:
        """Whether there are steps that `look_ahead` will name an estimator for."""
        return False

    def look_ahead(self) -> Estimator | None:
        """How the coming optimizer step is to be differentiated, if it is one to learn from."""
        return None

    def learn_ahead(self, step: TakenStep, gather: Gather) -> None:
        """Called after an optimizer step for which `look_ahead` named an estimator, before `update`."""

    def update(self, gather: Gather) -> None:
        """Called after every optimizer step of the policy, on all ranks; learn if it is time to. What ranks observed
        by themselves is gathered here: between steps, a learner is the same on all of them."""

    def needed_features(self) -> tuple[PairFeature, ...]:
        """What the run has to compute about every offline pair for this learner."""
        return ()

    def sources(self) -> dict[str, str]:
        """Models and files beside those of the run that this learner reads: name -> path or hub id."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Taken between optimizer steps, where it is the same on all ranks."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def metrics(self) -> dict[str, float]:
        """Scalars for the log of the current step."""
        return {}

    def snapshot(self) -> dict[str, Any]:
        """JSON-ready facts for the report, taken at the start and after each iteration."""
        return {}
