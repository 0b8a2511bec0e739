"""Combines cells over seeds: one summary for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from adaptpo.sandbox.tables.cells import Outcome
from adaptpo.sandbox.tables.measure import Measurement
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.statistics import Estimate, estimate

METRICS = (
    "true_reward",
    "win_rate",
    "length_controlled",
    "annotated",
    "weight_auc",
    "margin_auc",
    "generation_seconds",
    "annotation_seconds",
    "training_seconds",
    "overall_seconds",
)


@dataclass(frozen=True)
class RowSummary:
    """A row over its seeds. `estimates` maps each of `METRICS` that its runs have to its mean; empty if no cell
    succeeded.

    `difference`: true reward minus that of the group's reference row, paired by seed; None for the reference itself and
    if no seed has both.
    """

    row: Row
    outcomes: tuple[Outcome, ...]
    estimates: dict[str, Estimate]
    difference: Estimate | None

    @property
    def measured(self) -> dict[int, Measurement]:
        """The measurements by seed."""
        return {o.cell.seed: o.measurement for o in self.outcomes if o.measurement is not None}

    @property
    def errors(self) -> list[str]:
        name = ", ".join(filter(None, (self.row.group, self.row.label)))
        return [f"{name}, seed {o.cell.seed}: {o.error}" for o in self.outcomes if o.error is not None]


def summarize(rows: Sequence[Row], outcomes: Sequence[Outcome], reference: str) -> list[RowSummary]:
    return [summary_of(row, outcomes, reference_of(row, rows, reference)) for row in rows]


def reference_of(row: Row, rows: Sequence[Row], reference: str) -> Row | None:
    """The row of the same group with this label; None for that row itself and if there is none."""
    found = next((other for other in rows if other.label == reference and other.group == row.group), None)
    return None if found is row else found


def summary_of(row: Row, outcomes: Sequence[Outcome], reference: Row | None) -> RowSummary:
    own = measurements(row, outcomes)
    values = {name: [v for m in own.values() if (v := getattr(m, name)) is not None] for name in METRICS}
    estimates = {name: estimate(found) for name, found in values.items() if found}
    base = measurements(reference, outcomes) if reference else {}
    differences = [own[seed].true_reward - base[seed].true_reward for seed in own if seed in base]
    cells = tuple(outcome for outcome in outcomes if outcome.cell.row is row)
    return RowSummary(row, cells, estimates, estimate(differences) if differences else None)


def measurements(row: Row, outcomes: Sequence[Outcome]) -> dict[int, Measurement]:
    return {o.cell.seed: o.measurement for o in outcomes if o.cell.row is row and o.measurement is not None}


def record_of(summary: RowSummary) -> dict[str, object]:
    """The summary in JSON-ready form, with every cell."""
    row = summary.row
    return {
        "label": row.label,
        "group": row.group,
        "settings": list(row.settings),
        "world": dict(row.world),
        "paper": [asdict(figures) for figures in row.paper],
        "estimates": {name: asdict(each) for name, each in summary.estimates.items()},
        "difference": asdict(summary.difference) if summary.difference else None,
        "cells": [cell_record(outcome) for outcome in summary.outcomes],
    }


def cell_record(outcome: Outcome) -> dict[str, object]:
    found = asdict(outcome.measurement) if outcome.measurement else {}
    run = outcome.run.name if outcome.run else None
    return {"seed": outcome.cell.seed, "run": run, "error": outcome.error, **found}
