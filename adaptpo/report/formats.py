"""Formats numbers and texts for the report."""

from __future__ import annotations

import json
from typing import Any

TEXT_AT_MOST = 3000


def duration(seconds: float) -> str:
    """A duration with readable units and no-break spaces: `8.2 s`, `3 min 20 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 60:
        text = f"{seconds:.1f} s"
    else:
        text = f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
    return text.replace(" ", "\u00a0")


def short(value: float, sign: str = "-") -> str:
    """A number with about three digits; `sign` as in a format specification."""
    decimals = 2 if 1 <= abs(value) < 100 else 3 if abs(value) < 1 else 0
    return f"{value:{sign},.{decimals}f}".replace("-", "−")


def styled(value: float | None, style: str = ",") -> str | None:
    """A number in this format; None stays None."""
    return None if value is None else format(value, style).replace("-", "−")


def plain_text(value: str) -> str:
    """The readable text of a stored one: JSON of a string or of chat messages, or the bare text."""
    try:
        decoded = json.loads(value)
    except ValueError:
        return value
    if isinstance(decoded, list):
        return "\n\n".join(message_text(message) for message in decoded)
    return decoded if isinstance(decoded, str) else value


def message_text(message: Any) -> str:
    if not isinstance(message, dict):
        return str(message)
    content = message.get("content")
    return f"[{message.get('role', '?')}] {content if isinstance(content, str) else json.dumps(content)}"


def clipped(value: str) -> str:
    """The readable text of a stored one, cut to `TEXT_AT_MOST` characters."""
    text = plain_text(value)
    rest = len(text) - TEXT_AT_MOST
    return text if rest <= 0 else f"{text[:TEXT_AT_MOST]} … ({rest:,} more characters)"
