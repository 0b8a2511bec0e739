"""Filters, applied before any training: which offline pairs are used, or in which order.

To add one, write its class here and list it in `FILTERS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from adaptpo.config.numbers import PositiveFraction, Ranged


@dataclass(frozen=True)
class PairFacts:
    """What is known about n offline pairs, [n] each; None unless the filter needs it.

    `perplexity`: of the chosen response under the initial model. `margin`: under a model trained on all pairs.
    `held_out_margin`: under a model trained on the other half of the pairs. `reward_gap`: the annotator's reward of
    chosen minus rejected, NaN if it has none.
    """

    count: int
    perplexity: Tensor | None = None
    margin: Tensor | None = None
    held_out_margin: Tensor | None = None
    reward_gap: Tensor | None = None


class Filter(Ranged, ABC):
    """Keeps the pairs of highest priority. `needs` names the fields of `PairFacts` that it reads. With `orders`, pairs
    are trained in the order of `priority`; with `keeps_all`, there is nothing to filter."""

    needs: ClassVar[frozenset[str]] = frozenset()
    orders: ClassVar[bool] = False
    keeps_all: ClassVar[bool] = False
    share: PositiveFraction = 1.0

    @abstractmethod
    def priority(self, facts: PairFacts) -> Tensor:
        """The priority of each pair, [n]. Higher ones are kept first, and trained first if the filter orders."""

    def keep(self, facts: PairFacts) -> Tensor:
        """Which pairs are kept, [n] bool: the `share` of highest priority, at least one."""
        kept = torch.zeros(facts.count, dtype=torch.bool)
        best = self.priority(facts).argsort(descending=True, stable=True)
        kept[best[: max(1, round(self.share * facts.count))]] = True
        return kept


@dataclass(frozen=True)
class KeepAll(Filter):
    """Every pair, in the order of the data."""

    keeps_all: ClassVar[bool] = True

    def priority(self, facts: PairFacts) -> Tensor:
        return torch.zeros(facts.count)


KEEP_ALL = KeepAll()


@dataclass(frozen=True)
class ShareFilter(Filter):
    share: PositiveFraction = 1.0


@dataclass(frozen=True)
class LowPerplexity(ShareFilter):
    """The share of pairs whose chosen response the initial model finds least surprising (MetaPO, Table 17)."""

    share: PositiveFraction = 0.8
    needs: ClassVar[frozenset[str]] = frozenset({"perplexity"})

    def priority(self, facts: PairFacts) -> Tensor:
        return -known(facts.perplexity)


@dataclass(frozen=True)
class LowHeldOutLoss(ShareFilter):
    """The share of pairs that a model trained on the other half ranks best: the easiest ones (Selective DPO, Gao et
    al., 2025)."""

    share: PositiveFraction = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"held_out_margin"})

    def priority(self, facts: PairFacts) -> Tensor:
        return known(facts.held_out_margin)


@dataclass(frozen=True)
class AgreeingMargins(ShareFilter):
    """The share of pairs on which explicit and implicit margin agree most (BeeS, Deng et al., 2025).

    Each standardized margin z is taken for the log-odds that it is right to prefer the chosen response. The priority is
    the log-probability that both are right, `log sigmoid(z1) + log sigmoid(z2)`: one low margin is enough to exclude a
    pair, and no high one makes up for it.
    """

    share: PositiveFraction = 0.25
    needs: ClassVar[frozenset[str]] = frozenset({"margin", "reward_gap"})

    def priority(self, facts: PairFacts) -> Tensor:
        return logsigmoid(standardized(known(facts.margin))) + logsigmoid(standardized(known(facts.reward_gap)))


@dataclass(frozen=True)
class AlignmentPotential(ShareFilter):
    """The share of pairs whose explicit margin exceeds the implicit one by the most (MAP, Huang et al., 2025).

    The explicit margin keeps its sign: a pair whose rejected response has the higher reward is likely mislabeled.
    """

    share: PositiveFraction = 0.4
    needs: ClassVar[frozenset[str]] = frozenset({"margin", "reward_gap"})

    def priority(self, facts: PairFacts) -> Tensor:
        return standardized(known(facts.reward_gap)) - standardized(known(facts.margin))


@dataclass(frozen=True)
class EasyFirst(Filter):
    """Every pair, those with the lowest loss first (loss-based curriculum; MetaPO, Table 17)."""

    needs: ClassVar[frozenset[str]] = frozenset({"held_out_margin"})
    orders: ClassVar[bool] = True

    def priority(self, facts: PairFacts) -> Tensor:
        return known(facts.held_out_margin)


def known(fact: Tensor | None) -> Tensor:
    if fact is None:
        raise ValueError("a fact that the filter needs is missing")
    return fact


def standardized(values: Tensor) -> Tensor:
    """The values with mean 0 and standard deviation 1; unknown values become the mean."""
    valid = values[~values.isnan()]
    if len(valid) < 2 or valid.std() == 0:
        return torch.zeros_like(values)
    return torch.nan_to_num((values - valid.mean()) / valid.std(), nan=0.0)


FILTERS: dict[str, type[Filter]] = {
    "all": KeepAll,
    "low_perplexity": LowPerplexity,
    "low_held_out_loss": LowHeldOutLoss,
    "agreeing_margins": AgreeingMargins,
    "alignment_potential": AlignmentPotential,
    "easy_first": EasyFirst,
}
