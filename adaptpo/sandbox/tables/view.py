"""How a table is shown that has other lines than one for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from adaptpo.sandbox.tables.summary import RowSummary
from adaptpo.sandbox.tables.text import Grid


class View(Protocol):
    def grid(self, summaries: Sequence[RowSummary], seeds: int) -> Grid: ...

    def remarks(self, summaries: Sequence[RowSummary], seeds: int) -> list[str]:
        """What a reader of the numbers has to know."""
        ...

    def record(self, summaries: Sequence[RowSummary]) -> list[dict[str, object]]:
        """The lines, JSON-ready."""
        ...
