"""The judge: a preference model that compares two responses to one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from adaptpo.annotation.base import Annotator, Request
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
    """Prefers the response with the higher reward; equal rewards are a tie. Each response is annotated once."""

    def __init__(self, annotator: Annotator) -> None:
        self.annotator = annotator

    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        requests: dict[tuple[int, tuple[int, ...]], Request] = {}
        for comparison in comparisons:
            for response in (comparison.first, comparison.second):
                requests.setdefault(key_of(comparison.prompt, response), (comparison.prompt, response))
        rewards = dict(zip(requests, self.annotator.rewards(list(requests.values())), strict=True))
        return [
            preference(rewards[key_of(c.prompt, c.first)], rewards[key_of(c.prompt, c.second)]) for c in comparisons
        ]


def key_of(prompt: Prompt, response: Response) -> tuple[int, tuple[int, ...]]:
    return prompt.id, tuple(response.ids)


def preference(first: float | None, second: float | None) -> float | None:
    """1 if the first reward is higher, 0 if the second is, 0.5 if they are equal, None if one is missing.

    >>> preference(2.0, 1.0), preference(1.0, 1.0), preference(None, 1.0)
    (1.0, 0.5, None)
    """
    if first is None or second is None:
        return None
    return ((first > second) - (first < second) + 1) / 2
