"""Combines cells over worlds and runs: one summary for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from adaptpo.sandbox.tables.cells import Outcome
from adaptpo.sandbox.tables.measure import Measurement
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.statistics import Estimate, Place, Unit, estimate

SHARES = ("win_rate", "length_controlled", "weight_auc", "margin_auc")


@dataclass(frozen=True)
class RowSummary:
    """A row over its worlds and runs. `estimates` maps each of the measurements' `metrics` that its runs have to its
    mean; empty if no cell succeeded.

    `differences`: true reward minus that of the group's reference row in the same world and with the same seed, and
    `difference` their mean; empty and None for the reference itself and if no place has both.
    """

    row: Row
    outcomes: tuple[Outcome, ...]
    estimates: dict[str, Estimate]
    difference: Estimate | None
    differences: Mapping[Place, float]

    @property
    def measured(self) -> dict[Place, Measurement]:
        """The measurements by world and run."""
        return {o.cell.place: o.measurement for o in self.outcomes if o.measurement is not None}

    @property
    def errors(self) -> list[str]:
        name = ", ".join(filter(None, (self.row.group, self.row.label)))
        return [f"{name}, {place_name(o.cell.place)}: {o.error}" for o in self.outcomes if o.error is not None]


def place_name(place: Place) -> str:
    world, repeat = place
    return f"seed {world}" + (f", run {repeat}" if repeat else "")


def summarize(
    rows: Sequence[Row], outcomes: Sequence[Outcome], reference: str, unit: Unit = "worlds"
) -> list[RowSummary]:
    return [summary_of(row, outcomes, reference_of(row, rows, reference), unit) for row in rows]


def reference_of(row: Row, rows: Sequence[Row], reference: str) -> Row | None:
    """The row of the same group with this label; None for that row itself and if there is none."""
    found = next((other for other in rows if other.label == reference and other.group == row.group), None)
    return None if found is row else found


def summary_of(row: Row, outcomes: Sequence[Outcome], reference: Row | None, unit: Unit) -> RowSummary:
    own = measurements(row, outcomes)
    metrics = dict.fromkeys(name for found in own.values() for name in found.metrics)
    values = {name: {p: v for p, m in own.items() if (v := getattr(m, name)) is not None} for name in metrics}
    estimates = {name: bounded(name, estimate(found, unit)) for name, found in values.items() if found}
    base = measurements(reference, outcomes) if reference else {}
    differences = {place: own[place].true_reward - base[place].true_reward for place in own if place in base}
    cells = tuple(outcome for outcome in outcomes if outcome.cell.row is row)
    return RowSummary(row, cells, estimates, estimate(differences, unit) if differences else None, differences)


def bounded(name: str, found: Estimate) -> Estimate:
    """An interval of a share ends at 0 and 1 at the latest, as the share does."""
    if name not in SHARES or found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def measurements(row: Row, outcomes: Sequence[Outcome]) -> dict[Place, Measurement]:
    return {o.cell.place: o.measurement for o in outcomes if o.cell.row is row and o.measurement is not None}


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
        "cells": [cell_record(outcome) for outcome in summary.outcomes if outcome.ran],
    }


def cell_record(outcome: Outcome) -> dict[str, object]:
    found = asdict(outcome.measurement) if outcome.measurement else {}
    run = outcome.run.name if outcome.run else None
    seed, repeat = outcome.cell.place
    return {"seed": seed, "repeat": repeat, "key": outcome.cell.key, "run": run, "error": outcome.error, **found}
