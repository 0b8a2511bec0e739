"""From comparisons to the scores of prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from adaptpo.stage.score import COMPARISONS, BoundaryScore
from adaptpo.types import Row


@dataclass(frozen=True)
class Tally:
    """The score of each prompt whose four comparisons all have an answer, by prompt id; the others, with how many of
    theirs have one; and the ties among the comparisons counted."""

    scores: dict[int, float]
    incomplete: dict[int, int]
    ties: int

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Tally:
        """From rows with `prompt_id` and `preference`: the probability that the policy's response is the better one."""
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
    """What a comparison counts for the policy: 1, 0, or 0.5 for a tie (Algorithm 1 counts preferences, not their
    strength)."""
    return ((preference > 0.5) - (preference < 0.5) + 1) / 2
