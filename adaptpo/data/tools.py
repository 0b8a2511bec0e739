"""Reads tools and tool calls, which data sets hold as lists or as JSON strings."""

from __future__ import annotations

from typing import Any

from adaptpo.data.problems import BAD_CALLS, BAD_TOOLS, RowProblem
from adaptpo.data.stored import Unreadable, read_literal

Tool = dict[str, Any]
CALLERS = ("tool_call", "function_call")
"""Roles in which ShareGPT's and ms-swift's rows hold the calls of an assistant as text."""
ANSWERS = {"tool_response": "tool", "observation": "tool"}
"""Their roles of a tool's answer."""


def read_tools(value: Any) -> list[Tool] | None:
    """The schemas in a column `tools`; None if there are none.

    Raises:
        RowProblem: it is neither a list of mappings nor a string that holds one.
    """
    return _mappings(value, BAD_TOOLS) or None


def read_calls(value: Any) -> list[Tool]:
    """The tool calls of a message.

    Raises:
        RowProblem: they are not a list of calls with names, nor a string that holds one.
    """
    return _named(_mappings(value, BAD_CALLS))


def called(content: Any) -> list[Tool]:
    """The calls that a turn of `CALLERS` holds: one or a list of `{"name": ..., "arguments": ...}`."""
    value = _parsed(content, BAD_CALLS)
    calls = _named(_mappings(value if isinstance(value, list) else [value], BAD_CALLS))
    if not calls:
        raise RowProblem(BAD_CALLS)
    return [call if "function" in call else {"type": "function", "function": call} for call in calls]


def _mappings(value: Any, reason: str) -> list[Tool]:
    items = _parsed(value, reason)
    if items is None:
        return []
    if not isinstance(items, list | tuple):
        raise RowProblem(reason)
    found = [_parsed(item, reason) for item in items]
    if not all(isinstance(item, dict) and item for item in found):
        raise RowProblem(reason)
    return found


def _named(calls: list[Tool]) -> list[Tool]:
    """The calls, which name a function themselves or under `function`."""
    inner = [call.get("function", call) for call in calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in inner):
        raise RowProblem(BAD_CALLS)
    return calls


def _parsed(value: Any, reason: str) -> Any:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return read_literal(value)
    except Unreadable:
        raise RowProblem(reason) from None
