"""The weighting axis: how much each pair counts.

To add one, write its class here and list it in `WEIGHTINGS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from adaptpo.choices.choice import Choice
from adaptpo.choices.iteration import UNKNOWN_STAGE, Iteration, StageReading
from adaptpo.choices.learners.base import Learner, Measure
from adaptpo.choices.learners.reward_gap import RunningGap
from adaptpo.choices.learners.temporal import TemporalLearner
from adaptpo.choices.learners.trust import Trust
from adaptpo.config.numbers import NonNegative, Positive
from adaptpo.types import OFFLINE, PairBatch


class Weighting(Choice, ABC):
    """One of the four choices. Weights are a pure function of detached values; any learning happens in learners.

    With `needs_data_weight`, rows without a valid column `weight` are left out of the data.
    """

    needs_data_weight: ClassVar[bool] = False

    @property
    def needs_reference_tokens(self) -> bool:
        """Whether the run stores the reference's log-probs of every token, regardless of the objective."""
        return False

    @property
    def measures(self) -> frozenset[Measure]:
        """The values that each training step computes from the whole vocabulary for these weights."""
        return frozenset()

    def at(self, now: Iteration) -> Weighting:
        return self

    @abstractmethod
    def weights(self, batch: PairBatch) -> Tensor:
        """The weight of each pair, [n], no gradient; the loss is divided by the number of prompts, not of pairs."""

    def facts(self, batch: PairBatch) -> dict[str, list[float]]:
        """Further columns of `pair_weights.jsonl` about the n pairs: lists of n numbers by name."""
        return {}


@dataclass(frozen=True)
class Uniform(Weighting):
    """A weight of 1 per prompt, shared equally by its pairs.

    >>> import torch
    >>> from adaptpo.types import OFFLINE, ONLINE
    >>> pair = dict(prompt_id=torch.tensor([7, 7]), group=torch.tensor([0, 0]), group_size=torch.tensor([2, 2]))
    >>> pair |= dict(source=torch.tensor([OFFLINE, ONLINE]), reward_gap=torch.tensor([float("nan"), 2.0]))
    >>> pair |= dict(data_weight=torch.ones(2), margin=torch.tensor([-1.0, 1.0]), ratios=torch.zeros(2, 2))
    >>> batch = PairBatch(**pair)
    >>> Uniform().weights(batch)
    tensor([0.5000, 0.5000])
    """

    def weights(self, batch: PairBatch) -> Tensor:
        return 1.0 / batch.group_size


@dataclass(frozen=True)
class LearnedBlend(Weighting):
    """`w = h(l_off)` for the offline pair and `1 - w` for the online pair of a prompt (MetaAPO, Eq. 5).

    `w` is recomputed from the current policy's margin at every step; the only pair of a prompt counts 1, and so do the
    pairs of a prompt without an offline one.

    >>> import torch
    >>> from adaptpo.types import OFFLINE, ONLINE
    >>> pair = dict(prompt_id=torch.tensor([7, 7]), group=torch.tensor([0, 0]), group_size=torch.tensor([2, 2]))
    >>> pair |= dict(source=torch.tensor([OFFLINE, ONLINE]), reward_gap=torch.tensor([float("nan"), 2.0]))
    >>> pair |= dict(data_weight=torch.ones(2), margin=torch.tensor([-1.0, 1.0]), ratios=torch.zeros(2, 2))
    >>> batch = PairBatch(**pair)
    >>> from adaptpo.choices.learners.trust import ConstantTrust
    >>> LearnedBlend(ConstantTrust(0.7)).weights(batch)
    tensor([0.7000, 0.3000])
    """

    learner: Trust

    def weights(self, batch: PairBatch) -> Tensor:
        trust = torch.zeros_like(batch.margin)
        offline = batch.source == OFFLINE
        trust[batch.group[offline]] = self.learner.weight(batch)[offline]
        trust = trust[batch.group]
        blend = torch.where(offline, trust, 1 - trust)
        return torch.where(batch.group_size == 1, torch.ones_like(blend), blend)

    def learners(self) -> tuple[Learner, ...]:
        return (self.learner,)


@dataclass(frozen=True)
class LabelDegrees(Weighting):
    """`d_i / sum_j d_j` over the pairs of a prompt, `d_i = h(l_i)` (MetaAPO, section 4.1, for several objectives).

    The degrees are recomputed from the current policy's margins at every step; the only pair of a prompt counts 1.
    """

    learner: Trust

    def weights(self, batch: PairBatch) -> Tensor:
        degrees = self.learner.weight(batch)
        totals = torch.zeros_like(degrees).index_add(0, batch.group, degrees)
        return degrees / totals[batch.group]

    def learners(self) -> tuple[Learner, ...]:
        return (self.learner,)


@dataclass(frozen=True)
class Focal(Weighting):
    """`p^gamma` with `p = sigmoid(margin)`, times the pair's share of its prompt (FocalPO; Eq. 2 of the MetaPO paper).

    With gamma > 0, pairs that the policy ranks correctly count more. The factor is a weight and carries no gradient,
    like MetaPO's weights, with which it is compared.
    """

    gamma: NonNegative = 0.05

    def weights(self, batch: PairBatch) -> Tensor:
        return torch.sigmoid(batch.margin) ** self.gamma / batch.group_size


@dataclass(frozen=True)
class OnPolicy(Weighting):
    """`w(y_w) w(y_l)`, times the pair's share of its prompt (WPO; Zhou et al., 2024, Eq. 2, with sampled alignment).

    `w(y) = exp(mean over the tokens of y of [log pi(y_t) - log sum_v pi(v)^2])`: 1 for responses that are as likely as
    the policy's own samples, so that off-policy pairs count like on-policy ones. The policy is that of the current
    step, and the weight carries no gradient.
    """

    @property
    def measures(self) -> frozenset[Measure]:
        return frozenset({"on_policy"})

    def weights(self, batch: PairBatch) -> Tensor:
        assert batch.on_policy is not None
        return batch.on_policy / batch.group_size


@dataclass(frozen=True)
class RewardDifference(Weighting):
    """Annotated pairs count by their reward gap, `gap / mean gap`, clipped at `limit`; other pairs count 1.

    After RDO (Wang et al., 2024), which weights by closed-form coefficients of reward differences. The mean is a
    running mean over optimizer steps, so no weight depends on how a step is divided into micro-batches.
    """

    scale: RunningGap
    limit: Positive = 3.0

    def weights(self, batch: PairBatch) -> Tensor:
        gaps = (batch.reward_gap / self.scale.mean).clamp(max=self.limit)
        return torch.where(batch.reward_gap.isnan(), torch.ones_like(gaps), gaps) / batch.group_size

    def learners(self) -> tuple[Learner, ...]:
        return (self.scale,)


@dataclass(frozen=True)
class DataWeight(Weighting):
    """The data set's own column `weight`, times the pair's share of its prompt.

    Fresh pairs have the weight of their prompt's row.
    """

    needs_data_weight: ClassVar[bool] = True

    def weights(self, batch: PairBatch) -> Tensor:
        return batch.data_weight / batch.group_size


@dataclass(frozen=True)
class StageBlend(Weighting):
    """The boundary score for the online pair of a prompt, and the rest for its offline pair: the smooth form of the
    switch between stages that the alignment-stages paper leaves open. The only pair of a prompt counts 1."""

    stage: StageReading = UNKNOWN_STAGE

    def needs_stage(self, iteration: int) -> bool:
        return True

    def at(self, now: Iteration) -> StageBlend:
        return replace(self, stage=now.measured())

    def weights(self, batch: PairBatch) -> Tensor:
        online = self.stage.of_prompts(batch.prompt_id)
        blend = torch.where(batch.source == OFFLINE, 1 - online, online)
        return torch.where(batch.group_size == 1, torch.ones_like(blend), blend)


@dataclass(frozen=True)
class Temporal(Weighting):
    """`softplus(a . s + b)` of the features s of a pair's training history (MetaPO, Eq. 10), times its weight by
    `within`: its share of the prompt, or MetaAPO's blend."""

    learner: TemporalLearner
    within: Weighting = field(default_factory=Uniform)

    @property
    def needs_reference_tokens(self) -> bool:
        return self.learner.divergence == "k3"

    @property
    def measures(self) -> frozenset[Measure]:
        return self.learner.measures | self.within.measures

    def needs_stage(self, iteration: int) -> bool:
        return self.within.needs_stage(iteration)

    def at(self, now: Iteration) -> Temporal:
        return replace(self, within=self.within.at(now))

    def weights(self, batch: PairBatch) -> Tensor:
        return self.learner.weight(batch) * self.within.weights(batch)

    def facts(self, batch: PairBatch) -> dict[str, list[float]]:
        return self.learner.facts(batch)

    def learners(self) -> tuple[Learner, ...]:
        return (self.learner, *self.within.learners())


WEIGHTINGS: dict[str, type[Weighting]] = {
    "uniform": Uniform,
    "learned_blend": LearnedBlend,
    "label_degrees": LabelDegrees,
    "focal": Focal,
    "on_policy": OnPolicy,
    "reward_difference": RewardDifference,
    "data_weight": DataWeight,
    "stage_blend": StageBlend,
    "temporal": Temporal,
}
