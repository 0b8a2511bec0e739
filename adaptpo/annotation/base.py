"""What every annotator does: one reward for each (prompt, response)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from adaptpo.errors import AnnotationError
from adaptpo.types import Prompt, Response, Text

Request = tuple[Prompt, Response]


class Annotator(ABC):
    """`relative`: a reward says how a response compares with the others to its prompt in the same call, and nothing
    beyond that; a response that is alone gets none."""

    relative = False

    @abstractmethod
    def rewards(self, requests: Sequence[Request]) -> list[float | None]:
        """One reward per request, higher is better; None where the annotator has none to give."""

    def reward_vectors(self, requests: Sequence[Request], count: int) -> list[list[float] | None]:
        """The rewards of `count` objectives for each request; None where one of them is missing."""
        raise AnnotationError(
            f"this annotator gives one reward, and the method ranks by {count}; set `reward` to a list of {count} "
            f"annotators, or to a function that returns {count} floats per response"
        )

    def probe(self) -> None:  # noqa: B027 (most have nothing to find out)
        """Find out what would else come to light when there are responses to annotate; may ask one small question.

        Raises AnnotationError.
        """

    def take_usage(self) -> dict[str, int]:
        """What was used since the last call of this."""
        return {}


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


def as_text(text: Text) -> str:
    """A text as it is, a lone message as its content, several as a transcript `ROLE: content` with blank lines."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return str(text[0]["content"])
    return "\n\n".join(f"{message['role'].upper()}: {message['content']}" for message in text)
