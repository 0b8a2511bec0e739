"""Several annotators as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from adaptpo.annotation.base import Annotator, Couple, Request, valid_reward
from adaptpo.errors import AnnotationError

Weighted = tuple[Annotator, float]


class CombinedAnnotator(Annotator):
    """The weighted sum of rewards, without rescaling; None if one of them is missing."""

    def __init__(self, parts: Sequence[Weighted]) -> None:
        self.parts = parts
        self.relative = any(annotator.relative for annotator, _ in parts)

    def rewards(self, requests: Sequence[Request]) -> list[float | None]:
        weights = [weight for _, weight in self.parts]
        columns = [annotator.rewards(requests) for annotator, _ in self.parts]
        return [weighted_sum(row, weights) for row in zip(*columns, strict=True)]

    def advantages(self, couples: Sequence[Couple]) -> list[float | None]:
        weights = [weight for _, weight in self.parts]
        columns = [annotator.advantages(couples) for annotator, _ in self.parts]
        return [weighted_sum(row, weights) for row in zip(*columns, strict=True)]

    def reward_vectors(self, requests: Sequence[Request], count: int) -> list[list[float] | None]:
        """Returns one objective per annotator, unweighted. Raises AnnotationError if `count` differs."""
        if count != len(self.parts):
            raise AnnotationError(f"`reward` lists {len(self.parts)} annotators, but the method has {count} objectives")
        columns = [annotator.rewards(requests) for annotator, _ in self.parts]
        rows = [[reward for reward in row if reward is not None] for row in zip(*columns, strict=True)]
        return [row if len(row) == count else None for row in rows]

    def probe(self) -> None:
        for annotator, _ in self.parts:
            annotator.probe()

    def take_usage(self) -> dict[str, int]:
        return dict(sum((Counter(annotator.take_usage()) for annotator, _ in self.parts), Counter()))


def weighted_sum(rewards: Sequence[float | None], weights: Sequence[float]) -> float | None:
    present = [weight * reward for reward, weight in zip(rewards, weights, strict=True) if reward is not None]
    return valid_reward(sum(present)) if len(present) == len(weights) else None
