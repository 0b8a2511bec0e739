"""The boundary score, its interval and its decision: counts only, no models.

The score of a prompt is the share of its four comparisons that the policy's responses won, a tie counting one half: a
multiple of 1/8. The boundary score is the mean over prompts, `V_on / (V_on + V_off)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Decision = Literal["preference injection", "preference fine-tuning", "undecided"]

LEVELS = 8
"""A prompt's score is one of 0, 1/8, ..., 1: half points of four comparisons."""
COMPARISONS = 4
CONFIDENCE = 0.95
BOUNDARY = 0.5

ADVICE: dict[Decision, str] = {
    "preference injection": "preference injection: train on offline pairs",
    "preference fine-tuning": "preference fine-tuning: train on the policy's own samples",
    "undecided": "undecided: the interval contains 0.5",
}


def histogram(scores: Sequence[float] | FloatArray) -> IntArray:
    """The number of prompts with each score 0, 1/8, ..., 1: [9]. Raises ValueError for a score between two levels."""
    points = np.asarray(scores, dtype=np.float64) * LEVELS
    if np.any((points != points.round()) | (points < 0) | (points > LEVELS)):
        raise ValueError("a prompt's score is a share of four comparisons; it must be a multiple of 1/8 in [0, 1]")
    return np.bincount(points.astype(np.int64), minlength=LEVELS + 1)


def smoothed(counts: IntArray) -> IntArray:
    """The histograms [..., 9] with one more prompt that the policy won and one more that it lost.

    Without them, prompts that all agree would have an interval of width 0, and a sequential measurement would stop as
    soon as the first few happen to agree.
    """
    ends = np.zeros(LEVELS + 1, dtype=np.int64)
    ends[[0, LEVELS]] = 1
    return counts + ends


def interval(counts: IntArray, confidence: float = CONFIDENCE) -> FloatArray:
    """The bootstrap percentile interval over prompts, [..., 2], of histograms [..., 9] with the same number of prompts.

    Scores lie on a lattice, so the distribution of a resampled mean is an n-fold convolution: computed exactly, it
    needs no random resampling, and swapping the two sets of responses mirrors it.

    >>> interval(histogram([0.75] * 40 + [0.25] * 10)).round(3)
    array([0.582, 0.702])
    """
    padded = smoothed(counts)
    tail = (1 - confidence) / 2
    return np.stack([quantile(padded, tail), 1 - quantile(padded[..., ::-1], tail)], axis=-1)


def quantile(counts: IntArray, tail: float) -> FloatArray:
    """The lower `tail` quantile of the mean of n prompts drawn with replacement from histograms [..., 9], [...]."""
    prompts = int(counts.reshape(-1, LEVELS + 1)[0].sum())
    points = LEVELS * prompts + 1
    size = 1 << (points - 1).bit_length()
    transformed = np.fft.rfft(counts / prompts, size, axis=-1) ** prompts
    cumulated = np.fft.irfft(transformed, size, axis=-1)[..., :points].cumsum(axis=-1)
    return (cumulated < tail).sum(axis=-1) / (points - 1)


def decide(low: float, high: float) -> Decision:
    if high < BOUNDARY:
        return "preference injection"
    return "preference fine-tuning" if low > BOUNDARY else "undecided"


@dataclass(frozen=True)
class BoundaryScore:
    """The result of a measurement: `counts` [9], prompts by score; `ties` among all comparisons.

    >>> clear = BoundaryScore.of([0.75] * 40 + [0.25] * 10)
    >>> clear.score, clear.decision
    (0.65, 'preference fine-tuning')
    >>> BoundaryScore.of([0.75, 0.25, 0.5]).decision
    'undecided'
    """

    counts: tuple[int, ...]
    ties: int = 0

    @classmethod
    def of(cls, scores: Sequence[float] | FloatArray, ties: int = 0) -> BoundaryScore:
        return cls(tuple(histogram(scores).tolist()), ties)

    @property
    def prompts(self) -> int:
        return sum(self.counts)

    @property
    def comparisons(self) -> int:
        return COMPARISONS * self.prompts

    @property
    def won(self) -> float:
        """V_on: comparisons that the policy's response won, ties counting one half."""
        return sum(level * count for level, count in enumerate(self.counts)) * COMPARISONS / LEVELS

    @property
    def lost(self) -> float:
        """V_off: comparisons that the offline response won, ties counting one half."""
        return self.comparisons - self.won

    @property
    def score(self) -> float:
        """`V_on / (V_on + V_off)`; 0.5 if nothing was compared."""
        return self.won / self.comparisons if self.prompts else BOUNDARY

    @property
    def interval(self) -> tuple[float, float]:
        low, high = interval(np.array(self.counts)).tolist()
        return low, high

    @property
    def half_width(self) -> float:
        low, high = self.interval
        return (high - low) / 2

    @property
    def decision(self) -> Decision:
        return decide(*self.interval)

    @property
    def leans_to_injection(self) -> bool:
        """Algorithm 1's own rule, which always decides: V_off > V_on."""
        return self.lost > self.won

    @property
    def prompts_to_decide(self) -> int | None:
        """Estimated number of prompts that would decide, if score and spread stay the same; None at a score of 0.5."""
        distance = abs(self.score - BOUNDARY)
        if distance == 0:
            return None
        z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
        return math.ceil((z * self.spread / distance) ** 2)

    @property
    def spread(self) -> float:
        """Standard deviation of the score of one prompt, with the two prompts that the interval adds."""
        counts, levels = smoothed(np.array(self.counts)), np.arange(LEVELS + 1) / LEVELS
        mean = np.average(levels, weights=counts)
        return float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))
