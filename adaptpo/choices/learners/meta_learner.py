"""MetaAPO's meta-learner: a small network that maps a pair's preference score to its weight (section 4.3)."""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptpo.choices.iteration import Iteration
from adaptpo.choices.learners.base import METHOD_STATE, Gather, Schedule
from adaptpo.choices.learners.pair_features import PairFeature
from adaptpo.choices.learners.trust import ScoredPairs, Share, Trust
from adaptpo.choices.objectives import score
from adaptpo.config.numbers import Count, LearningRate, NonNegative, Positive, ranged
from adaptpo.errors import ConfigError
from adaptpo.types import OFFLINE, ONLINE, PairBatch

HIDDEN = 100


Feature = Literal["score", "ratios"]


WIDTHS: dict[Feature, int] = {"score": 1, "ratios": 2}


def new_network(seed: int, constant_fill: bool = False, layers: int = 2, inputs: int = 1) -> nn.Sequential:
    """Linear - Tanh - ... - Linear - Sigmoid with 100 hidden units, rising from about 0 at very negative scores to 0.5
    at 0; the score is the first input.

    The score's weights and the last layer's are uniform on (0, 0.2), with mean 0.1 as in the authors' released code;
    those of intermediate layers are uniform on (0, 0.02), which passes on the mean of a layer; those of further inputs
    are small and of either sign; biases are 0. `constant_fill` sets the score's and the last layer's weights to 0.1, as
    the released code does: all hidden units then stay equal and act as one.
    """
    generator = torch.Generator().manual_seed(seed)
    linears = [nn.Linear(inputs if n == 0 else HIDDEN, HIDDEN) for n in range(layers - 1)] + [nn.Linear(HIDDEN, 1)]
    for number, linear in enumerate(linears):
        nn.init.zeros_(linear.bias)
        top = 0.2 if number in (0, layers - 1) else 2 / HIDDEN
        nn.init.uniform_(linear.weight, 0.0, top, generator=generator)
        if constant_fill:
            nn.init.constant_(linear.weight, top / 2)
    with torch.no_grad():
        linears[0].weight[:, 1:] = 0.1 * (linears[0].weight[:, 1:] - 0.1)
    modules: list[nn.Module] = [linears[0]]
    for linear in linears[1:]:
        modules += [nn.Tanh(), linear]
    return nn.Sequential(*modules, nn.Sigmoid())


class MetaLearner(Trust):
    """h of MetaAPO: `w = h(l_off)`, learned by one Adam step on Eq. 6 every `update_interval` optimizer steps.

    The buffer holds the interval's scores from the policy's own forward passes (the policy is frozen while h learns,
    Algorithm 1 lines 18-21), over all ranks and accumulation steps. It is emptied by every update and at the start of
    every iteration.

    `score_scale` multiplies the margin before `log sigmoid`: 1 is Eq. 4, `1 / beta` is the scale of the authors'
    released code. `features` adds the two log-ratios to the score, `layers` makes the network deeper (both Table 7),
    `pair_features` adds features that the run computes of the offline pair. `frozen` keeps the network as it is;
    `trained` names the folder of an earlier run whose network it starts from. With `drift`, an update comes as soon as
    the buffer's mean score is that many standard deviations away from its mean at the previous update, and after four
    intervals at the latest (the adaptive interval that the paper leaves open). With `stage_start`, the boundary score
    of the policy that starts the first iteration sets the output's bias: a policy in the injection stage starts by
    trusting offline pairs.

    >>> from adaptpo.choices.selection import ScoredPrompts
    >>> MetaLearner().weight(ScoredPrompts(3, torch.tensor([-40.0, -1.0, 10.0])))
    tensor([2.1377e-04, 2.2560e-01, 4.9999e-01])
    """

    title = "the meta-learner"
    updates: int

    @ranged
    def __init__(
        self,
        learning_rate: LearningRate = 5e-3,
        update_interval: Count = 8,
        score_scale: Positive = 1.0,
        constant_fill: bool = False,
        layers: Count = 2,
        features: tuple[Feature, ...] = ("score",),
        frozen: bool = False,
        drift: NonNegative | None = None,
        pair_features: tuple[PairFeature, ...] = (),
        trained: str | None = None,
        stage_start: bool = False,
    ) -> None:
        self.learning_rate = learning_rate
        self.update_interval = update_interval
        self.score_scale = score_scale
        self.constant_fill = constant_fill
        self.layers, self.features, self.frozen, self.drift = layers, features, frozen, drift
        self.pair_features, self.trained, self.stage_start = pair_features, trained, stage_start
        self.reset(seed=0)

    def __repr__(self) -> str:
        parameters = inspect.signature(MetaLearner).parameters
        settings = {name: (getattr(self, name), parameters[name].default) for name in parameters}
        always = ("learning_rate", "update_interval")
        shown = {name: own for name, (own, usual) in settings.items() if name in always or own != usual}
        shown |= {"trained": True} if self.trained else {}  # The weights' path may change; see `external_inputs`.
        return f"MetaLearner({', '.join(f'{name}={value}' for name, value in shown.items())})"

    def expected_share(self) -> Share:
        if self.frozen:
            return Share(0.606, "assumed: the annotation ratio of a fixed meta-learner in the MetaAPO paper (Table 2)")
        return Share(0.58, "assumed: the share selected in the MetaAPO paper (section 5.2)")

    def doubts(self, schedule: Schedule) -> list[str]:
        most = max(schedule.steps, default=0)
        if self.frozen or most >= self.update_interval:
            return []
        return [
            f"the meta-learner will never be updated: an iteration has {most} optimizer step(s), and an update comes "
            f"every {self.update_interval}; lower meta.update_interval, or use smaller batches"
        ]

    @property
    def inputs(self) -> int:
        return sum(WIDTHS[name] for name in self.features) + sum(feature.width for feature in self.pair_features)

    def needed_features(self) -> tuple[PairFeature, ...]:
        return self.pair_features

    def external_inputs(self) -> dict[str, str]:
        encoders = {feature.name: feature.encoder for feature in self.pair_features if feature.encoder is not None}
        return encoders | ({"learner": str(learner_file(self.trained))} if self.trained else {})

    def reset(self, seed: int) -> None:
        self.network = new_network(seed, self.constant_fill, self.layers, self.inputs)
        if self.trained is not None:
            self.load_trained(self.trained)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)
        self.updates: int = 0
        self.last_loss = float("nan")
        self.last_mean: float | None = None
        self.clear_buffer()

    def load_trained(self, path: str) -> None:
        try:
            self.network.load_state_dict(trained_network(path))
        except RuntimeError as error:
            raise ConfigError(
                f"the meta-learner at '{path}' has other inputs or layers than this method's; "
                "give a run of the method metaapo"
            ) from error

    def needs_stage(self, iteration: int) -> bool:
        return self.stage_start and iteration == 0

    def start_iteration(self, now: Iteration) -> None:
        self.clear_buffer()
        if self.needs_stage(now.number):
            self.start_at(1 - now.measured().score)

    def start_at(self, trust: float) -> None:
        """Makes h rise to `trust` instead of 0.5 at score 0, clipped to [0.05, 0.95] so that it still learns."""
        share = min(max(trust, 0.05), 0.95)
        nn.init.constant_(self.network[-2].bias, math.log(share / (1 - share)))

    def clear_buffer(self) -> None:
        self.steps, self.buffer, self.shared = 0, self.empty_buffer(), 0

    def empty_buffer(self) -> Tensor:
        """An empty buffer, [0, inputs + 1]: a row is an offline pair's inputs and its prompt's online score."""
        return torch.zeros(0, self.inputs + 1)

    def scores(self, margins: Tensor) -> Tensor:
        return score(self.score_scale * margins.detach().float().cpu())

    def inputs_of(self, pairs: ScoredPairs) -> Tensor:
        """The network's inputs, [n, inputs] on the CPU; the score comes first."""
        assert pairs.margin is not None
        columns = [self.scores(pairs.margin)[:, None]]
        if "ratios" in self.features:
            assert pairs.ratios is not None
            columns.append(pairs.ratios.detach().float().cpu())
        columns += [pairs.features[feature.name].float().cpu() for feature in self.pair_features]
        return torch.cat(columns, dim=1)

    def weight(self, pairs: ScoredPairs) -> Tensor:
        """`h(l_off)` in (0, 1) for n offline pairs: the trust in each, [n], without gradient."""
        assert pairs.margin is not None
        with torch.no_grad():
            return self.network(self.inputs_of(pairs))[:, 0].to(pairs.margin.device)

    def loss(self, buffer: Tensor) -> Tensor:
        """Eq. 6 on rows of (inputs of the offline pair, score of the online pair):
        `-mean[h(l_off) * l_off + (1 - h(l_off)) * l_on]`."""
        offline, online = buffer[:, 0], buffer[:, -1]
        weight = self.network(buffer[:, :-1])[:, 0]
        return -(weight * offline + (1 - weight) * online).mean()

    def observe(self, batch: PairBatch) -> None:
        if not self.frozen:
            self.buffer = torch.cat([self.buffer, self.paired_rows(batch)])

    def paired_rows(self, batch: PairBatch) -> Tensor:
        """Rows of the buffer, one for each prompt that has an offline and an online pair."""
        inputs, scores = self.inputs_of(batch), self.scores(batch.margin)
        rows = [self.empty_buffer()]
        for group in batch.group.unique():
            members = batch.group == group
            offline, online = (members & (batch.source == source) for source in (OFFLINE, ONLINE))
            if offline.any() and online.any():
                rows.append(torch.cat([inputs[offline.cpu()].mean(dim=0), scores[online.cpu()].mean()[None]])[None])
        return torch.cat(rows)

    def update(self, gather: Gather) -> None:
        self.steps += 1
        # Rows from earlier steps are on all ranks already.
        buffer = self.buffer = torch.cat([self.buffer[: self.shared], gather(self.buffer[self.shared :])])
        self.shared = len(buffer)
        if self.drift is None and self.steps % self.update_interval:
            return
        if self.drift is not None and not self.drifted(buffer[:, 0]):
            return
        self.clear_buffer()
        if len(buffer):
            self._learn(buffer)

    def drifted(self, scores: Tensor) -> bool:
        """Whether these offline scores call for an update; the baseline is their mean at the previous update."""
        assert self.drift is not None
        if len(scores) < 2:
            return False
        if self.last_mean is None or self.steps >= 4 * self.update_interval:
            return self.steps >= self.update_interval
        return abs(scores.mean().item() - self.last_mean) >= self.drift * scores.std().item()

    def _learn(self, buffer: Tensor) -> None:
        self.optimizer.zero_grad()
        loss = self.loss(buffer)
        loss.backward()
        self.last_mean = buffer[:, 0].mean().item()
        self.optimizer.step()
        self.updates, self.last_loss = self.updates + 1, loss.item()

    def state_dict(self) -> dict[str, Any]:
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "last_loss": self.last_loss,
            "last_mean": self.last_mean,
            "steps": self.steps,
            "buffer": self.buffer,
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.last_loss = state["updates"], state["last_loss"]
        self.last_mean = state["last_mean"]
        self.steps, self.buffer = state["steps"], state["buffer"]
        self.shared = len(self.buffer)

    def metrics(self) -> dict[str, float]:
        counts = {"meta/updates": float(self.updates), "meta/buffer": float(len(self.buffer))}
        return counts | ({"meta/loss": self.last_loss} if self.updates else {})

    def snapshot(self) -> dict[str, Any]:
        """The learner's curve over margins from -40 to 10 (Figure 3, middle); its other inputs are 0."""
        margins = torch.linspace(-40, 10, 501) / max(self.score_scale, 1.0)
        scores = self.scores(margins)
        others = torch.zeros(len(scores), self.inputs - 1)
        with torch.no_grad():
            weights = self.network(torch.cat([scores[:, None], others], dim=1))[:, 0]
        return {"curve": {"score": scores.tolist(), "weight": weights.tolist()}}


def learner_file(path: str) -> Path:
    """The file of the learners' state in a checkpoint, or in the last checkpoint of a run.

    Raises ConfigError if the folder is neither.
    """
    folder = Path(path).expanduser()
    if (folder / METHOD_STATE).is_file():
        return folder / METHOD_STATE
    found = folder.glob(f"iterations/*/checkpoint/{METHOD_STATE}")
    files = sorted(found, key=lambda file: int(file.parents[1].name))
    if not files:
        raise ConfigError(
            f"no trained learner at '{path}': it holds no {METHOD_STATE} and no finished iteration; "
            "give the folder of a run, or its iterations/T/checkpoint"
        )
    return files[-1]


def trained_network(path: str) -> dict[str, Tensor]:
    """The weights of a run's meta-learner. Raises ConfigError if the run has none, or more than one."""
    state = torch.load(learner_file(path), map_location="cpu", weights_only=True)
    networks = [learner["network"] for learner in state["learners"] if "network" in learner]
    if len(networks) != 1:
        raise ConfigError(
            f"the run at '{path}' has {len(networks)} meta-learners, but one is needed; "
            "give a run of the method metaapo"
        )
    return networks[0]


class DegreeLearner(MetaLearner):
    """`d_i = h(l_i)` for the M + 1 pairs of a prompt, the offline one and one for each of M objectives.

    The paper defines the degrees and their normalization. Here h learns by Eq. 6 over all pairs of a prompt,
    `-mean sum_i d_i / (sum_j d_j) * l_i`, from the scores of the interval's training forward passes.
    """

    def __init__(self, objectives: Count = 2, learning_rate: LearningRate = 5e-3, update_interval: Count = 8) -> None:
        self.objectives = objectives
        super().__init__(learning_rate, update_interval)

    def __repr__(self) -> str:
        return (
            f"DegreeLearner(objectives={self.objectives}, learning_rate={self.learning_rate}, "
            f"update_interval={self.update_interval})"
        )

    def empty_buffer(self) -> Tensor:
        """An empty buffer, [0, M + 1]: a row is the scores of a prompt's pairs."""
        return torch.zeros(0, self.objectives + 1)

    def paired_rows(self, batch: PairBatch) -> Tensor:
        """Rows of the buffer, one for each prompt that has all its pairs."""
        scores, groups = self.scores(batch.margin), batch.group.cpu()
        rows = [scores[groups == group] for group in groups.unique()]
        whole = [row[None] for row in rows if len(row) == self.objectives + 1]
        return torch.cat([self.empty_buffer(), *whole])

    def loss(self, buffer: Tensor) -> Tensor:
        degrees = self.network(buffer.reshape(-1, 1)).view_as(buffer)
        shares = degrees / degrees.sum(dim=1, keepdim=True)
        return -(shares * buffer).sum(dim=1).mean()
