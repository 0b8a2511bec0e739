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


def buckets_of(parts: Sequence[Segment]) -> list[list[Segment]]:
    """Groups similar segments, for few attention calls with little padding."""
    buckets: list[list[Segment]] = []
    for part in sorted(parts, key=lambda s: (s.prefix_length > 0, s.prefix_length + s.length, s.length)):
        if buckets and fits(buckets[-1], part):
            buckets[-1].append(part)
        else:
            buckets.append([part])
    return buckets


def fits(bucket: Sequence[Segment], part: Segment) -> bool:
    if (bucket[0].prefix_length > 0) != (part.prefix_length > 0):
        return False
    together = [*bucket, part]
    queries, prefix = max(s.length for s in together), max(s.prefix_length for s in together)
    area = len(together) * queries * (prefix + queries)
    return area <= max(SMALL_AREA, PADDING_LIMIT * sum(s.area for s in together))


def index_bucket(bucket: Sequence[Segment], device: torch.device) -> Bucket:
    count = len(bucket)
    width, prefix = max(s.length for s in bucket), max(s.prefix_length for s in bucket)
    queries, keys = torch.zeros(count, width, dtype=torch.long), torch.zeros(count, prefix + width, dtype=torch.long)
    query_positions = torch.zeros(count, width, dtype=torch.long)
    key_positions = torch.full((count, prefix + width), UNSEEN)
    for row, s in enumerate(bucket):
        queries[row, : s.length] = torch.arange(s.start, s.start + s.length)
        keys[row, : s.prefix_length] = torch.arange(s.prefix_start, s.prefix_start + s.prefix_length)
        keys[row, prefix : prefix + s.length] = queries[row, : s.length]
        query_positions[row] = torch.arange(s.prefix_length, s.prefix_length + width)
        key_positions[row, : s.prefix_length] = torch.arange(s.prefix_length)
        key_positions[row, prefix : prefix + s.length] = query_positions[row, : s.length]
    if len({(s.length, s.prefix_length) for s in bucket}) == 1:
        query_positions, key_positions = query_positions[:1], key_positions[:1]
    queries, keys, query_positions, key_positions = (
        index.to(device) for index in (queries, keys, query_positions, key_positions)
    )
    return Bucket(queries, keys, query_positions, key_positions, has_prefix=prefix > 0)


def padded_segments(parts: Sequence[Segment], device: torch.device) -> PaddedSegments:
    grouped = buckets_of(parts)
    places = torch.zeros(sum(s.length for s in parts), dtype=torch.long)
    offset = 0
    for bucket in grouped:
        width = max(s.length for s in bucket)
        for row, s in enumerate(bucket):
            places[s.start : s.start + s.length] = torch.arange(s.length) + offset + row * width
        offset += len(bucket) * width
    return PaddedSegments(tuple(index_bucket(bucket, device) for bucket in grouped), places.to(device))


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
