"""Means over worlds or runs with their intervals, win rates, win rates at equal length, and areas under ROC curves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct, t

from adaptpo.report.visits import FloatArray

LEVEL = 0.95
POWER = 0.8
NEWTON_STEPS = 50
RIDGE = 1e-3

Place = tuple[int, int]
"""The seed of a world, and the number of a run in it."""
Unit = Literal["worlds", "runs"]
"""What an interval is between."""


@dataclass(frozen=True)
class Estimate:
    """A mean over units; `low` and `high` bound its 95 % interval, None for a single unit.

    `visible`: the smallest mean that differs from 0 at 5 % with a power of 80 %, were it measured as often.
    """

    mean: float
    low: float | None
    high: float | None
    visible: float | None = None


def estimate(values: Mapping[Place, float], unit: Unit = "worlds") -> Estimate:
    """The mean of the worlds' means, with Student's t interval between worlds, or between the runs of a single world.

    Runs in one world share its data and its reward model, so worlds are the units; runs only sharpen each world's mean.
    With as many runs in every world, this is the exact interval of the model with random worlds and random runs. An
    interval between runs holds for their world alone.
    """
    means = [fmean(some) for some in by_world(values)] if unit == "worlds" else list(values.values())
    if len(means) < 2:
        return Estimate(fmean(means), None, None)
    error, freedom = stdev(means) / math.sqrt(len(means)), len(means) - 1
    edge, mean = float(t.ppf((1 + LEVEL) / 2, freedom)), fmean(means)
    return Estimate(mean, mean - edge * error, mean + edge * error, noncentrality(edge, freedom) * error)


def noncentrality(edge: float, freedom: int) -> float:
    """The true mean, in standard errors, at which a t statistic exceeds `edge` with a probability of `POWER`."""
    return float(brentq(lambda shift: nct.sf(edge, freedom, shift) - POWER, 0, 10 * edge))


def by_world(values: Mapping[Place, float]) -> list[list[float]]:
    found: dict[int, list[float]] = defaultdict(list)
    for (world, _), value in values.items():
        found[world].append(value)
    return list(found.values())


@dataclass(frozen=True)
class Spread:
    """Standard deviations of a value between worlds and between runs in one world; None if there is only one each."""

    worlds: float | None
    runs: float | None


def spread(several: Sequence[Mapping[Place, float]]) -> Spread:
    """The spread of each of several values, pooled over them: the analysis of variance of a nested design."""
    groups = [by_world(values) for values in several]
    within = [variance(some) for worlds in groups for some in worlds if len(some) > 1]
    between = [
        (variance(map(fmean, worlds)), fmean(1 / len(w) for w in worlds)) for worlds in groups if len(worlds) > 1
    ]
    runs = fmean(within) if within else None
    worlds = fmean(max(0.0, v - (runs or 0.0) * share) for v, share in between) if between else None
    return Spread(*(None if v is None else math.sqrt(v) for v in (worlds, runs)))


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
