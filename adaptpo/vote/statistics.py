"""Shares with their intervals, and the agreement of voters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 4000


@dataclass(frozen=True)
class Share:
    """A mean of values in [0, 1] with its 95 % interval."""

    mean: float
    low: float
    high: float


def wilson(hits: float, n: int) -> Share:
    """The score interval of a share of n independent prompts (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    mean = hits / n
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Share(mean, max(0.0, centre - half), min(1.0, centre + half))


def clustered(values: FloatArray, clusters: Sequence[int]) -> Share:
    """The mean of `values` with a percentile bootstrap over whole clusters (prompts): votes on one prompt go together.

    Deterministic. Two artificial clusters, one all 0 and one all 1, each with half of the votes of a prompt, are added
    to the resamples: without them the interval is too narrow with few prompts, and of width 0 where all votes agree.
    """
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    counts = np.bincount(place).astype(np.float64)
    sums = np.bincount(place, weights=values)
    size = counts.mean() / 2
    drawn = resamples(len(counts) + 2)
    means = (drawn @ np.append(sums, [0.0, size])) / (drawn @ np.append(counts, [size, size]))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Share(float(values.mean()), float(low), float(high))


@lru_cache(maxsize=4)
def resamples(clusters: int) -> FloatArray:
    """How often each cluster is drawn in each resample: [RESAMPLES, clusters]."""
    drawn = np.random.default_rng(0).multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES)
    return drawn.astype(np.float64)


def agreement(ratings: FloatArray) -> float | None:
    """Krippendorff's alpha of ratings [voters, prompts] on an ordinal scale, NaN where a voter gave none.

    None where it is undefined: no prompt has two ratings, or all ratings are the same.
    """
    paired = ratings[:, (~np.isnan(ratings)).sum(axis=0) > 1]
    if len(np.unique(paired[~np.isnan(paired)])) < 2:
        return None
    import krippendorff  # An extra, which the votes of one person do not need.

    return float(krippendorff.alpha(reliability_data=paired, level_of_measurement="ordinal"))
