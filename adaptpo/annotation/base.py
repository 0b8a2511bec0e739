"""The interface of annotators: one reward for each (prompt, response)."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from adaptpo.data.conversation import question_and_answer, spoken
from adaptpo.data.tools import read_tools
from adaptpo.errors import AnnotationError
from adaptpo.types import Message, Prompt, Response, Text

Request = tuple[Prompt, Response]
Couple = tuple[Request, Request]


class Annotator(ABC):
    """Assigns rewards to responses. `relative`: a reward only compares a response with the others to its prompt in the
    same call; a single response gets none."""

    relative = False

    @abstractmethod
    def rewards(self, requests: Sequence[Request]) -> list[float | None]:
        """Returns one reward per request, higher is better; None if the annotator has none."""

    def advantages(self, couples: Sequence[Couple]) -> list[float | None]:
        """Returns how much the first response of each couple is preferred to the second, both to one prompt; 0 is a
        tie, None no answer. Here it is the difference of their rewards, and each response is annotated once."""
        distinct = {response_key(request): request for couple in couples for request in couple}
        rewards = dict(zip(distinct, self.rewards(list(distinct.values())), strict=True))
        return [lead(rewards[response_key(a)], rewards[response_key(b)]) for a, b in couples]

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


def response_key(request: Request) -> tuple[int, tuple[int, ...]]:
    prompt, response = request
    return prompt.id, tuple(response.ids)


def lead(first: float | None, second: float | None) -> float | None:
    """The first reward minus the second; None if one is missing."""
    return None if first is None or second is None else first - second


def valid_reward(value: Any) -> float | None:
    """The reward as a finite float, or None for None, NaN and infinities. Raises TypeError for what is no number, which
    includes text and true or false, and OverflowError for one that no float holds."""
    if value is None:
        return None
    if isinstance(value, bool | str | bytes | bytearray) or type(value).__name__ in ("bool_", "bool"):
        raise TypeError(f"a {type(value).__name__} is no number")
    reward = float(value)
    return reward if math.isfinite(reward) else None


def asked_and_answered(prompt: Prompt, response: Response) -> tuple[Text, Text]:
    """The prompt and the response as one who judges reads them, both as text or both as messages (TRL's convention). If
    the prompt ends with the beginning of the response, that belongs to the response."""
    if isinstance(prompt.text, str):
        return prompt.text, response.text
    said = response.text
    return question_and_answer(prompt.text, [{"role": "assistant", "content": said}] if isinstance(said, str) else said)


def request_in_words(prompt: Prompt, response: Response) -> str:
    """What was asked, in words: the tools first, if there are any, then the conversation (see `as_text`)."""
    tools, (asked, _) = read_tools(prompt.columns.get("tools")), asked_and_answered(prompt, response)
    if not tools:
        return as_text(asked)
    return f"TOOLS: {json.dumps(tools, ensure_ascii=False)}\n\n{asked if isinstance(asked, str) else transcript(asked)}"


def answer_in_words(prompt: Prompt, response: Response) -> str:
    return as_text(asked_and_answered(prompt, response)[1])


def as_text(text: Text) -> str:
    """A text as it is, one message as its content, several as a transcript `ROLE: content` with blank lines; tool calls
    as JSON after the content."""
    if isinstance(text, str):
        return text
    return spoken(text[0]) if len(text) == 1 else transcript(text)


def transcript(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{message['role'].upper()}: {spoken(message)}" for message in messages)
