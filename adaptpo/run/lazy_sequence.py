"""Sequences as long as a data set, whose items are read from disk on access."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Other = TypeVar("Other")

Indices = range | NDArray[np.int64]
"""Item numbers. A range takes no memory; an array takes 8 bytes per item."""


def as_array(indices: Indices) -> NDArray[np.int64]:
    """The indices as an integer array, even if there are none."""
    return np.asarray(indices, dtype=np.int64)


def pick(indices: Indices, chosen: Indices) -> Indices:
    """`indices[i]` for each i of `chosen`: a range if both are."""
    if isinstance(chosen, range):
        return indices[chosen.start : chosen.stop : chosen.step]
    return as_array(indices)[chosen]


class Lazy(Sequence[Item]):
    """A sequence of `length` items; `read` returns the items with the given numbers, in that order.

    Items are read `block` at a time, and only the last block is kept in memory. A slice is read at once, as a list.
    """

    def __init__(self, length: int, read: Callable[[Indices], list[Item]], block: int) -> None:
        self.length, self.read, self.block = length, read, block
        self.kept: tuple[int, list[Item]] = (-1, [])

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return self.read(range(self.length)[index])
        number, index = divmod(range(self.length)[index], self.block)
        if number != self.kept[0]:
            self.kept = number, self[number * self.block : (number + 1) * self.block]
        return self.kept[1][index]

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, self.length, self.block):
            yield from self[start : start + self.block]

    def __add__(self, other: Lazy[Item]) -> Lazy[Item]:
        def read(indices: Indices) -> list[Item]:
            numbers = as_array(indices)
            first = numbers < self.length
            return self.read(numbers[first]) + other.read(numbers[~first] - self.length)

        return Lazy(self.length + len(other), read, self.block)

    def take(self, chosen: Indices) -> Lazy[Item]:
        """The items with these numbers."""
        return Lazy(len(chosen), lambda indices: self.read(pick(chosen, indices)), self.block)

    def map(self, change: Callable[[list[Item]], list[Other]]) -> Lazy[Other]:
        """The items transformed by `change`, which gets a list of some at a time."""
        return Lazy(self.length, lambda indices: change(self.read(indices)), self.block)


def matched(
    items: Iterable[Item], others: Iterable[Other], belong: Callable[[Item, Other], bool]
) -> Iterator[tuple[Item, Other | None]]:
    """Yields each item with the one of `others` that belongs to it, or None; `others` are in the order of the items."""
    rest = iter(others)
    ahead = next(rest, None)
    for item in items:
        if ahead is not None and belong(item, ahead):
            yield item, ahead
            ahead = next(rest, None)
        else:
            yield item, None


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields lists of `size` items; the last one may be shorter."""
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece
