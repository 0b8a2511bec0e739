"""Groups prompts of similar wording, with a boundary score for each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adaptpo.seeds import seed_for
from adaptpo.stage.score import BOUNDARY, FloatArray, IntArray
from adaptpo.types import Prompt

BUCKETS = 512
ROUNDS = 25
PRIOR_PROMPTS = 8
"""Weight of the overall score in a group's score, as a number of prompts: small groups say little."""


def group_prompts(prompts: Sequence[Prompt], groups: int, seed: int) -> IntArray:
    """The group of each of n prompts, [n]: spherical k-means on the weighted counts of their tokens."""
    assigned = np.zeros(len(prompts), dtype=np.int64)
    if not prompts:
        return assigned
    features = token_features(prompts)
    centres = first_centres(features, groups, np.random.default_rng(seed))
    for _ in range(ROUNDS):
        assigned = (features @ centres.T).argmax(axis=1)
        sums = np.stack([features[assigned == group].sum(axis=0) for group in range(len(centres))])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / lengths.clip(min=1e-12), centres)
    return assigned


def first_centres(features: FloatArray, groups: int, rng: np.random.Generator) -> FloatArray:
    """Up to `groups` prompts, each drawn in proportion to its distance from those before (k-means++)."""
    chosen = [int(rng.integers(len(features)))]
    while len(chosen) < groups:
        distance = (1 - (features @ features[chosen].T).max(axis=1)).clip(min=0)
        if distance.sum() < 1e-9:
            break
        chosen.append(int(rng.choice(len(features), p=distance / distance.sum())))
    return features[chosen]


def token_features(prompts: Sequence[Prompt]) -> FloatArray:
    """Unit vectors [n, BUCKETS] of the tokens that each prompt contains; rare tokens count more."""
    present = np.zeros((len(prompts), BUCKETS))
    for row, prompt in enumerate(prompts):
        present[row, [seed_for("token", token) % BUCKETS for token in set(prompt.ids)]] = 1
    weighted = present * np.log((1 + len(prompts)) / (1 + present.sum(axis=0)))
    return weighted / np.linalg.norm(weighted, axis=1, keepdims=True).clip(min=1e-12)


def scores_by_prompt(prompts: Sequence[Prompt], group: IntArray, scores: Mapping[int, float]) -> dict[int, float]:
    """The score of each prompt's group, by prompt id; `scores` are those of the prompts that were measured."""
    overall = float(np.mean(list(scores.values()))) if scores else BOUNDARY
    known = np.array([scores.get(prompt.id, np.nan) for prompt in prompts])
    by_group = {}
    for number in set(group.tolist()):
        members = known[(group == number) & ~np.isnan(known)]
        by_group[number] = float((members.sum() + PRIOR_PROMPTS * overall) / (len(members) + PRIOR_PROMPTS))
    return {prompt.id: by_group[number] for prompt, number in zip(prompts, group.tolist(), strict=True)}
