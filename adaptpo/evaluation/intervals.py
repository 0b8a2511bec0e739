"""How sure a number is: intervals that say what kind they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[NDArray[np.intp]], float]
"""Of the rows with these indices, which may repeat."""

PROMPTS, ROWS, WILSON = "bootstrap over prompts", "bootstrap over battles", "Wilson"
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """`kind` says how it was made; `level` is its nominal coverage. `deviation`: of the resampled values."""

    low: float
    high: float
    kind: str
    level: float = 0.95
    deviation: float | None = None


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share, in percent. Raises ValueError without a trial."""
    if trials <= 0:
        raise ValueError("a share of no trials has no interval")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, shrink = successes / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / shrink
    half = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / shrink
    return Interval(100 * max(0.0, middle - half), 100 * min(1.0, middle + half), WILSON, level)


def quantiles(values: Sequence[float], kind: str, level: float = 0.95) -> Interval:
    """The interval between the outer quantiles of resampled values."""
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(low), float(high), kind, level, float(np.std(values, ddof=1)))


def bootstrap_values(count: int, statistic: Statistic, seed: int = 0, resamples: int = RESAMPLES) -> list[float]:
    """The statistic of `resamples` draws of `count` rows with replacement."""
    generator = np.random.default_rng(seed)
    return [statistic(generator.integers(count, size=count)) for _ in range(resamples)]


def bootstrap_mean(
    values: Floats, kind: str = PROMPTS, level: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Of the mean of independent values [n]."""
    found = bootstrap_values(len(values), lambda rows: float(values[rows].mean()), seed, resamples)
    return quantiles(found, kind, level)


def clustered_mean(
    values: Floats, clusters: Sequence[Hashable], level: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Of the mean of values [n], where whole clusters are drawn: values of one prompt are not independent."""
    numbers = cluster_numbers(clusters)
    sums, sizes = np.bincount(numbers, weights=values), np.bincount(numbers)
    found = bootstrap_values(len(sizes), lambda drawn: float(sums[drawn].sum() / sizes[drawn].sum()), seed, resamples)
    return quantiles(found, PROMPTS, level)


def cluster_numbers(clusters: Sequence[Hashable]) -> NDArray[np.intp]:
    """[n]: the clusters numbered from 0 in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.intp)
