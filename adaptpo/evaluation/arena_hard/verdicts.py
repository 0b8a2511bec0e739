"""Verdicts of Arena-Hard's judges: how they are read, and how often they count."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Version = Literal["v0.1", "v2.0"]

DOUBLE = re.compile(r"\[\[([AB<>=]+)\]\]")
SINGLE = re.compile(r"\[([AB<>=]+)\]")
STRONG = 3
"""How often a verdict with a doubled sign counts."""

OUTCOMES = {">": 1.0, "=": 0.5, "<": 0.0}
LABELS = {
    "v0.1": frozenset({"A>>B", "A>B", "A=B", "B>A", "B>>A"}),
    "v2.0": frozenset({"A>>B", "A>B", "A=B", "B=A", "B>A", "B>>A", "A<B", "A<<B", "B<A", "B<<A"}),
}


@dataclass(frozen=True)
class Verdict:
    """`outcome`: 1 where A won, 0 where B won, 0.5 for a tie; `weight`: how often it counts."""

    outcome: float
    weight: int = 1

    def swapped(self) -> Verdict:
        return Verdict(1 - self.outcome, self.weight)

    def battles(self) -> list[float]:
        return [self.outcome] * self.weight


def label_of(text: str, version: Version) -> str | None:
    """The verdict in an answer, or None. v0.1: all that it holds must agree. v2.0: the last one, in capital letters,
    in double brackets, else in single ones."""
    if version == "v0.1":
        return sole(DOUBLE.findall(text))
    capital = text.upper()
    found = DOUBLE.findall(capital) or SINGLE.findall(capital)
    return found[-1] if found else None


def sole(found: Sequence[str]) -> str | None:
    return found[0] if len(set(found)) == 1 else None


def says_nothing(text: str, version: Version) -> bool:
    """Whether the judge of v0.1 is asked to go on: it gave no verdict at all."""
    return version == "v0.1" and not DOUBLE.search(text)


def verdict_of(label: str | None, version: Version) -> Verdict | None:
    """None where the label is none of the version's."""
    if label not in LABELS[version]:
        return None
    assert label is not None
    sign = label.strip("AB")
    for_first = OUTCOMES[sign[0]]
    return Verdict(for_first if label[0] == "A" else 1 - for_first, STRONG if len(sign) == 2 else 1)
