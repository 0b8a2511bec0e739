"""What a conversation says: the words and tool calls of its turns, and a response that continues its prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence

from adaptpo.types import Message, Text


def words_of(message: Message) -> str:
    """The content of a turn; empty if it only calls tools."""
    return message.get("content") or ""


def spoken(message: Message) -> str:
    """The content of a turn, with its tool calls as one line of JSON each."""
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return "\n".join([*([words_of(message)] if words_of(message) or not calls else []), *calls])


def begins_response(prompt: Text) -> bool:
    """Whether the prompt ends with the beginning of a response: an assistant turn that generation continues."""
    return isinstance(prompt, list) and bool(prompt) and prompt[-1]["role"] == "assistant"


def joined(prompt: Sequence[Message], response: Sequence[Message]) -> list[Message]:
    """The whole conversation, in which a response continues the turn that its prompt begins."""
    if not begins_response(list(prompt)) or not response:
        return [*prompt, *response]
    first = {**prompt[-1], **response[0], "content": words_of(prompt[-1]) + words_of(response[0])}
    return [*prompt[:-1], first, *response[1:]]


def question_and_answer(prompt: list[Message], response: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The prompt up to the turn that answers it, and the whole answer, the beginning that the prompt gives included."""
    asked = prompt[:-1] if begins_response(prompt) else prompt
    return asked, joined(prompt, response)[len(asked) :]
