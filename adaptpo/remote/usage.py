"""Counts the usage of a remote service."""

from __future__ import annotations

from collections import Counter

Usage = Counter[str]
"""Counts by name: requests, tokens, unusable answers."""


def take(usage: Usage) -> dict[str, int]:
    taken = dict(usage)
    usage.clear()
    return taken
