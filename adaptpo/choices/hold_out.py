"""Which offline pairs are held out from training, for learners that measure the effect of training on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adaptpo.config.numbers import Count, InnerFraction, Ranged
from adaptpo.seeds import seed_for

Split = Literal["stratified", "random", "last"]


@dataclass(frozen=True)
class Validation(Ranged):
    """The share of the pairs to hold out, at least one if there are two (MetaPO: 3 %, Table 13).

    `split`: one pair from each of equally sized strata, sorted by difficulty; random pairs; or the last pairs in the
    order of the data (Table 14). Difficulty is how strongly the initial model prefers the rejected response, in nats
    per token: the paper's "initial DPO loss" is the same for all pairs, because policy and reference start out equal.

    `batch`: how many of them an update of a learner sees, redrawn for each: "step" as many as the step trains on, None
    all of them.

    Raises ConfigError for a share outside (0, 1).
    """

    share: InnerFraction = 0.03
    split: Split = "stratified"
    batch: Count | Literal["step"] | None = "step"

    @property
    def needs_reference(self) -> bool:
        return self.split == "stratified"

    def per_update(self, held_out: int, trained: int) -> int:
        """How many of the `held_out` prompts an update sees whose step trains on `trained` prompts.

        >>> Validation(batch="step").per_update(90, 16), Validation(batch=None).per_update(90, 16)
        (16, 90)
        """
        if self.batch is None:
            return held_out
        return min(trained if self.batch == "step" else self.batch, held_out)

    def choose(self, difficulty: Tensor, seed: int) -> list[int]:
        """Indices of the pairs to hold out, given the difficulties of all n pairs, [n]."""
        total = len(difficulty)
        count = min(max(round(self.share * total), 1), total - 1)
        if count < 1:
            return []
        if self.split == "last":
            return list(range(total - count, total))
        if self.split == "random":
            return sorted(torch.randperm(total, generator=generator(seed))[:count].tolist())
        return sorted(one_of_each(difficulty.argsort(stable=True), count, seed))


def one_of_each(order: Tensor, count: int, seed: int) -> list[int]:
    """One index from each of `count` consecutive pieces of `order`."""
    draws = torch.rand(count, generator=generator(seed), dtype=torch.float64)
    pieces = order.tensor_split(count)
    return [int(piece[int(draw * len(piece))]) for piece, draw in zip(pieces, draws.tolist(), strict=True)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, "validation") % 2**63)
