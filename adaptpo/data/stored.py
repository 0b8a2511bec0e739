"""Reads messages that were stored as one string: JSON, Python's repr (CSV files), or numpy's and pandas' repr."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from adaptpo.data.problems import UNREADABLE_MESSAGES, RowProblem
from adaptpo.data.senders import ROLE_OF_SENDER

AROUND = ("messages", "conversations")
"""Keys of an object that holds messages."""
PARTS = ("text", "image", "image_url", "audio", "video")
OPENS_PARTS = re.compile(r"\s*\[\s*\{\s*[\"'](?:type|text)[\"']\s*:")
LONGEST = 2**24
"""Longer strings, in characters, are not parsed."""
DEEPEST = 32
"""Lists and dictionaries within one another; messages need six."""
OPENS_MESSAGES = re.compile(r"\s*\"?\s*(?:(?:np\.|numpy\.)?array\(\s*)?[\[(]?\s*\{\s*\\?[\"']")
SPEAKERS = "|".join(sorted({*ROLE_OF_SENDER, "developer", "tool", "function"}))
NAMES_A_SPEAKER = re.compile(rf"[\"'](?:role|from)\\?[\"']\s*:\s*(?:np\.str_\()?\\?[\"'](?:{SPEAKERS})\\?[\"']")
TOKEN = re.compile(
    r"""\s*+(?:(?P<text>[bru]?(?:'[^'\\]*+(?:\\.[^'\\]*+)*+'|"[^"\\]*+(?:\\.[^"\\]*+)*+"))"""
    r"""|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"""
    r"""|(?P<word>[A-Za-z_][\w.]*)|(?P<mark>[][{}(),:=])|(?P<end>\Z))""",
    re.DOTALL,
)
ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|.)", re.DOTALL)
PLAIN_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "\n": ""}
PLAIN_ESCAPES |= {mark: mark for mark in "\\'\"/"}
CONSTANTS = {"None": None, "True": True, "False": False, "null": None, "true": True, "false": False, "nan": None}
CALLS = re.compile(r"array|(?:np|numpy)\.\w+")
CLOSING = {"[": "]", "(": ")"}


class Unreadable(Exception):  # noqa: N818 - never reaches the user: it becomes a reason
    """The text is not a list or dictionary as JSON, Python or numpy write it."""


class FollowedByText(Unreadable):
    """The text only begins with such a list or dictionary."""


def stored_messages(text: str) -> list[Any] | None:
    """The messages that a string holds, or None if it is simply text.

    Raises:
        RowProblem: the string evidently holds messages, but cannot be parsed (for instance, because it was cut).
    """
    if not opens_messages(text):
        return None
    try:
        messages = read_literal(text)
    except FollowedByText:
        return None
    except Unreadable:
        if NAMES_A_SPEAKER.search(text):
            raise RowProblem(UNREADABLE_MESSAGES) from None
        return None
    if isinstance(messages, dict):
        messages = next((messages[name] for name in AROUND if isinstance(messages.get(name), list)), [messages])
    return messages if messages and all(map(is_message, messages)) else None


def stored_parts(text: str) -> list[Any] | None:
    """The parts of a content that a string holds (`[{"type": "text", "text": ...}]`), or None if it is simply text."""
    if not OPENS_PARTS.match(text):
        return None
    try:
        parts = read_literal(text)
    except Unreadable:
        return None
    return parts if parts and all(isinstance(part, dict) and part.get("type") in PARTS for part in parts) else None


def opens_messages(text: str) -> bool:
    """Whether the text begins as messages stored as a string do; other lists of dictionaries begin so too."""
    return OPENS_MESSAGES.match(text) is not None


def is_message(value: Any) -> bool:
    """Whether this is a message, with the keys of TRL (role, content) or of ShareGPT (from, value)."""
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("role"), str):
        return bool({"content", "tool_calls", "function_call"} & value.keys())
    return isinstance(value.get("from"), str) and value["from"].lower() in ROLE_OF_SENDER and "value" in value


def read_literal(text: str) -> Any:
    """The value of a text in JSON's, Python's or numpy's notation; nothing in it is executed.

    Raises:
        Unreadable: it is in none of these notations, too long, or too deep.
    """
    if len(text) > LONGEST:
        raise Unreadable
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _Reader(text).whole()
    # Serialized twice: a JSON string that holds JSON.
    return read_literal(value) if isinstance(value, str) and len(value) < len(text) else value


class _Reader:
    """Reads one value from tokens. Commas may be missing between the items of a list, as in numpy's notation."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.kind, self.text = next(self.tokens)

    def whole(self) -> Any:
        value = self.value(0)
        if self.kind != "end":
            raise FollowedByText
        return value

    def take(self, expected: str | None = None) -> str:
        found = self.text
        if self.kind in ("end", "other") or (expected is not None and found != expected):
            raise Unreadable
        self.kind, self.text = next(self.tokens)
        return found

    def value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise Unreadable
        if self.kind == "text":
            return _unescaped(self.take())
        if self.kind == "number":
            return _number(self.take())
        if self.kind == "word":
            return self.named(depth)
        if self.text in CLOSING:
            return self.items(CLOSING[self.take()], depth)
        return self.mapping(depth)

    def items(self, closing: str, depth: int) -> list[Any]:
        found = []
        while self.text != closing:
            found.append(self.value(depth + 1))
            if self.text == ",":
                self.take()
        self.take(closing)
        return found

    def mapping(self, depth: int) -> dict[Any, Any]:
        found = {}
        self.take("{")
        while self.text != "}":
            key = self.key()
            self.take(":")
            found[key] = self.value(depth + 1)
            if self.text != "}":
                self.take(",")
        self.take("}")
        return found

    def key(self) -> str:
        if self.kind != "text":
            raise Unreadable
        return _unescaped(self.take())

    def named(self, depth: int) -> Any:
        """The constant, or the first argument of a call such as `array([...], dtype=object)` or `np.str_('user')`."""
        name = self.take()
        if name in CONSTANTS:
            return CONSTANTS[name]
        if not CALLS.fullmatch(name):
            raise Unreadable
        self.take("(")
        value = self.value(depth + 1)
        while self.text != ")":
            self.argument(depth)
        self.take(")")
        return value

    def argument(self, depth: int) -> None:
        for mark in (",", "dtype", "="):
            self.take(mark)
        if self.kind == "word":
            self.take()
        else:
            self.value(depth + 1)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """The kind and the text of each token; the last one is the end, or something other than a token."""
    end = 0
    while (found := TOKEN.match(text, end)) and found.lastgroup:
        yield found.lastgroup, found[found.lastgroup]
        end = found.end()
    yield "other", ""


def _number(text: str) -> int | float:
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError as error:  # Python reads no integers of thousands of digits.
        raise Unreadable from error


def _unescaped(literal: str) -> str:
    raw = literal[0] == "r"
    text = literal.lstrip("bru")[1:-1]
    return text if raw or "\\" not in text else ESCAPE.sub(_escaped_character, text)


def _escaped_character(found: re.Match[str]) -> str:
    code = found[1]
    if code[0] in "xuU" and len(code) > 1:
        return _character(int(code[1:], 16))
    if code[0] in "01234567":
        return chr(int(code, 8))
    return PLAIN_ESCAPES.get(code, found[0])


def _character(number: int) -> str:
    if number > 0x10FFFF:
        raise Unreadable
    return chr(number)
