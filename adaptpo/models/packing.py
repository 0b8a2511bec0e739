"""Packs prompt groups into the rows of a forward pass, the same way for policy and reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from adaptpo.types import Prompt, Response


@dataclass(frozen=True)
class RowPacking:
    """The layout of a forward pass.

    `shared_prompts`: one row in which each prompt occurs once; otherwise one right-padded row per response.
    `chunked_head`: compute logits in recomputed chunks if they would take much memory. `max_tokens`: maximum number of
    tokens, padding included, in a forward pass; a longer group is computed alone.
    """

    shared_prompts: bool = False
    chunked_head: bool = False
    max_tokens: int = 16384


PADDED = RowPacking()
"""The packing that is correct for every causal model."""


class ResponseGroup(Protocol):
    """A prompt and the responses to it that are computed together."""

    @property
    def prompt(self) -> Prompt: ...

    @property
    def responses(self) -> Sequence[Response]: ...


@dataclass(frozen=True, slots=True)
class Size:
    """Of groups computed together: `shared` tokens if prompts are shared, else `responses` rows of `longest` tokens."""

    shared: int
    responses: int
    longest: int

    def __add__(self, other: Size) -> Size:
        return Size(self.shared + other.shared, self.responses + other.responses, max(self.longest, other.longest))

    def tokens(self, rows: RowPacking) -> int:
        return self.shared if rows.shared_prompts else self.responses * self.longest


NOTHING = Size(0, 0, 0)


def size_of(group: ResponseGroup) -> Size:
    prompt, lengths = len(group.prompt.ids), response_lengths(group)
    return Size(prompt + sum(lengths) - len(lengths), len(lengths), prompt + max(lengths))


def response_lengths(group: ResponseGroup) -> list[int]:
    return [len(response.ids) for response in group.responses]


def row_tokens(groups: Sequence[ResponseGroup], rows: RowPacking) -> int:
    """Number of tokens, padding included, that a forward pass over these groups computes."""
    return sum(map(size_of, groups), NOTHING).tokens(rows)


def token_batches(groups: Sequence[ResponseGroup], rows: RowPacking) -> list[list[int]]:
    """Indices of whole groups, sorted by length, in batches of at most `max_tokens`."""
    sizes = [size_of(group) for group in groups]
    batches: list[list[int]] = []
    filled = NOTHING
    for index in sorted(range(len(groups)), key=lambda i: sizes[i].tokens(rows)):
        together = filled + sizes[index]
        if batches and together.tokens(rows) <= rows.max_tokens:
            batches[-1].append(index)
            filled = together
        else:
            batches.append([index])
            filled = sizes[index]
    return batches
