"""Records of what a phase leaves out, with the reason."""

from __future__ import annotations

from collections import Counter

from adaptpo.run.files import JsonLines
from adaptpo.types import Row

WRITTEN_TOGETHER = 1024
"""Number of records of dropped items that are buffered and written together."""


class LeftOut:
    """What a phase leaves out, written in batches; `reasons` counts the records by reason."""

    def __init__(self, log: JsonLines | None, phase: str) -> None:
        self.log, self.phase = log, phase
        self.reasons: Counter[str] = Counter()
        self.waiting: list[Row] = []
        if log is not None:
            log.discard(lambda record: record["phase"] == phase)

    def add(self, record: Row) -> None:
        """Adds a record, which must have a `reason`."""
        self.reasons[record["reason"]] += 1
        self.waiting.append({"phase": self.phase, **record})
        if len(self.waiting) == WRITTEN_TOGETHER:
            self.write()

    def write(self) -> None:
        if self.log is not None:
            self.log.append(*self.waiting)
        self.waiting = []
