"""The interface of annotators: one reward for each (prompt, response)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from adaptpo.errors import AnnotationError
from adaptpo.types import Prompt, Response, Text

Request = tuple[Prompt, Response]


class Annotator(ABC):
    """Assigns rewards to responses. `relative`: a reward only compares a response with the others to its prompt in the
    same call; a single response gets none."""

    relative = False

    @abstractmethod
    def rewards(self, requests: Sequence[Request]) -> list[float | None]:
        """Returns one reward per request, higher is better; None if the annotator has none."""

    def reward_vectors(self, requests: Sequence[Request], count: int) -> list[list[float] | None]:
        """Returns the rewards of `count` objectives for each request; None if one of them is missing."""
        raise AnnotationError(
            f"this annotator gives one reward, but the method ranks by {count}; set `reward` to a list of {count} "
            f"annotators, or to a function that returns {count} floats per response"
        )

    def probe(self) -> None:  # noqa: B027 (most have nothing to detect)
        """Detects problems that would otherwise surface only with responses to annotate; may ask one small question.

        Raises AnnotationError.
        """

    def take_usage(self) -> dict[str, int]:
        """Returns the usage since the last call and resets it."""
        return {}


def valid_reward(value: Any) -> float | None:
    """The reward as a finite float, or None for None, NaN and infinities."""
    if value is None:
        return None
    reward = float(value)
    return reward if math.isfinite(reward) else None


def as_completion(prompt: Prompt, response: Response) -> Any:
    """The response in the format of its prompt: text, or a list with one assistant message (TRL's convention)."""
    if isinstance(response.text, str) and not isinstance(prompt.text, str):
        return [{"role": "assistant", "content": response.text}]
    return response.text


def as_text(text: Text) -> str:
    """A text as it is, one message as its content, several as a transcript `ROLE: content` with blank lines."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return str(text[0]["content"])
    return "\n\n".join(f"{message['role'].upper()}: {message['content']}" for message in text)
