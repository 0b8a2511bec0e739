"""Means over seeds with bootstrap intervals, win rates, win rates at equal length, and areas under ROC curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaptpo.report.visits import FloatArray

RESAMPLES = 10_000
LEVEL = 0.95
NEWTON_STEPS = 50
RIDGE = 1e-3


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `low` and `high` bound its 95 % bootstrap interval, None for a single seed."""

    mean: float
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Percentile bootstrap with seeds as units: whole seeds are drawn with replacement, not prompts.

    Deterministic. With few seeds the interval is too narrow: two seeds give at most their range.
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        return Estimate(float(sample.mean()), None, None)
    drawn = np.random.default_rng(0).integers(len(sample), size=(RESAMPLES, len(sample)))
    low, high = np.quantile(sample[drawn].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(sample.mean()), float(low), float(high))


def wins(new: Sequence[float], old: Sequence[float]) -> FloatArray:
    """1 where `new` is higher, 0.5 for a tie, else 0; shape [prompts]."""
    difference = np.asarray(new, dtype=np.float64) - np.asarray(old, dtype=np.float64)
    return (np.sign(difference) + 1) / 2


def area_under_curve(higher: Sequence[float], lower: Sequence[float]) -> float:
    """Area under the ROC curve: the chance that one of `higher` exceeds one of `lower`, ties half (Mann-Whitney).

    0.5 is no separation; below 0.5 the order is reversed. Raises ValueError if either is empty.
    """
    if not len(higher) or not len(lower):
        raise ValueError("an area under the ROC curve needs values of both kinds")
    ranks = average_ranks(np.concatenate([np.asarray(higher, dtype=np.float64), np.asarray(lower, dtype=np.float64)]))
    least = len(higher) * (len(higher) + 1) / 2
    return float((ranks[: len(higher)].sum() - least) / (len(higher) * len(lower)))


def average_ranks(values: FloatArray) -> FloatArray:
    """Ranks from 1, [n]; equal values share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def win_rate_at_equal_length(outcomes: FloatArray, new: Sequence[int], old: Sequence[int]) -> float:
    """The win rate as it would be if both responses were equally long; `new` and `old` are lengths in words.

    A logistic regression of the outcome (1, 0.5 or 0) on the difference in length, evaluated at difference 0: the idea
    of AlpacaEval 2's length-controlled win rate, without its terms for models and instructions. A weak ridge penalty
    keeps the fit finite if length decides every outcome.
    """
    difference = np.asarray(new, dtype=np.float64) - np.asarray(old, dtype=np.float64)
    scale = float(np.sqrt((difference**2).mean())) or 1.0
    intercept, _ = logistic_fit(difference / scale, outcomes)
    return float(logistic(intercept))


def logistic_fit(x: FloatArray, y: FloatArray) -> FloatArray:
    """Intercept and slope, shape [2], of a ridge logistic regression with outcomes in [0, 1], by Newton's method."""
    design = np.stack([np.ones_like(x), x], axis=1)
    weights = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        p = logistic(design @ weights)
        gradient = design.T @ (p - y) / len(y) + RIDGE * weights
        curvature = (design.T * (p * (1 - p))) @ design / len(y) + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return weights


def logistic(value: FloatArray | float) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-np.clip(value, -30, 30))))
