"""Which rank computes which prompts of an optimizer step: all ranks get about as many tokens.

The step holds the same prompts as on one process. Ranks wait for one another at its end, and, where they share the
weights (FSDP2), at every pass, so each micro-batch is balanced as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Dealing:
    """`costs` [prompts]: tokens of each prompt with its responses; an index beyond them is padding, without tokens.
    `batch`: prompts of a rank's micro-batch; `micro_batches`: those of an optimizer step."""

    costs: NDArray[np.int64]
    ranks: int
    batch: int
    micro_batches: int

    @property
    def together(self) -> int:
        """Number of prompts of an optimizer step."""
        return self.ranks * self.batch * self.micro_batches

    def order(self, step: Sequence[int]) -> list[int]:
        """The prompts of a step, in the order in which accelerate gives them out: a micro-batch to each rank in turn.

        Every rank gets as many, one of each `ranks` prompts from the longest to the shortest, so that its micro-batches
        are like those of the others. Then prompts are exchanged to level the ranks.
        """
        items = np.array(sorted(step, key=self.cost, reverse=True))
        costs = np.array([self.cost(item) for item in items])
        hands = np.arange(len(items)).reshape(-1, self.ranks).T.copy()
        level(hands, costs)
        hands.sort(axis=1)
        micro_batches = np.split(hands, range(self.batch, hands.shape[1], self.batch), axis=1)
        return [int(items[place]) for hand in micro_batches for place in hand.flat]

    def cost(self, item: int) -> int:
        return int(self.costs[item]) if item < len(self.costs) else 0


def level(hands: NDArray[np.int64], costs: NDArray[np.int64]) -> None:
    """Exchanges items between the costliest and the cheapest of the hands [hands, items], in place, as long as this
    brings the two closer; the sum of squares falls each time, so it ends."""
    while True:
        held = costs[hands].sum(axis=1)
        most, least = held.argmax(), held.argmin()
        gap = held[most] - held[least]
        left = np.abs(gap - 2 * (costs[hands[most]][:, None] - costs[hands[least]]))
        if left.min() >= gap:
            return
        ours, theirs = np.unravel_index(left.argmin(), left.shape)
        hands[most, ours], hands[least, theirs] = hands[least, theirs], hands[most, ours]
