"""The selection axis: which prompts get fresh responses in this iteration.

To add one, write its class here and list it in `SELECTIONS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from adaptpo.choices.choice import Choice
from adaptpo.choices.iteration import UNKNOWN_STAGE, Iteration, StageReading
from adaptpo.choices.learners.base import Learner
from adaptpo.choices.learners.trust import Share, Trust
from adaptpo.config.numbers import Fraction, NonNegative


@dataclass(frozen=True)
class ScoredPrompts:
    """The prompts of an iteration as selection sees them: their number n and, if the selection needs margins, the
    policy's margins [n], log-ratios [n, 2] and features [n, width] of their offline pairs (see `PairBatch`)."""

    count: int
    margin: Tensor | None = None
    ratios: Tensor | None = None
    prompt_id: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)

    def pieces(self, size: int) -> Iterator[ScoredPrompts]:
        """Yields the same prompts, `size` at a time."""
        for start in range(0, self.count, size):
            part = slice(start, start + size)
            margin, ratios, ids = (None if x is None else x[part] for x in (self.margin, self.ratios, self.prompt_id))
            features = {name: values[part] for name, values in self.features.items()}
            yield ScoredPrompts(min(size, self.count - start), margin, ratios, ids, features)


TOGETHER = 2**14
"""Number of prompts that a learner weights at a time; a network holds hundreds of values for each."""


PROBES = 1000
"""Number of prompts without margins from which a selection computes its expected share."""


class Selection(Choice, ABC):
    """One of the four choices. The loop scores the offline pairs first only if `needs_margins` is set."""

    needs_margins: ClassVar[bool] = False

    def at(self, now: Iteration) -> Selection:
        return self

    def expected_share(self) -> Share:
        """The share of an iteration's prompts that `adaptpo plan` expects to be selected."""
        if self.needs_margins:
            return Share(0.5, "assumed: unknown before the margins are computed; set --share")
        return Share(float(self.probability(ScoredPrompts(PROBES)).mean()), "the method's setting")

    @abstractmethod
    def probability(self, prompts: ScoredPrompts) -> Tensor:
        """Each prompt's probability in [0, 1] of fresh responses, [n]. The loop draws with the prompt's own seed."""


@dataclass(frozen=True)
class SelectNone(Selection):
    """No prompts: offline training."""

    def probability(self, prompts: ScoredPrompts) -> Tensor:
        return torch.zeros(prompts.count)


@dataclass(frozen=True)
class SelectAll(Selection):
    """All prompts: online training."""

    def probability(self, prompts: ScoredPrompts) -> Tensor:
        return torch.ones(prompts.count)


@dataclass(frozen=True)
class SelectRandom(Selection):
    """Every prompt with the same probability (MetaAPO, Table 2: "w/ Random Sampling")."""

    share: Fraction = 0.5

    def probability(self, prompts: ScoredPrompts) -> Tensor:
        return torch.full((prompts.count,), self.share)


@dataclass(frozen=True)
class SelectLowest(Selection):
    """The given share of an iteration's prompts: those whose offline pair the policy agrees with least.

    MetaAPO's Table 2 ("w/ Threshold Sampling") has a fixed threshold, which is not given and selected 53.3 % of the
    prompts. Here the share is fixed, which works with any model.
    """

    share: Fraction = 0.533
    needs_margins: ClassVar[bool] = True

    def probability(self, prompts: ScoredPrompts) -> Tensor:
        margin = known_margins(prompts)
        chosen = torch.zeros(prompts.count)
        chosen[margin.argsort(stable=True)[: round(self.share * prompts.count)]] = 1
        return chosen

    def expected_share(self) -> Share:
        return Share(self.share, "the method's setting")


@dataclass(frozen=True)
class SelectUncertain(Selection):
    """Prompts whose offline margin is at most `threshold` in absolute value: those on which the policy is undecided
    (ADPO, Ji et al., 2024)."""

    threshold: NonNegative = 1.0
    needs_margins: ClassVar[bool] = True

    def probability(self, prompts: ScoredPrompts) -> Tensor:
        return (known_margins(prompts).abs() <= self.threshold).float()


def known_margins(prompts: ScoredPrompts) -> Tensor:
    if prompts.margin is None:
        raise ValueError("this selection needs the margins of the offline pairs")
    return prompts.margin


@dataclass(frozen=True)
class SelectByLearner(Selection):
    """Generates when `u > h(l_off)`: with probability `1 - w` (MetaAPO, section 4.1; Algorithm 1, lines 7-9)."""

    learner: Trust
    needs_margins: ClassVar[bool] = True

    def probability(self, prompts: ScoredPrompts) -> Tensor:
        trust = torch.empty_like(known_margins(prompts))
        # In place, because keeping each piece's result would fragment memory until no later piece fits.
        for number, piece in enumerate(prompts.pieces(TOGETHER)):
            trust[number * TOGETHER :][: piece.count] = self.learner.weight(piece)
        return 1 - trust

    def expected_share(self) -> Share:
        return self.learner.expected_share()

    def learners(self) -> tuple[Learner, ...]:
        return (self.learner,)


@dataclass(frozen=True)
class SelectAtSameRate(SelectByLearner):
    """Every prompt with the learner's mean probability: as many fresh responses, for prompts chosen at random. Any
    advantage of `SelectByLearner` over it is due to which prompts are selected."""

    def probability(self, prompts: ScoredPrompts) -> Tensor:
        return super().probability(prompts).mean().expand(prompts.count)


@dataclass(frozen=True)
class SelectByStage(Selection):
    """Generates for a share of the prompts equal to the boundary score: many if the policy's own responses win."""

    stage: StageReading = UNKNOWN_STAGE

    def needs_stage(self, iteration: int) -> bool:
        return True

    def at(self, now: Iteration) -> SelectByStage:
        return replace(self, stage=now.measured())

    def expected_share(self) -> Share:
        return Share(self.stage.score, "assumed: the boundary score is not measured yet; set --share")

    def probability(self, prompts: ScoredPrompts) -> Tensor:
        if prompts.prompt_id is None:
            return torch.full((prompts.count,), self.stage.score)
        return self.stage.of_prompts(prompts.prompt_id)


SELECTIONS: dict[str, type[Selection]] = {
    "none": SelectNone,
    "all": SelectAll,
    "random": SelectRandom,
    "lowest": SelectLowest,
    "uncertain": SelectUncertain,
    "meta_learner": SelectByLearner,
    "same_rate": SelectAtSameRate,
    "by_stage": SelectByStage,
}
