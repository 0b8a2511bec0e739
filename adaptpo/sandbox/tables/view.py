"""The interface for tables that show other lines than one for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from adaptpo.sandbox.tables.summary import RowSummary


@dataclass(frozen=True)
class Grid:
    """Column titles and rows of texts; `groups` holds each row's group. Columns without any value are removed."""

    titles: list[str]
    rows: list[list[str]]
    groups: list[str]


class View(Protocol):
    def grid(self, summaries: Sequence[RowSummary], places: int) -> Grid: ...

    def remarks(self, summaries: Sequence[RowSummary], worlds: int) -> list[str]:
        """Notes for the reader of the numbers."""
        ...

    def record(self, summaries: Sequence[RowSummary]) -> list[dict[str, object]]:
        """The lines in JSON-ready form."""
        ...
