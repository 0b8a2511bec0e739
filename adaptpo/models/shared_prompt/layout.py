"""The layout of a row `[prompt | response | response | ... | prompt | ...]`: token places and visibility.

Every prompt occurs once. A prompt sees itself; a response sees its prompt and itself, both causally.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

UNSEEN = torch.iinfo(torch.long).max
"""The position of a padding key: after every query, hence never seen."""

PADDING_LIMIT = 1.15
SMALL_AREA = 2**14
"""Segments share an attention call if padding adds less than 15 % to their query-key pairs, or if these are so few that
a call costs more than the arithmetic (both measured with `benchmarks/training.py`)."""


@dataclass(frozen=True)
class Segment:
    """`length` tokens of the row from `start`, which see `prefix_length` tokens from `prefix_start` and themselves."""

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0

    @property
    def area(self) -> int:
        return self.length * (self.prefix_length + self.length)


@dataclass(frozen=True)
class Bucket:
    """n segments of similar size. `queries` [n, q] and `keys` [n, k] index the row. The positions, a single row if all
    segments have the same shape, define visibility: no query sees a key after it."""

    queries: Tensor
    keys: Tensor
    query_positions: Tensor
    key_positions: Tensor
    has_prefix: bool
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def to(self, device: torch.device) -> Bucket:
        queries, keys = self.queries.to(device), self.keys.to(device)
        positions = self.query_positions.to(device), self.key_positions.to(device)
        return Bucket(queries, keys, *positions, has_prefix=self.has_prefix)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask [n or 1, 1, q, k]; None if plain causal attention is correct."""
        if not self.has_prefix and (window is None or window >= self.queries.shape[1]):
            return None
        key = (window, dtype)
        if key not in self.masks:
            self.masks[key] = additive_mask(self.query_positions, self.key_positions, window, dtype)
        return self.masks[key]


def additive_mask(queries: Tensor, keys: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    distance = queries[:, None, :, None] - keys[:, None, None, :]
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    return torch.zeros(visible.shape, dtype=dtype, device=queries.device).masked_fill(~visible, float("-inf"))


@dataclass(frozen=True)
class SharedPrompts:
    """The layout of a row: its `segments`, end to end.

    Segment i's queries are the tokens of the row from `query_starts[i]` to `query_starts[i + 1]`. Its keys are the
    tokens `keys[key_starts[i] : key_starts[i + 1]]`, those of its prompt before its own. `keys`: [k], int64; starts:
    [segments + 1], int32.
    """

    segments: tuple[Segment, ...]
    keys: Tensor
    query_starts: Tensor
    key_starts: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SharedPrompts:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SharedPrompts:
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, move: Callable[[Tensor], Tensor]) -> SharedPrompts:
        return SharedPrompts(self.segments, move(self.keys), move(self.query_starts), move(self.key_starts))

    @cached_property
    def padded(self) -> PaddedSegments:
        """The segments in buckets, on the device of the layout."""
        return padded_segments(self.segments, self.keys.device)

    @property
    def longest_queries(self) -> int:
        return max(s.length for s in self.segments)

    @property
    def longest_keys(self) -> int:
        return max(s.prefix_length + s.length for s in self.segments)


@dataclass(frozen=True)
class PaddedSegments:
    """Buckets of a row's segments, and `places` [tokens], each token's index in the buckets' concatenated outputs."""

    buckets: tuple[Bucket, ...]
    places: Tensor


def segments(prompt_lengths: Sequence[int], lengths: Sequence[Sequence[int]]) -> list[Segment]:
    """The segments of each prompt and its responses, in the order of the row; an empty response has no segment."""
    result: list[Segment] = []
    end = 0
    for prompt_length, response_lengths in zip(prompt_lengths, lengths, strict=True):
        prompt = Segment(end, prompt_length)
        result.append(prompt)
        end += prompt_length
        for length in response_lengths:
            if length:
                result.append(Segment(end, length, prompt.start, prompt_length))
            end += length
    return result


@dataclass(frozen=True, slots=True)
class Extent:
    """Of segments in one bucket: their number, the longest of them, their longest prefix, the sum of their areas."""

    count: int
    queries: int
    prefix: int
    area: int

    def __add__(self, other: Extent) -> Extent:
        queries, prefix = max(self.queries, other.queries), max(self.prefix, other.prefix)
        return Extent(self.count + other.count, queries, prefix, self.area + other.area)

    @property
    def fits(self) -> bool:
        return self.count * self.queries * (self.prefix + self.queries) <= max(SMALL_AREA, PADDING_LIMIT * self.area)


def buckets_of(parts: Sequence[Segment]) -> list[list[Segment]]:
    """Groups similar segments, for few attention calls with little padding."""
    buckets: list[list[Segment]] = []
    filled = Extent(0, 0, 0, 0)
    for part in sorted(parts, key=lambda s: (s.prefix_length > 0, s.prefix_length + s.length, s.length)):
        alone = Extent(1, part.length, part.prefix_length, part.area)
        together = filled + alone
        if buckets and (filled.prefix > 0) == (alone.prefix > 0) and together.fits:
            buckets[-1].append(part)
            filled = together
        else:
            buckets.append([part])
            filled = alone
    return buckets


def padded_segments(parts: Sequence[Segment], device: torch.device) -> PaddedSegments:
    places = torch.zeros(sum(s.length for s in parts), dtype=torch.long)
    buckets, offset = [], 0
    for bucket in buckets_of(parts):
        indexed, inside = index_bucket(bucket)
        places[indexed.queries[inside]] = inside.flatten().nonzero().flatten() + offset
        offset += inside.numel()
        buckets.append(indexed.to(device))
    return PaddedSegments(tuple(buckets), places.to(device))


def index_bucket(bucket: Sequence[Segment]) -> tuple[Bucket, Tensor]:
    """The bucket, and which of its queries [n, q] are tokens, not padding."""
    fields = [(s.start, s.length, s.prefix_start, s.prefix_length) for s in bucket]
    start, length, prefix_start, prefix_length = torch.tensor(fields).T[:, :, None]
    column, before = torch.arange(int(length.max())), torch.arange(int(prefix_length.max()))
    inside, in_prefix = column < length, before < prefix_length
    queries, query_positions = torch.where(inside, start + column, 0), prefix_length + column
    keys = torch.cat([torch.where(in_prefix, prefix_start + before, 0), queries], dim=1)
    seen = torch.cat([before.expand(len(bucket), -1), query_positions], dim=1)
    key_positions = torch.where(torch.cat([in_prefix, inside], dim=1), seen, UNSEEN)
    if len({(s.length, s.prefix_length) for s in bucket}) == 1:
        query_positions, key_positions = query_positions[:1], key_positions[:1]
    return Bucket(queries, keys, query_positions, key_positions, has_prefix=len(before) > 0), inside


def shared_prompts(prompt_lengths: Sequence[int], lengths: Sequence[Sequence[int]]) -> SharedPrompts:
    """The layout of prompts with the given lengths, each followed by responses with the given lengths."""
    parts = segments(prompt_lengths, lengths)
    spans = [span for s in parts for span in ((s.prefix_start, s.prefix_length), (s.start, s.length))]
    keys = torch.cat([torch.arange(start, start + length) for start, length in spans])
    return SharedPrompts(
        tuple(parts), keys, starts([s.length for s in parts]), starts([s.prefix_length + s.length for s in parts])
    )


def starts(lengths: Sequence[int]) -> Tensor:
    """Where each of several sequences, laid end to end, starts, and where the last one ends, [n + 1]."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def positions(prompt_lengths: Sequence[int], lengths: Sequence[Sequence[int]]) -> Tensor:
    """Position ids [tokens]; every response continues its prompt."""
    return torch.cat(
        [torch.arange(s.prefix_length, s.prefix_length + s.length) for s in segments(prompt_lengths, lengths)]
    )
