"""What every generation engine does: sample K responses to each prompt, reproducibly per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from adaptpo.types import Prompt, Response


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; `top_k` 0 is off; `stop_ids` end a response and belong to it."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    stop_ids: frozenset[int]


class Generator(Protocol):
    def generate(self, prompts: Sequence[Prompt], count: int, seeds: Sequence[int]) -> list[list[Response]]:
        """`count` responses to each prompt; those to prompt i depend on `seeds[i]` and not on its neighbours, up to
        the rounding of a differently composed batch. A response that reached `max_new_tokens` has `ended=False`.

        An engine that could not get all of them returns fewer; the caller records what is missing."""
        ...
