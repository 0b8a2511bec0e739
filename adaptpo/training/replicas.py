"""Arithmetic on all weights of the policy, alike where every rank has them whole and where each has a shard (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from adaptpo.distributed.ranks import ALONE, Ranks


def own(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: its shard, or all of it. Shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_state(state: dict[str, Any]) -> dict[str, Any]:
    """What this rank holds of an optimizer's state of one parameter."""
    return {name: own(value) if isinstance(value, Tensor) else value for name, value in state.items()}


@dataclass(frozen=True)
class Replicas:
    """The copies of the policy on the ranks, one each; with `sharded`, the ranks share a single copy.

    Every method is collective unless noted: all ranks call it at the same point.
    """

    ranks: Ranks = ALONE
    sharded: bool = False

    def sum(self, *values: float) -> list[float]:
        """The sum of each value over the ranks."""
        return [sum(column) for column in zip(*self.ranks.gather(values), strict=True)]

    def over_weights(self, value: float) -> float:
        """A sum over all weights, from the sum over those that this rank holds."""
        return self.sum(value)[0] if self.sharded else value

    def norm(self, tensors: Sequence[Tensor]) -> float:
        """The norm of a vector of all weights; `tensors` are what this rank holds of it."""
        norm = float(get_total_norm(tensors))
        return self.over_weights(norm**2) ** 0.5 if self.sharded else norm

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's share of a loss to `.grad`. FSDP2 then averages it over the ranks."""
        (self.ranks.count * loss if self.sharded else loss).backward()

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Sums gradients over the ranks, in place, after every backward pass; FSDP2 has summed its shards already."""
        if self.ranks.count > 1 and not self.sharded:
            for gradient in gradients:
                dist.all_reduce(gradient)

    def gather_again(self, model: nn.Module) -> None:
        """Makes the next pass gather the weights from their shards, which have changed. Not collective."""
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


@contextmanager
def exchanged(weights: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[None]:
    """Inside the context, `weights` hold the values of `others`, which keep theirs; afterwards they are back, bit for
    bit, whatever was done to `weights`. Takes the memory of one tensor more."""
    for weight, other in zip(weights, others, strict=True):
        kept = weight.clone()
        weight.copy_(other)
        other.copy_(kept)
    try:
        yield
    finally:
        for weight, kept in zip(weights, others, strict=True):
            weight.copy_(kept)
