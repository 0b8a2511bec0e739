"""The interface of generation engines: K responses to each prompt, reproducible per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adaptpo.types import Prompt, Response


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. `temperature` 0 is greedy; `top_k` 0 is off; `stop_ids` end a response and are part of it."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    stop_ids: frozenset[int]


NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "guidance_scale": 1.0,
}
"""Arguments of transformers' `generate` that leave a distribution as it is. Left out, each would take the value of the
model's generation_config.json, and responses would not come from the policy in training."""


class Generator(Protocol):
    def generate(self, prompts: Sequence[Prompt], count: int, seeds: Sequence[int]) -> list[list[Response]]:
        """Returns `count` responses to each prompt. Those to prompt i depend on `seeds[i]` and not on its neighbours,
        up to the rounding of a differently composed batch. A response that reached `max_new_tokens` has `ended=False`.

        An engine that could not get all responses returns fewer; the caller records the missing ones."""
        ...
