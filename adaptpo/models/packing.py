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


def response_lengths(group: ResponseGroup) -> list[int]:
    return [len(response.ids) for response in group.responses]


def row_tokens(groups: Sequence[ResponseGroup], rows: RowPacking) -> int:
    """Number of tokens, padding included, that a forward pass over these groups computes."""
    lengths = [(len(group.prompt.ids), response_lengths(group)) for group in groups]
    if rows.shared_prompts:
        return sum(prompt + sum(length - 1 for length in responses) for prompt, responses in lengths)
    return sum(len(responses) for _, responses in lengths) * max(p + max(responses) for p, responses in lengths)


def token_batches(groups: Sequence[ResponseGroup], rows: RowPacking) -> list[list[int]]:
    """Indices of whole groups, sorted by length, in batches of at most `max_tokens`."""
    batches: list[list[int]] = []
    for index in sorted(range(len(groups)), key=lambda i: row_tokens([groups[i]], rows)):
        together = [groups[i] for i in [*batches[-1], index]] if batches else []
        if batches and row_tokens(together, rows) <= rows.max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
