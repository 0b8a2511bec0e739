"""What selection and weighting ask of a learner: how far to trust an offline pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from adaptpo.choices.learners.base import Learner
from adaptpo.choices.objectives import score


class ScoredPairs(Protocol):
    """Of n pairs: the policy's margins [n], log-ratios [n, 2] of chosen and rejected, and features by name."""

    @property
    def margin(self) -> Tensor | None: ...

    @property
    def ratios(self) -> Tensor | None: ...

    @property
    def features(self) -> dict[str, Tensor]: ...


class Trust(Learner, ABC):
    """A learner that says how far it trusts offline pairs."""

    @abstractmethod
    def weight(self, pairs: ScoredPairs) -> Tensor:
        """w in [0, 1] for each pair, [n], without gradient."""


class ConstantTrust(Trust):
    """The same w for every pair; 0.5 blends offline and online loss equally."""

    def __init__(self, value: float = 0.5) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"ConstantTrust({self.value})"

    def weight(self, pairs: ScoredPairs) -> Tensor:
        assert pairs.margin is not None
        return torch.full_like(pairs.margin, self.value)


class SigmoidTrust(Trust):
    """`w = sigmoid(l_off)`: rises from 0 to 0.5, as the meta-learner starts, and never learns.

    MetaAPO's Table 2 ("w/o Meta-Learner") has a fixed sigmoid of the offline score; its form is not given.
    """

    def __repr__(self) -> str:
        return "SigmoidTrust()"

    def weight(self, pairs: ScoredPairs) -> Tensor:
        assert pairs.margin is not None
        return torch.sigmoid(score(pairs.margin))
