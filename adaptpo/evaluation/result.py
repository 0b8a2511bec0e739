"""What an evaluation found, with everything that one must know to compare it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from adaptpo.evaluation.intervals import Interval
from adaptpo.types import Row

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Number:
    """One figure of a result; `interval` is None where nothing is known of its spread."""

    name: str
    value: float
    interval: Interval | None = None
    note: str = ""

    @property
    def row(self) -> Row:
        row: Row = {"name": self.name, "value": self.value}
        row |= {"interval": asdict(self.interval)} if self.interval else {}
        return row | ({"note": self.note} if self.note else {})


@dataclass(frozen=True)
class PromptScore:
    """One prompt's part of the main number, in its unit; `weight`: how much it counts; `group`: its category."""

    id: str
    value: float
    group: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Origin:
    """Where answers and verdicts come from. `decoding`: how the answers were sampled; `template`: the judge's words."""

    model: str = UNKNOWN
    judge: str = UNKNOWN
    baseline: str = UNKNOWN
    decoding: Mapping[str, Any] | str = UNKNOWN
    template: str = UNKNOWN


@dataclass(frozen=True)
class Result:
    """`n` counts the valid verdicts, `invalid` the others by reason; `numbers` begins with the main one; `scores` are
    the main number's parts by prompt; `warnings` are for the reader of the numbers."""

    suite: str
    origin: Origin
    n: int
    invalid: Mapping[str, int]
    numbers: Sequence[Number]
    scores: Sequence[PromptScore] = ()
    warnings: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def main(self) -> Number:
        return self.numbers[0]

    def number(self, name: str) -> Number:
        return next(number for number in self.numbers if number.name == name)

    def row(self) -> Row:
        """As `result.json` holds it, without the scores of prompts."""
        return {
            "suite": self.suite,
            **asdict(self.origin),
            "n": self.n,
            "invalid_verdicts": dict(self.invalid),
            "numbers": [number.row for number in self.numbers],
            "warnings": list(self.warnings),
            **self.details,
        }
