"""Metrics between two logs."""

from __future__ import annotations

from collections import defaultdict

from adaptpo.distributed.ranks import Ranks


class MeanMetrics:
    """Means of metrics since the last log, over all values: they depend neither on micro-batches nor on ranks."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.weights: dict[str, float] = defaultdict(float)

    def add(self, metrics: dict[str, tuple[float, int]]) -> None:
        for name, (mean, count) in metrics.items():
            self.sums[name] += mean * count
            self.weights[name] += count

    def drain(self, ranks: Ranks) -> dict[str, float]:
        """Returns the means over all ranks and resets them."""
        sums, weights = defaultdict[str, float](float), defaultdict[str, float](float)
        for own_sums, own_weights in ranks.gather((dict(self.sums), dict(self.weights))):
            for name in own_sums:
                sums[name] += own_sums[name]
                weights[name] += own_weights[name]
        self.sums.clear()
        self.weights.clear()
        return {name: total / weights[name] for name, total in sums.items()}
