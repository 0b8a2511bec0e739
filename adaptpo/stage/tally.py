"""Counts comparisons into the scores of prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from adaptpo.stage.score import COMPARISONS, BoundaryScore
from adaptpo.types import Row


@dataclass(frozen=True)
class Tally:
    """The score of each prompt with four answered comparisons, by prompt id; the number of answers of each other prompt
    (`incomplete`); and the ties among the comparisons counted."""

    scores: dict[int, float]
    incomplete: dict[int, int]
    ties: int

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Tally:
        """Counts rows with `prompt_id` and `preference`: the probability that the policy's response is better."""
        points: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            points[row["prompt_id"]] += [] if row["preference"] is None else [point(row["preference"])]
        complete = {prompt: won for prompt, won in points.items() if len(won) == COMPARISONS}
        return cls(
            scores={prompt: sum(won) / COMPARISONS for prompt, won in complete.items()},
            incomplete={prompt: len(won) for prompt, won in points.items() if prompt not in complete},
            ties=sum(won.count(0.5) for won in complete.values()),
        )

    @property
    def boundary(self) -> BoundaryScore:
        return BoundaryScore.of(list(self.scores.values()), self.ties)


def point(preference: float) -> float:
    """The points of a comparison for the policy: 1, 0, or 0.5 for a tie (Algorithm 1 counts preferences, not their
    strength).

    >>> point(0.9), point(0.5), point(0.1)
    (1.0, 0.5, 0.0)
    """
    return ((preference > 0.5) - (preference < 0.5) + 1) / 2
