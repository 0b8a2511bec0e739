"""Tables on alignment stages: their figures by hand, and runs that start from what other runs made."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.report.reading import RunData
from adaptpo.sandbox.build import write_recipe
from adaptpo.sandbox.settings import WorldSettings
from adaptpo.sandbox.tables.cells import Cell, Outcome, cells_of, run_cells, run_name, waves
from adaptpo.sandbox.tables.definitions.stages import TABLE_3, TABLE_5, duel, stage_rows
from adaptpo.sandbox.tables.measure import Boundary, Measurement, stage_prompts
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.sandbox_world import SandboxWorld
from adaptpo.sandbox.tables.stage_view import StageView, effectiveness, policies
from adaptpo.sandbox.tables.summary import RowSummary, summarize

# Figures


@pytest.mark.parametrize(
    ("offline", "online", "ratio"),
    [
        (3.14, 9.45, 0.33),  # Llama-3, SFT
        (12.65, 5.58, 2.27),  # Zephyr, SFT
        (1.52, 1.34, 1.13),  # Phi-2 after PC_on
        (0.16, -1.60, math.inf),  # Phi-2, SFT
        (-0.5, 2.0, 0.0),
    ],
)
def test_effectiveness_is_the_papers(offline: float, online: float, ratio: float) -> None:
    assert effectiveness(offline, online) == pytest.approx(ratio, abs=0.005)


def test_effectiveness_where_neither_gains_is_none() -> None:
    """A dash in the paper's Tables 4 (Pythia) and 5 (Llama-3 after PC_off)."""
    assert effectiveness(-0.53, -0.79) is None
    assert effectiveness(0.0, 0.0) is None


INJECTION, FINE_TUNING, UNDECIDED = (
    Boundary(0.3, 0.28, 0.32, True),
    Boundary(0.7, 0.66, 0.74, False),
    Boundary(0.51, 0.47, 0.55, False),
)
OFF, ON = duel("a policy", ())
GAINS = ((INJECTION, 0.3, 0.1), (FINE_TUNING, 0.1, 0.2), (UNDECIDED, 0.2, -0.1))
"""Of seeds 0 to 2: what the score said, the gain on PC_off, the gain on PC_on. The last one it got wrong."""


def ended(row: Row, seed: int, gain: float, boundary: Boundary | None = None) -> Outcome:
    found = Measurement(0.5 + gain, 0.5, 0.8, 0.7, 0.0, 1, 2, 3, 9, words=10 * gain, boundary=boundary)
    return Outcome(Cell(row, SandboxWorld(WorldSettings(seed=seed))), Path("run"), found)


def example() -> list[RowSummary]:
    offline = [ended(OFF, seed, gain) for seed, (_, gain, _) in enumerate(GAINS)]
    online = [ended(ON, seed, gain, boundary) for seed, (boundary, _, gain) in enumerate(GAINS)]
    return summarize([OFF, ON], [*offline, *online, ended(OFF, 3, 0.9)], "PC_off")


def test_a_policy_by_hand() -> None:
    """Seed 3 lacks one of its two runs and does not count. The gains are 0.6 and 0.2 in all."""
    (line,) = policies(example())
    assert list(line.duels) == [(0, 0), (1, 0), (2, 0)]
    assert [found.predicted for found in line.duels.values()] == [True, True, False]
    assert [found.boundary.decided for found in line.duels.values()] == [True, True, False]
    assert line.effectiveness == pytest.approx(3)


def test_lines_and_remarks_of_a_view() -> None:
    view = StageView("A | B", {"a policy": "0.40 / 2.27 | –"})
    found = view.grid(example(), 4)
    assert dict(zip(found.titles, found.rows[0], strict=True)) == {
        "policy": "a policy",
        "runs": "3 of 4",
        "true reward": "0.500 [0.500, 0.500]",
        "boundary score": "0.503 [0.006, 1.000]; ±0.033",
        "against chosen / rejected": "–",
        "gain on PC_off": "+0.200 [−0.048, +0.448]",
        "gain on PC_on": "+0.067 [−0.313, +0.446]",
        "difference, off − on": "+0.133 [−0.384, +0.650]",
        "words, off / on": "2.0 / 0.7",
        "count, off / on": "0.00 / 0.00",
        "effectiveness": "3.00",
        "predicted": "2 of 3",
        "paper, A | B: score / effectiveness": "0.40 / 2.27 | –",
    }
    assert "in 2 of 3 cases" in view.remarks(example(), 4)[-1]
    assert "in 2 of 2." in view.remarks(example(), 4)[-1]
    cells = json.loads(json.dumps(view.record(example())))[0]["cells"]
    assert [cell["predicted"] for cell in cells] == [True, True, False]


def test_a_policy_without_runs_is_empty_and_not_an_error() -> None:
    view = StageView("A")
    summaries = summarize([OFF, ON], [], "PC_off")
    assert view.grid(summaries, 1).rows[0][1:] == ["0 of 1", *["–"] * 9, "0 of 0", "–"]
    assert view.record(summaries) == [{"policy": "a policy", "effectiveness": None, "cells": []}]


# Runs that start from others


def test_every_run_comes_after_the_one_it_starts_from() -> None:
    rows = stage_rows(())
    assert [row.depth for row in rows] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert set(TABLE_3) == set(TABLE_5) == {row.group for row in rows[2:]}
    last = next(row for row in rows if row.depth == 1)
    chain = Row("again", last.settings, start=last)
    assert [
        [cell.row for cell in wave] for wave in waves(cells_of([chain], [0], 1, SandboxWorld(WorldSettings())))
    ] == [
        [last.start],
        [last],
        [chain],
    ]


def test_what_a_run_starts_from_is_part_of_its_name(tmp_path: Path) -> None:
    write_recipe(tmp_path, WorldSettings())
    rows = (OFF, *duel("x", (), start=OFF)[:1], Row("", ()))
    names = {run_name(tmp_path / "recipe.yaml", Cell(row, SandboxWorld(WorldSettings()))) for row in rows}
    assert len(names) == 3


TINY = {"heldout": 12, "sft_epochs": 1, "reward_epochs": 1}
QUICK = ("generation.max_new_tokens=12",)


@pytest.mark.engines
def test_runs_that_start_from_others(tmp_path: Path) -> None:
    """The second policy is the first one's; only the row at the end is asked for, and a start that fails is told."""
    quiet_libraries()
    first, _ = duel("SFT", QUICK, TINY)
    _, second = duel("then", QUICK, TINY, first)
    broken = Row("broken", (*first.settings, "reward=no/such/model"), TINY)
    orphan = Row("orphan", first.settings, TINY, start=broken)
    world = SandboxWorld(WorldSettings(prompts=32))
    cells = cells_of([second, orphan], [0], 1, world)
    found, failed = run_cells(cells, tmp_path, 1)
    (start,) = run_cells(cells_of([first], [0], 1, world), tmp_path, 1)

    assert found.run is not None and found.measurement is not None
    assert start.run is not None and start.measurement is not None
    assert failed.error is not None and "did not finish: broken" in failed.error
    assert yaml.safe_load((found.run / "config.yaml").read_text())["model"] == str(start.run / "final")
    assert found.measurement.sft_reward == start.measurement.true_reward
    assert found.measurement.boundary is not None and start.measurement.boundary is None
    sides = (found.measurement.boundary.against_chosen, found.measurement.boundary.against_rejected)
    assert None not in sides and sum(sides) / 2 == pytest.approx(found.measurement.boundary.score)  # type: ignore[arg-type]
    assert stage_prompts(RunData.open(found.run)) == 32
    assert (start.measurement.annotated, found.measurement.annotated) == (0.0, 2.0)
    assert (start.measurement.answers, found.measurement.answers) == (0.0, 6.0)  # Two trained on, four compared.
