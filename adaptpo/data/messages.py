"""Normalizes chat messages and finds the prompt that two conversations share."""

from __future__ import annotations

import re
from typing import Any

from adaptpo.data.conversation import begins_response, words_of
from adaptpo.data.problems import (
    BAD_MESSAGE,
    EMPTY_CHOSEN,
    EMPTY_PROMPT,
    EMPTY_REJECTED,
    EQUAL,
    FUNCTION_CALL,
    LIST_OF_TEXTS,
    NO_FINAL_REPLY,
    NO_SHARED_PROMPT,
    NOT_TEXT,
    NOT_TEXT_CONTENT,
    NOT_UNICODE,
    PROMPT_END,
    UNKNOWN_ROLE,
    UNTRAINED,
    RowProblem,
)
from adaptpo.data.senders import ROLE_OF_SENDER
from adaptpo.data.stored import stored_messages, stored_parts
from adaptpo.data.tools import ANSWERS, CALLERS, called, read_calls
from adaptpo.types import Message, Text

TOOL_ROLES = ("tool", "function", "ipython")
ACCEPTED_ROLES = ("system", "developer", "user", "assistant", *TOOL_ROLES)
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
TRAINING_MARKS = ("weight", "loss", "train")
"""Keys by which rows of OpenAI, ms-swift and axolotl say whether a turn is trained."""
COMPARED_KEYS = ("role", "content", "name", "reasoning_content", "thinking", "tool_calls", "tool_call_id")


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def read_text(value: Any) -> Text | None:
    """Reads a prompt or response: text, messages, a single message, or messages stored as a string; None stays None.

    Raises:
        RowProblem: it is something else, or `normalize_messages` refuses the messages.
    """
    if isinstance(value, str):
        value = stored if (stored := stored_messages(value)) is not None else value
    elif isinstance(value, dict) and ("role" in value or "from" in value):
        value = [value]
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return normalize_messages(value)
    raise RowProblem(NOT_TEXT)


def normalize_messages(messages: list[Any]) -> list[Message]:
    """Checks every message and joins its text parts. Keys that are None (columnar files fill them in) are removed,
    ShareGPT's (from, value) become role and content, and turns that hold an assistant's tool calls become its turn.

    Raises:
        RowProblem: a message has no role or content, an unknown role, content other than text, or malformed calls.
    """
    single = [item for message in messages for item in _read_item(message)]
    return _with_calls_in_turn([_normalize_message(_with_role(message)) for message in single])


def _read_item(message: Any) -> list[Any]:
    return (stored_messages(message) or [message]) if isinstance(message, str) else [message]


def _with_role(message: Any) -> Any:
    if not isinstance(message, dict) or isinstance(message.get("role"), str):
        return message
    if not isinstance(sender := message.get("from"), str):
        return message
    rest = {key: value for key, value in message.items() if key not in ("from", "value", "role", "content")}
    return {"role": ROLE_OF_SENDER.get(sender.lower(), sender), "content": message.get("value"), **rest}


def _normalize_message(message: Any) -> Message:
    if isinstance(message, str):
        raise RowProblem(LIST_OF_TEXTS)
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RowProblem(BAD_MESSAGE)
    if message.get("function_call"):
        raise RowProblem(FUNCTION_CALL)
    role, content = ANSWERS.get(message["role"], message["role"]), message.get("content")
    if role in CALLERS:
        return {"role": role, "tool_calls": called(content)}
    if role not in ACCEPTED_ROLES:
        raise RowProblem(UNKNOWN_ROLE)
    calls = read_calls(message.get("tool_calls"))
    said = {} if calls and content is None else {"content": _join_text_parts(content)}
    own = ("role", "content", "tool_calls", "function_call")
    present = {key: value for key, value in message.items() if value is not None and key not in own}
    return {"role": role, **said, **present, **({"tool_calls": calls} if calls else {})}


def _with_calls_in_turn(messages: list[Message]) -> list[Message]:
    """The messages, with consecutive turns of `CALLERS` as one turn of the assistant."""
    turns: list[Message] = []
    for place, turn in enumerate(messages):
        if turn["role"] not in CALLERS:
            turns.append(turn)
        elif place and messages[place - 1]["role"] in CALLERS:
            turns[-1]["tool_calls"] += turn["tool_calls"]
        else:
            turns.append({"role": "assistant", "tool_calls": turn["tool_calls"]})
    return turns


def _join_text_parts(content: Any) -> str:
    if isinstance(content, str):
        return content if (parts := stored_parts(content)) is None else _join_text_parts(parts)
    if content is None:
        raise RowProblem(BAD_MESSAGE)
    if not isinstance(content, list):
        raise RowProblem(NOT_TEXT_CONTENT)
    return "".join(_part_text(part) for part in content)


def _part_text(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise RowProblem(NOT_TEXT_CONTENT)
    return part["text"]


def continue_conversation(prompt: list[Message], response: list[Message]) -> list[Message]:
    """Returns the whole conversation, whether `response` is only the reply or repeats the prompt before it."""
    if shared_length(prompt, response) == len(prompt):
        return response
    if response and response[0]["role"] == "assistant":
        return prompt + response
    raise RowProblem(NO_SHARED_PROMPT)


def split_conversations(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Splits two whole conversations into their longest shared beginning and a response each: an assistant turn, or
    several turns that begin and end with one.

    Raises:
        RowProblem: they are equal, or the parts have the wrong roles.
    """
    length = _prompt_length(chosen, rejected)
    prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    _check_replies(prompt, chosen, rejected)
    check_prompt(prompt)
    return prompt, chosen, rejected


def _prompt_length(chosen: list[Message], rejected: list[Message]) -> int:
    """Number of turns before the responses. If the conversations part after a shared assistant turn, as where a tool
    answers differently, the responses begin with that turn."""
    length = shared_length(chosen, rejected)
    parting = [turns[length]["role"] for turns in (chosen, rejected) if length < len(turns)]
    goes_back = len(parting) == 2 and set(parting) != {"assistant"} and length > 0
    return length - 1 if goes_back and chosen[length - 1]["role"] == "assistant" else length


def _check_replies(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> None:
    if not chosen and not rejected:
        raise RowProblem(EQUAL)
    if not chosen:
        raise RowProblem(EMPTY_CHOSEN)
    if not rejected:
        raise RowProblem(EMPTY_REJECTED)
    if any(response[-1]["role"] != "assistant" for response in (chosen, rejected)):
        raise RowProblem(NO_FINAL_REPLY)
    if any(_is_untrained(turn) for response in (chosen, rejected) for turn in response):
        raise RowProblem(UNTRAINED)
    if not prompt or any(response[0]["role"] != "assistant" for response in (chosen, rejected)):
        raise RowProblem(NO_SHARED_PROMPT)


def _is_untrained(turn: Message) -> bool:
    marks = [turn[key] for key in TRAINING_MARKS if key in turn]
    return turn["role"] == "assistant" and any(isinstance(mark, int | float) and mark == 0 for mark in marks)


def check_prompt(prompt: list[Message], may_begin_response: bool = False) -> None:
    """Raises RowProblem unless the prompt ends with a tool's answer or a user turn that is not blank, or, with
    `may_begin_response`, with words of the assistant that a response continues.

    The chat template's generation prompt opens an assistant turn, so what precedes it must call for one.
    """
    if not prompt:
        raise RowProblem(EMPTY_PROMPT)
    last = prompt[-1]
    if last["role"] in TOOL_ROLES or (may_begin_response and begins_response(prompt) and "tool_calls" not in last):
        return
    if last["role"] != "user":
        raise RowProblem(PROMPT_END)
    if not words_of(last).strip():
        raise RowProblem(EMPTY_PROMPT)


def shared_length(first: list[Message], second: list[Message]) -> int:
    """Number of equal messages at the start of both conversations."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if not _says_the_same(one, other):
            break
        length += 1
    return length


def _says_the_same(one: Message, other: Message) -> bool:
    # Ids and scores attached to messages may differ without changing what a template renders.
    return all(one.get(key) == other.get(key) for key in COMPARED_KEYS)


def check_unicode(value: Any) -> None:
    """Raises RowProblem if a text, or a text within messages, holds half of a surrogate pair: it has no UTF-8 form."""
    if isinstance(value, str):
        if not value.isascii() and LONE_SURROGATE.search(value):
            raise RowProblem(NOT_UNICODE)
    elif isinstance(value, list | tuple):
        for item in value:
            check_unicode(item)
    elif isinstance(value, dict):
        check_unicode([*value.keys(), *value.values()])
