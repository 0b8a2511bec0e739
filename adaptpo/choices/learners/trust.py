"""How far to trust an offline pair: what selection and weighting need from a learner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adaptpo.choices.learners.base import Learner
from adaptpo.choices.objectives import score
from adaptpo.config.numbers import Fraction, ranged


class ScoredPairs(Protocol):
    """What a learner reads of n pairs: margins [n], log-ratios [n, 2] of chosen and rejected, and features by name."""

    @property
    def margin(self) -> Tensor | None: ...

    @property
    def ratios(self) -> Tensor | None: ...

    @property
    def features(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Share:
    """A share of the prompts in [0, 1], and why a plan assumes it."""

    value: float
    why: str


class Trust(Learner, ABC):
    """A learner of how far to trust offline pairs."""

    def expected_share(self) -> Share:
        """The share of prompts that get fresh responses with probability `1 - w`, before any margin is known."""
        return Share(0.5, "assumed: unknown before the margins are computed; set --share")

    @abstractmethod
    def weight(self, pairs: ScoredPairs) -> Tensor:
        """w in [0, 1] for each pair, [n], without gradient."""


class ConstantTrust(Trust):
    """The same w for every pair; 0.5 blends offline and online loss equally."""

    @ranged
    def __init__(self, value: Fraction = 0.5) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"ConstantTrust({self.value})"

    def expected_share(self) -> Share:
        return Share(1 - self.value, "the method's setting")

    def weight(self, pairs: ScoredPairs) -> Tensor:
        assert pairs.margin is not None
        return torch.full_like(pairs.margin, self.value)


class SigmoidTrust(Trust):
    """`w = sigmoid(l_off)`: rises from 0 to 0.5, like the meta-learner at its start, and never learns.

    MetaAPO's Table 2 ("w/o Meta-Learner") has a fixed sigmoid of the offline score, whose form is not given.

    >>> from adaptpo.choices.selection import ScoredPrompts
    >>> SigmoidTrust().weight(ScoredPrompts(2, torch.tensor([-4.0, 4.0])))
    tensor([0.0177, 0.4955])
    """

    def __repr__(self) -> str:
        return "SigmoidTrust()"

    def expected_share(self) -> Share:
        return Share(0.611, "assumed: the annotation ratio without a meta-learner in the MetaAPO paper (Table 2)")

    def weight(self, pairs: ScoredPairs) -> Tensor:
        assert pairs.margin is not None
        return torch.sigmoid(score(pairs.margin))
