"""The training visits of each pair, for methods that learn the weights of pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptpo.types import Row

FloatArray = npt.NDArray[np.float64]

FOCAL_GAMMA = 1.0
"""FocalPO's exponent in the MetaPO paper's Table 9, whose weights are near p."""


@dataclass(frozen=True)
class Visits:
    """Visits in the order of training, arrays [visits].

    `pair` numbers the pairs from 0 in the order of their first visits, `count` numbers the visits of each pair from 1;
    `weight` is MetaPO's factor, `volatility` the standard deviation of the pair's margins so far (Eq. 5). `lines` are
    the visits as stored.
    """

    lines: tuple[Row, ...]
    pair: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]
    margin: FloatArray
    weight: FloatArray
    volatility: FloatArray

    @classmethod
    def of(cls, lines: Sequence[Row], column: str) -> Visits:
        """The visits of one or more lines of `pair_weights.jsonl`, whose `column` holds the learned weight."""
        pair, count, volatility = np.array(histories(lines)).T
        margin, weight = (np.array([line[name] for line in lines], dtype=np.float64) for name in ("margin", column))
        return cls(tuple(lines), pair.astype(np.int64), count.astype(np.int64), margin, weight, volatility)

    def __getitem__(self, chosen: npt.NDArray[np.bool_]) -> Visits:
        """The visits that the mask `chosen`, [visits], selects."""
        lines = tuple(self.lines[place] for place in np.flatnonzero(chosen))
        return Visits(
            lines,
            self.pair[chosen],
            self.count[chosen],
            self.margin[chosen],
            self.weight[chosen],
            self.volatility[chosen],
        )

    @property
    def last(self) -> Visits:
        """The last visit of each pair."""
        chosen = np.zeros(len(self.lines), dtype=bool)
        chosen[list({int(pair): place for place, pair in enumerate(self.pair)}.values())] = True
        return self[chosen]

    @property
    def probability(self) -> FloatArray:
        """p = sigmoid(margin)."""
        return 1 / (1 + np.exp(-np.clip(self.margin, -30, 30)))

    @property
    def focal(self) -> FloatArray:
        """FocalPO's weight."""
        return self.probability**FOCAL_GAMMA


def histories(lines: Iterable[Row]) -> list[tuple[int, int, float]]:
    """For each visit: its pair's number, its number among the pair's visits, and the spread of the margins so far."""
    numbers: dict[tuple[str, int], int] = {}
    seen: dict[int, list[float]] = defaultdict(list)
    found = []
    for line in lines:
        pair = numbers.setdefault((line["source"], line["prompt_id"]), len(numbers))
        seen[pair].append(line["margin"])
        found.append((pair, len(seen[pair]), float(np.std(seen[pair]))))
    return found
