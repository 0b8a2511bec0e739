"""A forward pass of a causal reward model in which the responses to a prompt share that prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adaptpo.models.shared_prompt.attention import forward_arguments
from adaptpo.models.shared_prompt.layout import positions, shared_prompts

WORTH_SHARING = 0.15
"""Share of the tokens that sharing must save."""


@dataclass(frozen=True)
class Family:
    """Token rows with a common `prefix`; `endings` are the rest of each row (at least one token)."""

    prefix: list[int]
    endings: list[list[int]]
    places: list[int]

    @property
    def tokens(self) -> int:
        return len(self.prefix) + sum(map(len, self.endings))

    @property
    def separate_tokens(self) -> int:
        return self.tokens + len(self.prefix) * (len(self.endings) - 1)


def family_of(rows: Sequence[list[int]], places: Sequence[int], pad_id: int | None) -> Family:
    """Returns the family of `rows`; `places` are their indices among all rows.

    Padding tokens at the end are removed: transformers scores a row at its last non-padding token, and rows do end with
    padding tokens if EOS is the padding token. None is no padding token.
    """
    rows = [without_padding(row, pad_id) for row in rows]
    alike = [len(set(tokens)) == 1 for tokens in zip(*rows, strict=False)]
    shared = min(alike.index(False) if False in alike else len(alike), min(map(len, rows)) - 1)
    return Family(list(rows[0][:shared]), [list(row[shared:]) for row in rows], list(places))


def without_padding(row: list[int], pad_id: int | None) -> list[int]:
    end = len(row)
    while end > 1 and row[end - 1] == pad_id:
        end -= 1
    return row[:end]


def scores_last_token(model: Any) -> bool:
    """Whether the model is a decoder with a linear score on top, like transformers' `ForSequenceClassification`."""
    return isinstance(getattr(model, "score", None), nn.Linear)


def shared_rewards(model: Any, families: Sequence[Family]) -> list[float]:
    """Returns the rewards of all rows, family by family."""
    prefixes = [len(family.prefix) for family in families]
    lengths = [[len(ending) for ending in family.endings] for family in families]
    tokens: list[int] = []
    last: list[int] = []
    for family in families:
        tokens += family.prefix
        for ending in family.endings:
            tokens += ending
            last.append(len(tokens) - 1)
    device = next(model.parameters()).device
    layout = shared_prompts(prefixes, lengths).to(device)
    arguments = forward_arguments(layout, positions(prefixes, lengths)[None].to(device))
    states = model.base_model(input_ids=torch.tensor([tokens], device=device), use_cache=False, **arguments)
    return model.score(states.last_hidden_state[0, torch.tensor(last, device=device)])[:, 0].float().tolist()


def worth_sharing(families: Sequence[Family]) -> bool:
    separate = sum(family.separate_tokens for family in families)
    return bool(separate) and sum(family.tokens for family in families) <= (1 - WORTH_SHARING) * separate


def family_batches(families: Sequence[Family], max_tokens: int) -> list[list[Family]]:
    """Families sorted by length, in batches of at most `max_tokens` tokens; a longer family is a batch by itself."""
    batches: list[list[Family]] = []
    for family in sorted(families, key=lambda family: family.tokens):
        if not batches or sum(f.tokens for f in batches[-1]) + family.tokens > max_tokens:
            batches.append([])
        batches[-1].append(family)
    return batches
