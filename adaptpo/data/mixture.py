"""Several data sets as one: how many rows each gives, which ones, and in which order.

- A set gives the rows that pass its filter, at most `max_rows` of them.
- Without weights, it gives them all. With weights, the sets' shares are exactly their weights: the mixture is as large
  as it can be without using a row twice, so the set that is scarcest for its weight gives everything it has.
- Where a set gives fewer rows than it has, they are drawn at random without replacement, with the run's seed. Of a
  streamed set with `max_rows`, no row is read after the last of those.
- Rows stay in their set's order, and the sets alternate evenly: any stretch of the mixture, such as the part of an
  iteration, has the shares of the whole.

Counting the rows takes one pass over the data; memory does not grow with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from heapq import merge
from itertools import islice
from random import Random
from typing import Literal, TypeVar

from adaptpo.data.conditions import RowFilter
from adaptpo.data.source import Rows
from adaptpo.errors import DataError
from adaptpo.seeds import seed_for
from adaptpo.types import Row

Item = TypeVar("Item")

FIRST_OF_STREAM = 100
"""Rows of a streamed data set in which a column that its filter reads must occur."""


@dataclass(frozen=True)
class Source:
    """A data set of a mixture. `name` stands for it in metrics and reports; None if it is alone."""

    rows: Rows
    name: str | None = None
    text_format: Literal["auto", "messages", "text"] = "auto"
    columns_filter: RowFilter | None = None
    max_rows: int | None = None
    weight: float | None = None

    def matching(self) -> Iterator[tuple[int, Row]]:
        """The rows that pass the filter, with their numbers."""
        return ((number, row) for number, row, passes in self.read() if passes)

    def read(self) -> Iterator[tuple[int, Row, bool]]:
        """The rows with their numbers, and whether they pass the filter. A streamed source ends with the last of the
        `max_rows` rows that do. Raises DataError at the end if there are rows, but none passes."""
        keeps = self.columns_filter.keeps if self.columns_filter else None
        most = self.max_rows if self.rows.is_streamed else None
        seen = passed = 0
        for number, row in enumerate(self.rows):
            passes = keeps is None or keeps(row)
            seen, passed = number + 1, passed + passes
            yield number, row, passes
            if passed == most:
                return
        if seen and not passed:
            raise DataError(f"{self.rows.description}: none of {seen} rows passes the filter; correct it.")

    @property
    def is_whole(self) -> bool:
        """Whether all rows are read, if it is alone."""
        return self.columns_filter is None and self.max_rows is None


@dataclass(frozen=True)
class Sample:
    """The rows that a mixture takes of a source: `taken` of the `matching` ones among `total`. None: all, uncounted."""

    source: Source
    total: int | None = None
    matching: int | None = None
    taken: int | None = None
    seed: int = 0

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """The rows with their numbers in the source."""
        rows = self.source.matching()
        if self.matching is None or self.taken is None or self.taken == self.matching:
            return rows
        chosen = drawn(self.matching, self.taken, self.seed)
        return (numbered for numbered, take in zip(rows, chosen, strict=True) if take)

    def __len__(self) -> int:
        """The number of rows; counts them if that has not been done. Of a streamed source, at most those that the hub
        names. Raises DataError if nothing bounds them."""
        if self.taken is not None:
            return self.taken
        if not self.source.rows.is_streamed:
            return sum(1 for _ in self.source.matching())
        bounds = [most for most in (self.source.max_rows, self.source.rows.told) if most is not None]
        if not bounds:
            raise DataError(
                f"{self.source.rows.description}: a plan would have to read all of a streamed data set to count its "
                "rows; set max_rows"
            )
        return min(bounds)


@dataclass(frozen=True)
class Mixture:
    """The data of a run: one source or several."""

    sources: Sequence[Source]

    @property
    def several(self) -> bool:
        return len(self.sources) > 1

    @property
    def description(self) -> str:
        return ", ".join(source.rows.description for source in self.sources)

    def first(self, rows: int | None) -> Mixture:
        """The first rows of each source; None for all."""
        if rows is None:
            return self
        return Mixture([replace(source, rows=first_rows(source.rows, rows)) for source in self.sources])

    def samples(self, seed: int) -> list[Sample]:
        """What is taken of each source, by the rule of this module.

        Raises:
            DataError: no row passes a filter, or a source is so scarce for its weight that another gives no row.
        """
        first = self.sources[0]
        if not self.several and (first.is_whole or first.rows.is_streamed):
            if first.columns_filter is not None:
                beginning = first_rows(first.rows, FIRST_OF_STREAM)
                first.columns_filter.refuse_unknown_columns(first.rows.description, beginning)
            return [Sample(first)]
        counts = [count(source) for source in self.sources]
        taken = amounts(self.sources, [matching for _, matching in counts])
        return [
            Sample(source, *counts[number], taken[number], seed_for(seed, "rows of a data set", number))
            for number, source in enumerate(self.sources)
        ]


def first_rows(rows: Rows, most: int) -> Rows:
    size = None if rows.size is None else min(rows.size, most)
    return replace(rows, start=lambda: islice(rows, most), size=size)


def count(source: Source) -> tuple[int, int]:
    """The number of rows, and of those that pass the filter."""
    if source.columns_filter is not None:
        source.columns_filter.refuse_unknown_columns(source.rows.description, source.rows)
    elif source.rows.size is not None:
        return source.rows.size, source.rows.size
    total = matching = 0
    for _, _, passes in source.read():
        total, matching = total + 1, matching + passes
    return total, matching


def amounts(sources: Sequence[Source], matching: Sequence[int]) -> list[int]:
    """The number of rows to take of each source.

    Raises:
        DataError: a weight leaves a source without any row.
    """
    available = [min(n, source.max_rows or n) for source, n in zip(sources, matching, strict=True)]
    weights = [Fraction(str(source.weight)) for source in sources if source.weight is not None]
    if not weights:
        return available
    largest = min(n / weight for n, weight in zip(available, weights, strict=True))
    taken = [int(largest * weight) for weight in weights]
    for source, number in zip(sources, taken, strict=True):
        if not number:
            scarce = min(zip(available, weights, sources, strict=True), key=lambda one: one[0] / one[1])[2]
            raise DataError(
                f"with these weights no row of '{source.name}' is used, because '{scarce.name}' has too few rows for "
                "its share; raise the weight of the former, or leave one out."
            )
    return taken


def drawn(total: int, wanted: int, seed: int) -> Iterator[bool]:
    """Whether each of `total` items is drawn, if `wanted` of them are, all subsets being equally likely (Knuth's
    algorithm S).

    >>> sum(drawn(1000, 300, seed=0))
    300
    """
    random = Random(seed)
    for left in range(total, 0, -1):
        take = random.random() * left < wanted
        wanted -= take
        yield take


def alternated(streams: Sequence[Iterable[Item]], lengths: Sequence[int]) -> Iterator[tuple[int, Item]]:
    """The items of all streams, each with its stream's number, evenly mixed: item j of n is at (j + 1/2) / n.

    >>> "".join(item for _, item in alternated(["aaaa", "bb"], [4, 2]))
    'abaaba'
    """

    def placed(number: int, stream: Iterable[Item], length: int) -> Iterator[tuple[float, int, Item]]:
        return (((2 * j + 1) / (2 * length), number, item) for j, item in enumerate(stream))

    if len(streams) == 1:
        return ((0, item) for item in streams[0])
    lines = (placed(*line) for line in zip(range(len(streams)), streams, lengths, strict=True))
    return ((number, item) for _, number, item in merge(*lines, key=lambda placed: placed[:2]))
