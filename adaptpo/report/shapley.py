"""How much each feature contributes to MetaPO's weights (the MetaPO paper's Table 8)."""

from __future__ import annotations

from itertools import combinations
from math import factorial

import numpy as np

from adaptpo.report.visits import FloatArray

PAIRS, BACKGROUND = 1000, 100
"""The sample sizes of the paper's C.1."""


def shapley_values(features: FloatArray, background: FloatArray, slopes: FloatArray, bias: float) -> FloatArray:
    """Exact Shapley values [n, features] of `softplus(slopes . s + bias)`.

    A feature outside a coalition takes its values from `background`, [m, features], and the weight is averaged over
    them. shap's KernelExplainer, which the paper uses, estimates the same values from sampled coalitions. Each row
    sums to the weight minus the mean weight of the background. Time and memory grow with 2^features and n m.
    """
    own, others = features * slopes, background * slopes
    count = features.shape[1]
    values = np.zeros(features.shape)
    for size in range(count + 1):
        for members in combinations(range(count), size):
            inside = np.isin(np.arange(count), members)
            linear = own[:, inside].sum(axis=1)[:, None] + others[:, ~inside].sum(axis=1)[None] + bias
            worth = np.logaddexp(0, linear).mean(axis=1)[:, None]
            values[:, inside] += arrangements(size - 1, count) * worth
            values[:, ~inside] -= arrangements(size, count) * worth
    return values


def arrangements(before: int, count: int) -> float:
    """The share of all orders of the features in which exactly these `before` ones precede another one."""
    if not 0 <= before < count:
        return 0.0
    return factorial(before) * factorial(count - 1 - before) / factorial(count)


def importance(features: FloatArray, slopes: FloatArray, bias: float) -> FloatArray:
    """Mean absolute Shapley value of each feature, [features], over at most 1000 pairs against at most 100 others.

    Deterministic: the pairs are drawn with a fixed seed.
    """
    drawn = np.random.default_rng(0).permutation(len(features))
    others = drawn[: min(BACKGROUND, max(1, len(features) // 2))]
    pairs = drawn[len(others) : len(others) + PAIRS]
    return np.abs(shapley_values(features[pairs], features[others], slopes, bias)).mean(axis=0)
