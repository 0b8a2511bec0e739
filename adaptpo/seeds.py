"""Random numbers that depend only on what they are drawn for, and not on order, ranks or resume."""

from __future__ import annotations

from hashlib import blake2b


def seed_for(*parts: int | str) -> int:
    """A seed in [0, 2**63) derived from, for instance, (run seed, purpose, iteration, prompt id)."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1


def uniform_for(*parts: int | str) -> float:
    """A uniform number in [0, 1) derived from such parts."""
    return (seed_for(*parts) >> 10) / 2**53
