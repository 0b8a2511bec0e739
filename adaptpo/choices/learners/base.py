"""What weighting and learners see of a micro-batch, and the protocol of everything that learns beside the policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from adaptpo.choices.iteration import Iteration
from adaptpo.choices.learners.pair_features import PairFeature
from adaptpo.types import PairBatch

Measure = Literal["divergence", "head_gradient_norm"]
"""Fields of `PairBatch` that a training step computes from the whole vocabulary, for a weighting that asks for them."""


METHOD_STATE = "method.pt"
"""The learners' state in the folder of a checkpoint."""


Gather = Callable[[Tensor], Tensor]
"""Concatenates the rows of a tensor [n, ...] over all ranks; the identity on one process."""


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


@dataclass(frozen=True)
class Schedule:
    """The training ahead: `steps`, the maximum number of optimizer steps of each iteration, and `visits`, how often the
    run trains on each offline pair."""

    steps: tuple[int, ...]
    visits: float


class Learner:
    """Something with state that learns beside the policy. Every hook is a no-op until overridden.

    `title` names it in messages. `updates` counts how often it has learned; None for a learner that has no such count.
    """

    title: ClassVar[str] = "the learner"
    updates: int | None = None

    def doubts(self, schedule: Schedule) -> list[str]:
        """Why this training could teach it little or nothing, each with the remedy; said before training starts."""
        return []

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
        """Whether there are steps that `look_ahead` will name an estimator for. The optimizer's step must be one that
        can be differentiated (see `adaptpo.training.optimizer_rules`), in float32."""
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

    def external_inputs(self) -> dict[str, str]:
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
