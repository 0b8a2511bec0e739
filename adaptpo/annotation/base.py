"""What every annotator does: one reward for each (prompt, response)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from adaptpo.types import Prompt, Response

Request = tuple[Prompt, Response]


class Annotator(Protocol):
    def rewards(self, requests: Sequence[Request]) -> list[float | None]:
        """One reward per request, higher is better; None where the annotator has none to give."""
        ...


def valid_reward(value: Any) -> float | None:
    """The reward as a finite float, or None for None, NaN and infinities."""
    if value is None:
        return None
    reward = float(value)
    return reward if math.isfinite(reward) else None


def as_completion(prompt: Prompt, response: Response) -> Any:
    """The response in the form of its prompt: text, or a list with one assistant message (TRL's convention)."""
    if isinstance(response.text, str) and not isinstance(prompt.text, str):
        return [{"role": "assistant", "content": response.text}]
    return response.text
