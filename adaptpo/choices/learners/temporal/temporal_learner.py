"""MetaPO's meta-learner: a pair's history, its weight, and how the weight is learned (sections 3.2 to 3.5)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from adaptpo.choices.iteration import Iteration
from adaptpo.choices.learners.base import Estimator, Gather, Influence, Learner, Measure, Schedule, TakenStep
from adaptpo.choices.learners.temporal.cadence import Cadence
from adaptpo.choices.learners.temporal.features import FeatureSet, Floats, Observation, States
from adaptpo.choices.learners.temporal.goal import ValidationGoal, weight_entropy
from adaptpo.choices.learners.temporal.history import History
from adaptpo.choices.learners.temporal.networks import Architecture, new_network
from adaptpo.config.numbers import LargestWeight, LearningRate, NonNegative, ranged
from adaptpo.errors import TrainingError
from adaptpo.types import SOURCES, PairBatch

Divergence = Literal["k3", "exact"]
"""How the divergence of policy and reference is obtained: estimated from stored log-probs of the data's tokens, or
computed over the whole vocabulary, with the reference in every training step."""

COLUMN = "temporal"
"""The name of its weights in `pair_weights.jsonl`, and the prefix of its metrics."""

HARDLY = 0.05
"""The change of a pair's weight, which starts at 1, below which the method is nearly its plain objective."""

MISSING = {
    "divergence": "MetaPO's divergence features need the reference's log-probs of every token, but these pairs have "
    "none; run `adaptpo train`, which stores them, or name other features",
    "head_gradient_norm": "MetaPO's gradient features need the norm of the head's gradient, but these pairs have "
    "none; run `adaptpo train`, which measures it in every step, or name other features",
}


class TemporalLearner(Learner):
    """`w = softplus(a . s + b)` of a pair's features s (Eq. 10), learned on held-out pairs (Eq. 11).

    After the optimizer steps that `cadence` names, the network takes one Adam step of `learning_rate` along the
    gradient of `goal` with respect to its parameters phi, through the step that the policy has just taken (Algorithm 1,
    lines 13 to 19): with i the pairs of that step, `d goal / d phi = sum_i (d goal / d weight_i) * d weight_i / d phi`.
    `entropy` times the entropy of the step's weights is subtracted from the goal (Table 15).

    `normalize` divides each weight by the mean that the network gives the pairs of the previous step (1 before there is
    one). Without it, weights and margins can feed on one another: a large margin raises the pair's weight, which raises
    the margin. With it, weights cannot shrink together, so that a goal that asks for smaller margins turns them over.
    The mean is the previous step's, because no pair's weight may depend on how a step is divided into
    micro-batches. `max_weight` then caps the weight, and no gradient passes the cap.

    `divergence` selects the divergence of the features. The exact one needs a forward pass of the reference in every
    step, and the reference in memory beside the policy.

    An observation counts once the optimizer step is over: all micro-batches and ranks of a step see the same history.
    """

    title = "the learner of pair weights"
    updates: int

    @ranged
    def __init__(
        self,
        features: FeatureSet = FeatureSet(),  # noqa: B008 (frozen)
        architecture: Architecture = "linear",
        learning_rate: LearningRate = 0.03,
        cadence: Cadence = Cadence(),  # noqa: B008 (frozen)
        goal: ValidationGoal = ValidationGoal(),  # noqa: B008 (frozen)
        entropy: NonNegative = 0.0,
        estimator: Estimator = "central",
        divergence: Divergence = "k3",
        normalize: bool = False,
        max_weight: LargestWeight | None = None,
    ) -> None:
        self.features, self.architecture, self.goal = features, architecture, goal
        self.learning_rate, self.cadence, self.entropy = learning_rate, cadence, entropy
        self.normalize, self.max_weight = normalize, max_weight
        self.estimator: Estimator = estimator
        self.divergence: Divergence = divergence
        self.reset(seed=0)

    def __repr__(self) -> str:
        of_learning = ("features", "architecture", "learning_rate", "cadence", "goal", "entropy", "estimator")
        names = (*of_learning, "divergence", "normalize", "max_weight")
        return f"TemporalLearner({', '.join(f'{name}={getattr(self, name)}' for name in names)})"

    def doubts(self, schedule: Schedule) -> list[str]:
        if self.cadence.interval is None:
            return []
        updates, longest = sum(map(self.cadence.updates, schedule.steps)), max(schedule.steps, default=0)
        if updates == 0:
            return [
                f"pair weights will never be learned: an iteration has {longest} optimizer steps, and an update comes "
                f"every {self.cadence.steps_between(longest)}, but not after the first; lower method.meta_interval, or "
                "train longer"
            ]
        return [*self._doubts_of_movement(updates), *self._doubts_of_history(schedule.visits)]

    def _doubts_of_movement(self, updates: int) -> list[str]:
        """Assumes that an Adam step moves a parameter by about the learning rate; d softplus at weight 1 is 1 - 1/e."""
        change = updates * self.learning_rate * (1 - math.exp(-1)) * (1 + len(self.features.names))
        if self.architecture != "linear" or change >= HARDLY:
            return []
        return [
            f"pair weights can hardly move: {updates} updates at learning rate {self.learning_rate:g} change a weight "
            f"by about {change:.1%}; raise method.meta_learning_rate, or lower method.meta_interval"
        ]

    def _doubts_of_history(self, visits: float) -> list[str]:
        if visits >= 2 or not self.features.needs_history:
            return []
        return [
            "each pair is trained on once, so its volatility is 0 and each average equals its current value; "
            "set training.num_train_epochs to 2 or more"
        ]

    def reset(self, seed: int) -> None:
        self.network = new_network(self.architecture, len(self.features.names), seed)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)
        self.history = History(self.features.dtype)
        self.updates: int = 0
        self.last_goal = float("nan")
        self.steps_ahead = 0
        self.last_features = torch.zeros(0, len(self.features.names))
        self._start_counting()

    def start_iteration(self, now: Iteration) -> None:
        """Keeps the histories; the count of steps restarts with the policy's new optimizer."""
        self._start_counting()

    def start_training(self, steps: int) -> None:
        self.steps_ahead = steps

    def _start_counting(self) -> None:
        self.steps, self.seen = 0, torch.zeros(0, 2 + len(self.features.signals), dtype=torch.float64)

    @property
    def measures(self) -> frozenset[Measure]:
        """What the training step computes for these features."""
        exact = self.divergence == "exact" and self.features.needs_divergence
        asked: dict[Measure, bool] = {
            "divergence": exact,
            "head_gradient_norm": "head_gradient_norm" in self.features.signals,
        }
        return frozenset(name for name, needed in asked.items() if needed)

    # Weights

    def features_of(self, pairs: PairBatch) -> Tensor:
        """The features, [n, features] float32 on the CPU, including the current observation; changes nothing."""
        numbers, ids, *signals = self._observations(pairs).numpy().T
        seen = self._named(signals)
        before = self._read(numbers, ids)
        after = self.features.advance(before, seen)
        return torch.from_numpy(self.features.read(before, after, seen))

    def weight(self, pairs: PairBatch) -> Tensor:
        """w of each pair, [n] > 0 on the pairs' device, without gradient."""
        with torch.no_grad():
            return self._weights(self.features_of(pairs)).float().to(pairs.margin.device)

    def _weights(self, features: Tensor) -> Tensor:
        own = self._unscaled(features)
        if self.normalize and len(self.last_features):
            own = own / self._unscaled(self.last_features).mean()
        return own if self.max_weight is None else own.clamp(max=self.max_weight)

    def _unscaled(self, features: Tensor) -> Tensor:
        """The network's weights, in float64: while all weights are equal, the bias has no effect on weights of mean 1,
        and Adam would make full steps of what rounding leaves of its gradient."""
        parameters = {name: parameter.double() for name, parameter in self.network.named_parameters()}
        return functional_call(self.network, parameters, (features.double(),))

    def _observations(self, pairs: PairBatch) -> Tensor:
        """The observations, [n, 2 + signals] float64: number of the history, prompt id, and the features' signals."""
        signals = [self._signal(pairs, name) for name in self.features.signals]
        columns = (pairs.source + len(SOURCES) * place_among_equals(pairs), pairs.prompt_id, *signals)
        return torch.stack([column.detach().cpu().double() for column in columns], dim=1)

    def _signal(self, pairs: PairBatch, name: str) -> Tensor:
        found: Tensor | None = getattr(pairs, name)
        if found is not None:
            return found
        if name == "divergence" and not self.features.needs_divergence:
            return torch.zeros_like(pairs.margin)
        raise TrainingError(MISSING[name])

    def _named(self, signals: Iterable[Floats]) -> Observation:
        return dict(zip(self.features.signals, signals, strict=True))

    def _read(self, numbers: Floats, ids: Floats) -> States:
        states = np.zeros(len(ids), self.features.dtype)
        for number in np.unique(numbers).astype(int):
            members = numbers == number
            states[members] = self.history.read(number, ids[members].astype(int))
        return states

    # Learning

    def observe(self, batch: PairBatch) -> None:
        self.seen = torch.cat([self.seen, self._observations(batch)])

    def update(self, gather: Gather) -> None:
        seen, self.seen = gather(self.seen), self.seen[:0]
        self.steps += 1
        numbers = np.unique(seen[:, 0].numpy()).astype(int).tolist()
        found = [self._remember(number, seen[seen[:, 0] == number].numpy()) for number in numbers]
        self.last_features = torch.from_numpy(np.concatenate(found)) if found else self.last_features[:0]

    def _remember(self, number: int, seen: Floats) -> Floats:
        """Adds a step's observations to a history. Returns the features of its pairs, [n, features]."""
        # Ranks fill their last batch with pairs of other ranks, which count once.
        ids, first = np.unique(seen[:, 1].astype(int), return_index=True)
        observed, before = self._named(seen[first, 2:].T), self.history.read(number, ids)
        after = self.features.advance(before, observed)
        self.history.write(number, ids, after)
        return self.features.read(before, after, observed)

    @property
    def looks_ahead(self) -> Estimator | None:
        return None if self.cadence.interval is None else self.estimator

    def look_ahead(self) -> Estimator | None:
        return self.estimator if self.cadence.due(self.steps + 1, of=self.steps_ahead) else None

    def learn_ahead(self, step: TakenStep, gather: Gather) -> None:
        influence = step.influence(self.goal)
        if influence is None:
            return
        self.optimizer.zero_grad()
        self._surrogate(gather(self._rows(step, influence))).backward()
        self.optimizer.step()
        self.updates, self.last_goal = self.updates + 1, influence.goal

    def _rows(self, step: TakenStep, influence: Influence) -> Tensor:
        """The features of this rank's pairs, their weights and what these did, [n, features + 2] float32."""
        batches = step.batches
        features = [torch.zeros(0, len(self.features.names)), *(self.features_of(pairs) for pairs, _ in batches)]
        weights = [torch.zeros(0), *(weights.detach().cpu() for _, weights in batches)]
        columns = (torch.cat(weights), influence.of_weights.cpu())
        return torch.cat([torch.cat(features), *(column.float()[:, None] for column in columns)], dim=1)

    def _surrogate(self, rows: Tensor) -> Tensor:
        """A scalar whose gradient is that of the goal, from the rows of all ranks. A pair's weight may be w times
        another factor (its share of the prompt, a blend), hence `d weight_i = weight_i * d log w_i`."""
        features, (weights, influence) = rows[:, :-2], rows[:, -2:].T
        own = self._weights(features)
        safe = own.clamp(min=torch.finfo(own.dtype).tiny)
        return (influence * weights * safe.log()).sum() - self.entropy * weight_entropy(own)

    # State, metrics and report

    def state_dict(self) -> dict[str, Any]:
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "last_goal": self.last_goal,
            "steps": self.steps,
            "seen": self.seen,
            "last_features": self.last_features,
        }
        return copy.deepcopy(state) | {"history": self.history.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.last_goal = state["updates"], state["last_goal"]
        self.steps, self.seen, self.last_features = state["steps"], state["seen"], state["last_features"]
        self.history.load_state_dict(state["history"])

    def facts(self, pairs: PairBatch) -> dict[str, list[float]]:
        """The features of each pair by name, and its weight w."""
        features = self.features_of(pairs)
        with torch.no_grad():
            own = self._weights(features).float()
        columns = dict(zip(self.features.names, features.T.tolist(), strict=True))
        # The margin is written for every method.
        return {name: column for name, column in columns.items() if name != "margin"} | {COLUMN: own.tolist()}

    def coefficients(self) -> dict[str, float]:
        """a and b of the linear form by name (Figure 3c); empty for other architectures."""
        if self.architecture != "linear":
            return {}
        values = [*self.network.last.weight[0].tolist(), self.network.last.bias.item()]
        return dict(zip((*self.features.names, "bias"), values, strict=True))

    def metrics(self) -> dict[str, float]:
        shown = {f"{COLUMN}/{name}": value for name, value in self.coefficients().items()}
        goal = {f"{COLUMN}/goal": self.last_goal} if self.updates else {}
        return {f"{COLUMN}/updates": float(self.updates)} | goal | shown

    def snapshot(self) -> dict[str, Any]:
        """The network, in enough detail to compute w, before `normalize` and `max_weight`, from the features in
        `pair_weights.jsonl`."""
        parameters = {name: tensor.tolist() for name, tensor in self.network.state_dict().items()}
        return {
            "learned_weight": {
                "column": COLUMN,
                "features": list(self.features.names),
                "architecture": self.architecture,
                "coefficients": self.coefficients(),
                "parameters": parameters,
                "updates": self.updates,
            }
        }


def place_among_equals(pairs: PairBatch) -> Tensor:
    """The number of earlier pairs of the same prompt and source, [n]."""
    same = (pairs.group[:, None] == pairs.group) & (pairs.source[:, None] == pairs.source)
    return same.tril(diagonal=-1).sum(dim=1)
