"""Prompt groups for tests, from rows or from random tokens."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch

from adaptpo.data import iter_examples
from adaptpo.data.tokenization import tokenize_pair
from adaptpo.models.collate import GroupCollator
from adaptpo.models.logps import pair_logps
from adaptpo.pipeline.reading import offline_pair
from adaptpo.types import PreferencePair, Prompt, PromptGroup, Response, Source


def tokenized_groups(tokenizer: Any, rows: list[dict], reference: torch.nn.Module | None = None) -> list[PromptGroup]:
    """One offline pair a group, with the log-probs of `reference` where one is given."""
    groups = []
    for number, example in enumerate(iter_examples(rows)):
        pair = tokenize_pair(example, tokenizer, None, None)
        prompt = Prompt(number, example.prompt, pair.prompt_ids)
        groups.append(PromptGroup(prompt, (offline_pair(number, example, pair),)))
    return with_reference(groups, reference) if reference is not None else groups


def random_groups(
    count: int, seed: int = 0, sources: tuple[Source, ...] = ("offline", "online"), length: int = 12
) -> list[PromptGroup]:
    """Groups with one pair per source, random tokens of ragged lengths."""
    rng = random.Random(seed)

    def tokens(shortest: int) -> list[int]:
        return [rng.randrange(6, 200) for _ in range(rng.randint(shortest, length))]

    groups = []
    for number in range(count):
        pairs = tuple(
            PreferencePair(number, source, Response("", tokens(1)), Response("", tokens(1)), reward_gap=1.0)
            for source in sources
        )
        groups.append(PromptGroup(Prompt(number, "", tokens(2)), pairs))
    return groups


@torch.no_grad()
def with_reference(groups: list[PromptGroup], reference: torch.nn.Module) -> list[PromptGroup]:
    return [replace(group, pairs=tuple(kept_pairs(group, reference))) for group in groups]


def kept_pairs(group: PromptGroup, reference: torch.nn.Module) -> list[PreferencePair]:
    logps = pair_logps(reference, GroupCollator(0)([group]))
    sides = torch.stack([logps.chosen, logps.rejected], dim=1).tolist()
    kept = zip(group.pairs, sides, logps.shared.tolist(), strict=True)
    return [replace(pair, reference_logps=tuple(w), reference_shared=tuple(s)) for pair, w, s in kept]
