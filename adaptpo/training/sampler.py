"""The order in which a phase goes through the prompts: padded to whole batches, and with the same prompts in every
optimizer step for any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, repeat

import torch
from torch.utils.data import RandomSampler, Sampler

from adaptpo.run.lazy_sequence import batched
from adaptpo.training.dealing import Dealing

TOGETHER = 2**16
"""Maximum number of indices held as Python objects at a time."""


class Shuffled(Sampler[int]):
    """The permutations of accelerate's `SeedableRandomSampler`, one per epoch, in 8 bytes per item instead of 40."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        for piece in order.split(TOGETHER):
            yield from piece.tolist()
        self.epoch += 1


class EvenOrder(Sampler[int]):
    """The indices of `order`, padded to a multiple of `together`, the number that all ranks take at a time. The padding
    repeats the first index that `order` does not have.

    Accelerate would pad with prompts from the start of the epoch, which would then count twice. Within an optimizer
    step, `dealing` decides which rank gets which.
    """

    def __init__(self, order: Sampler[int], size: int, together: int, dealing: Dealing | None = None) -> None:
        self.order, self.size, self.dealing = order, size, dealing
        self.missing = math.ceil(size / together) * together - size

    @classmethod
    def of(
        cls, order: Sampler[int], size: int, together: int, data_seed: int | None, dealing: Dealing | None = None
    ) -> EvenOrder:
        """Makes the order, shuffled as accelerate shuffles in the single-process loaders that it creates itself."""
        if isinstance(order, RandomSampler):
            order = Shuffled(size, torch.random.initial_seed() if data_seed is None else data_seed)
        return cls(order, size, together, dealing)

    def __len__(self) -> int:
        return self.size + self.missing

    def __iter__(self) -> Iterator[int]:
        items = chain(self.order, repeat(self.size, self.missing))
        if self.dealing is None:
            yield from items
        else:
            for step in batched(items, self.dealing.together):
                yield from self.dealing.order(step)

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.order, Shuffled):
            self.order.epoch = epoch
