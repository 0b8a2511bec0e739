"""After which optimizer steps MetaPO's weights are learned."""

from __future__ import annotations

from dataclasses import dataclass

from adaptpo.config.numbers import Count, Fraction, InnerFraction, Ranged


@dataclass(frozen=True)
class Cadence(Ranged):
    """An update every `interval` optimizer steps: a count, a share of the training's steps if below 1, or None for
    never. In the share `dense_start` of the steps, at the start, every step updates.

    The first step of an optimizer never does: Adam's first step does not depend on the length of the gradient.

    >>> [step for step in range(1, 11) if Cadence(4).due(step, of=10)]
    [4, 8]
    >>> [step for step in range(1, 11) if Cadence(0.5, dense_start=0.3).due(step, of=10)]
    [2, 3, 5, 10]
    """

    interval: Count | InnerFraction | None = 0.02
    dense_start: Fraction = 0.0

    def steps_between(self, of: int) -> int | None:
        """The interval in steps, at least 1, of a training of `of` steps."""
        if self.interval is None or isinstance(self.interval, int):
            return self.interval
        return max(1, round(self.interval * of))

    def due(self, step: int, of: int) -> bool:
        """Whether step `step`, counted from 1, of a training of `of` steps updates the weights."""
        between = self.steps_between(of)
        return between is not None and step > 1 and (step % between == 0 or step <= self.dense_start * of)

    def updates(self, of: int) -> int:
        """The number of updates in a training of `of` steps."""
        return sum(self.due(step, of) for step in range(1, of + 1))
