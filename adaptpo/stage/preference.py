"""The judge: a preference model that compares two responses to one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from adaptpo.annotation.base import Annotator
from adaptpo.types import Prompt, Response


@dataclass(frozen=True)
class Comparison:
    prompt: Prompt
    first: Response
    second: Response


class PreferenceModel(Protocol):
    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """For each comparison the probability in [0, 1] that the first response is the better one; 0.5 is a tie, None
        means no answer."""
        ...


class AnnotatorPreference:
    """Prefers the response that the annotator does: by rewards, or by a comparison of the two where it compares."""

    def __init__(self, annotator: Annotator) -> None:
        self.annotator = annotator

    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        couples = [((c.prompt, c.first), (c.prompt, c.second)) for c in comparisons]
        return [preference(advantage) for advantage in self.annotator.advantages(couples)]


def preference(advantage: float | None) -> float | None:
    """1 if the first response is the better one, 0 if the second is, 0.5 for a tie, None without an answer.

    >>> preference(0.25), preference(-1.0), preference(0.0), preference(None)
    (1.0, 0.0, 0.5, None)
    """
    return None if advantage is None else ((advantage > 0) - (advantage < 0) + 1) / 2
