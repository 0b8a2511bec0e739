"""The order in which several ranks go through the prompts: that of one process, made to come out even."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler, Sampler


class EvenOrder(Sampler[int]):
    """The indices of `order`, and behind them as often the first index that it does not have as it takes until their
    number is a multiple of `together`, what all ranks take at a time.

    Accelerate would fill up with prompts of the epoch's beginning, which would then count twice.
    """

    def __init__(self, order: Sampler[int], size: int, together: int) -> None:
        self.order, self.size = order, size
        self.missing = math.ceil(size / together) * together - size

    @classmethod
    def of(cls, order: Sampler[int], size: int, together: int, data_seed: int | None) -> EvenOrder:
        """Shuffled as accelerate shuffles for one process, which it does in loaders that it makes itself."""
        if isinstance(order, RandomSampler):
            seed = torch.random.initial_seed() if data_seed is None else data_seed
            order = SeedableRandomSampler(order.data_source, generator=torch.Generator(), data_seed=seed)
        return cls(order, size, together)

    def __len__(self) -> int:
        return self.size + self.missing

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [self.size] * self.missing

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.order, SeedableRandomSampler):
            self.order.set_epoch(epoch)
