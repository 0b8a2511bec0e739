"""The papers' figures, shown beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

Columns = tuple[tuple[str, tuple[str, ...]], ...]
"""Titles of columns, each with the names of the figures that its cells hold."""


@dataclass(frozen=True)
class Figures:
    """A paper's figures for a setting, with a subclass for each paper. `table` is the paper's table.

    A subclass adds its figures as fields, None if there are none, and the `columns` that show them.
    """

    columns: ClassVar[Columns] = ()

    table: str


@dataclass(frozen=True)
class MetaAPO(Figures):
    """Figures of the MetaAPO paper (Yang et al., 2025) for Llama-3.1-8B.

    `win_rate` and `length_controlled` (AlpacaEval 2) and `annotated` in percent; the others in minutes.
    """

    columns: ClassVar[Columns] = (
        ("paper: WR / LC / annotated, %", ("win_rate", "length_controlled", "annotated")),
        ("paper, minutes: sampling / training / overall", ("sampling", "training", "overall")),
    )

    win_rate: float | None = None
    length_controlled: float | None = None
    annotated: float | None = None
    sampling: float | None = None
    training: float | None = None
    overall: float | None = None


@dataclass(frozen=True)
class MetaPO(Figures):
    """Figures of the MetaPO paper (Li et al., 2026) for Llama-3-8B-Instruct, means over its seeds.

    `win_rate` and `length_controlled` (AlpacaEval 2) and `arena_hard` in percent; `hours` of training.
    """

    columns: ClassVar[Columns] = (
        ("MetaPO paper: WR / LC / Arena-Hard, %", ("win_rate", "length_controlled", "arena_hard")),
        ("MetaPO paper: hours", ("hours",)),
    )

    win_rate: float | None = None
    length_controlled: float | None = None
    arena_hard: float | None = None
    hours: float | None = None
