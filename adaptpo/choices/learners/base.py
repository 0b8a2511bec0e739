"""The protocol of everything that learns beside the policy, and what it sees of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from adaptpo.choices.described import Described
from adaptpo.choices.iteration import Iteration
from adaptpo.choices.learners.pair_features import PairFeature
from adaptpo.types import PairBatch

Measure = Literal["divergence", "head_gradient_norm", "on_policy"]
"""Fields of `PairBatch` that a training step computes from the whole vocabulary, for a weighting that needs them."""


METHOD_STATE = "method.pt"
"""The file of the learners' state in a checkpoint's folder."""


Gather = Callable[[Tensor], Tensor]
"""Concatenates the rows of a tensor [n, ...] over all ranks; the identity on one process."""


Estimator = Literal["central", "jvp", "exact"]
"""How a derivative through an optimizer step is computed: by a central difference, in forward mode, or by
differentiating the step itself."""


Goal = Callable[[Tensor, Tensor, int, int], Tensor]
"""Maps losses [n] and margins [n] of some held-out pairs, the total number of held-out pairs, and the number of those
with a positive margin to the contribution of these n to a goal (lower is better): a scalar with a graph."""


@dataclass(frozen=True)
class Influence:
    """`goal`: its value after a step. `of_weights` [n]: its derivatives with respect to the weights of that step's
    pairs, in their order."""

    goal: float
    of_weights: Tensor


class TakenStep(Protocol):
    """An optimizer step that the policy has just taken, for learners that measure the effect of its weights."""

    @property
    def batches(self) -> Sequence[tuple[PairBatch, Tensor]]:
        """The pairs of each micro-batch (of this rank) with their weights [n]."""

    def influence(self, goal: Goal) -> Influence | None:
        """The effect of the weights on the policy's goal on held-out pairs; None if no pairs are held out."""


@dataclass(frozen=True)
class Schedule:
    """The training ahead: `steps`, the maximum number of optimizer steps of each iteration, and `visits`, how often the
    run trains on each offline pair."""

    steps: tuple[int, ...]
    visits: float


class Learner(Described):
    """A component with state that learns beside the policy. Every hook is a no-op until overridden.

    `title` names it in messages. `updates` is its number of updates, None for a learner that does not count them.
    """

    title: ClassVar[str] = "the learner"
    updates: int | None = None

    def doubts(self, schedule: Schedule) -> list[str]:
        """Reasons why this training could teach it little or nothing, each with a remedy; shown before training."""
        return []

    def reset(self, seed: int) -> None:
        """Resets the learner for a run with this seed."""

    def needs_stage(self, iteration: int) -> bool:
        """Whether `start_iteration` needs the alignment stage measured before this iteration."""
        return False

    def start_iteration(self, now: Iteration) -> None:
        """Called before anything is decided in an iteration, also when a killed run resumes in it."""

    def start_training(self, steps: int) -> None:
        """Called before the policy takes the `steps` optimizer steps of an iteration, also when a killed run resumes
        among them."""

    def observe(self, batch: PairBatch) -> None:
        """Receives a micro-batch that the policy was just trained on. Never called in evaluation."""

    @property
    def looks_ahead(self) -> Estimator | None:
        """The estimator that `look_ahead` will name for some steps. The optimizer's step must be differentiable (see
        `adaptpo.training.optimizer_rules`) and in float32."""
        return None

    def look_ahead(self) -> Estimator | None:
        """How to differentiate the coming optimizer step; None if the learner does not learn from it."""
        return None

    def learn_ahead(self, step: TakenStep, gather: Gather) -> None:
        """Called after an optimizer step for which `look_ahead` named an estimator, before `update`."""

    def update(self, gather: Gather) -> None:
        """Called after every optimizer step of the policy, on all ranks; learns if an update is due. Each rank's
        observations are gathered here: between steps, a learner is the same on all ranks."""

    def needed_features(self) -> tuple[PairFeature, ...]:
        """The features that the run computes of every offline pair for this learner."""
        return ()

    def external_inputs(self) -> dict[str, str]:
        """Models and files that this learner reads beside those of the run: name -> path or hub id."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state between optimizer steps, when it is the same on all ranks."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""

    def metrics(self) -> dict[str, float]:
        """Scalars for the log of the current step."""
        return {}

    def snapshot(self) -> dict[str, Any]:
        """JSON-ready values for the report, taken at the start and after each iteration."""
        return {}
