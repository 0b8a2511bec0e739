"""Count what calls to a remote service take."""

from __future__ import annotations

from collections import Counter

Usage = Counter[str]
"""What annotation took: requests, tokens, answers that were no use."""


def take(usage: Usage) -> dict[str, int]:
    taken = dict(usage)
    usage.clear()
    return taken
