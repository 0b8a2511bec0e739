"""Tables over sandbox worlds: their statistics by hand, their processes, and one small table from end to end."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptpo.cli import main
from adaptpo.cli.help import TABLE_HELP
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.errors import ConfigError, RunError
from adaptpo.methods import METHODS
from adaptpo.report import RunData
from adaptpo.run.files import JsonLines, write_json
from adaptpo.run.state import read_state, write_state
from adaptpo.sandbox.build import write_recipe
from adaptpo.sandbox.sampling import Decoding
from adaptpo.sandbox.settings import WorldSettings
from adaptpo.sandbox.tables import sandbox_world
from adaptpo.sandbox.tables.cells import Cell, Outcome, cells_of, run_name, settings_of
from adaptpo.sandbox.tables.command import record, run_table
from adaptpo.sandbox.tables.definitions import TABLES
from adaptpo.sandbox.tables.docs import replaced, write_section
from adaptpo.sandbox.tables.known import known_outcome, read_known
from adaptpo.sandbox.tables.labels import label_separation, last_visits
from adaptpo.sandbox.tables.measure import Boundary, Measurement
from adaptpo.sandbox.tables.options import Options
from adaptpo.sandbox.tables.papers import MetaAPO, MetaPO
from adaptpo.sandbox.tables.processes import Task, run_tasks, start_method
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.sandbox_world import SandboxWorld
from adaptpo.sandbox.tables.statistics import (
    Spread,
    area_under_curve,
    estimate,
    noncentrality,
    spread,
    win_rate_at_equal_length,
    wins,
)
from adaptpo.sandbox.tables.summary import summarize
from adaptpo.sandbox.tables.table import Table, asked_rows, find_table, unavailable
from adaptpo.sandbox.tables.text import COLUMNS, before_training, grid
from adaptpo.sandbox.tables.work import open_policy
from tests.tiny import preference_rows, save_policy, write_jsonl

WORLD = SandboxWorld(WorldSettings())
SMALL = SandboxWorld(WorldSettings(prompts=64))

# Statistics


def test_one_world_has_no_interval_however_many_runs() -> None:
    single = estimate({(3, 0): 0.6, (3, 1): 0.8})
    assert (single.mean, single.low, single.high, single.visible) == (pytest.approx(0.7), None, None, None)


def test_interval_between_worlds_by_hand() -> None:
    """Worlds' means 1, 2 and 3: standard error 1 / sqrt(3), and t is 4.303 with two degrees of freedom."""
    found = estimate({(0, 0): 0.5, (0, 1): 1.5, (1, 0): 2.0, (1, 1): 2.0, (2, 0): 3.0, (2, 1): 3.0})
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert found.visible == pytest.approx(noncentrality(4.303, 2) / 3**0.5, abs=1e-3)


def test_interval_covers_and_the_visible_difference_is_seen_as_often_as_they_say() -> None:
    """2,000 tables of five worlds with three runs, both random: the interval covers in 95 %, and if the true mean is
    the smallest visible one, it excludes 0 in 80 %."""
    rng = np.random.default_rng(0)
    worlds = rng.normal(scale=0.02, size=(2000, 5, 1)) + rng.normal(scale=0.03, size=(2000, 5, 3))
    found = [estimate({(w, r): table[w, r] for w in range(5) for r in range(3)}) for table in worlds]
    error = ((0.02**2 + 0.03**2 / 3) / 5) ** 0.5
    shift = noncentrality(2.776, 4) * error
    assert np.mean([each.low <= 0 <= each.high for each in found]) == pytest.approx(0.95, abs=0.015)  # type: ignore[operator]
    assert np.mean([each.low + shift > 0 for each in found]) == pytest.approx(0.8, abs=0.03)  # type: ignore[operator]


def test_spread_parts_worlds_from_runs() -> None:
    """Runs of a world differ by 2 (variance 2); the worlds' means 1 and 5 have variance 8, of which 1 is runs'."""
    found = spread([{(0, 0): 0.0, (0, 1): 2.0, (1, 0): 4.0, (1, 1): 6.0}])
    assert (found.worlds, found.runs) == (pytest.approx(7**0.5), pytest.approx(2**0.5))
    assert spread([{(0, 0): 0.0, (1, 0): 2.0}]) == Spread(pytest.approx(2**0.5), None)


def test_ties_are_half_a_win() -> None:
    assert wins([1.0, 0.5, 0.2], [0.0, 0.5, 0.3]).tolist() == [1.0, 0.5, 0.0]


def test_win_rate_at_equal_length_is_the_win_rate_where_lengths_are_equal() -> None:
    assert win_rate_at_equal_length(np.array([1.0, 1.0, 1.0, 0.0]), [5] * 4, [5] * 4) == pytest.approx(0.75, abs=0.01)


def test_win_rate_at_equal_length_takes_out_what_length_explains() -> None:
    """Responses two words longer win 3 of 4, equally long ones 1 of 2: the answer is 1/2, not 5/8."""
    outcomes = np.array([1, 1, 1, 0, 1, 0, 1, 0], dtype=np.float64)
    found = win_rate_at_equal_length(outcomes, [7] * 4 + [5] * 4, [5] * 8)
    assert outcomes.mean() == 0.625
    assert found == pytest.approx(0.5, abs=0.01)


def test_win_rate_at_equal_length_is_finite_where_length_decides_everything() -> None:
    found = win_rate_at_equal_length(np.array([1.0, 1.0, 0.0, 0.0]), [9, 9, 1, 1], [5] * 4)
    assert found == pytest.approx(0.5)
    assert 0.9 < win_rate_at_equal_length(np.ones(4), [5] * 4, [5] * 4) < 1


@pytest.mark.parametrize(
    ("higher", "lower", "area"),
    [
        ([3, 4], [1, 2], 1.0),
        ([1, 2], [3, 4], 0.0),
        ([1, 1], [1, 1, 1], 0.5),
        ([1, 3], [2], 0.5),
        ([0.5, 0.5, 0.9], [0.5, 0.1], 5 / 6),  # Of six couples four are won and two tied.
    ],
)
def test_area_under_the_curve_counts_couples_and_half_of_ties(
    higher: list[float], lower: list[float], area: float
) -> None:
    assert area_under_curve(higher, lower) == pytest.approx(area)
    assert area_under_curve(lower, higher) == pytest.approx(1 - area)


def test_area_under_the_curve_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="both kinds"):
        area_under_curve([1.0], [])


# Labels


def visited_run(folder: Path, flipped: dict[int, bool]) -> RunData:
    """A run of two epochs over these prompts, whose last weight is a tenth of the prompt's number."""
    columns = [json.dumps({"flipped": wrong}) for wrong in flipped.values()]
    for part in ("data", "iterations/0"):
        (folder / part).mkdir(parents=True)
    pq.write_table(pa.table({"prompt_id": list(flipped), "columns": columns}), folder / "data/offline.parquet")
    (folder / "config.yaml").write_text("model: none")
    pairs = JsonLines(folder / "iterations/0/pair_weights.jsonl")
    for epoch in (1, 2):
        for prompt in flipped:
            line = {"prompt_id": prompt, "margin": 1.0, "weight": 0.1 * prompt * (-1) ** epoch}
            pairs.append({"step": epoch, "source": "offline", **line}, {"step": epoch, "source": "online", **line})
    return RunData.open(folder)


def test_labels_are_told_apart_by_the_last_visit(tmp_path: Path) -> None:
    run = visited_run(tmp_path / "run", {1: True, 2: False, 3: True, 4: False})
    assert last_visits(run, "weight") == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4})
    assert label_separation(run, "weight") == 0.75
    assert label_separation(run, "margin") == 0.5


def test_labels_that_are_all_right_tell_nothing(tmp_path: Path) -> None:
    assert label_separation(visited_run(tmp_path / "run", {1: False, 2: False}), "weight") is None


# Rows

SMALL_TABLE = Table("Small", (Row("DPO", ("method.name=dpo",)), Row("later", ("method=not_yet",))), "DPO")


def test_rows_name_their_method() -> None:
    assert Row("", ("method={name: metaapo, unscaled: true}", "meta.update_interval=4")).method == "metaapo"
    assert Row("", ("method=dpo",)).method == Row("", ("method.name=dpo",)).method == "dpo"
    assert Row("", ("meta.update_interval=4",)).method == "metaapo"


def test_methods_that_do_not_exist_are_left_out_unless_asked_for() -> None:
    assert [row.label for row in asked_rows(SMALL_TABLE, None, METHODS)] == ["DPO"]
    assert [row.label for row in unavailable(SMALL_TABLE, METHODS)] == ["later"]
    with pytest.raises(ConfigError, match="'not_yet' is not available"):
        asked_rows(SMALL_TABLE, ["not_yet"], METHODS)
    with pytest.raises(ConfigError, match="no row of this table has the method 'metaapo'"):
        asked_rows(SMALL_TABLE, ["metaapo"], METHODS)


def recipe_of(folder: Path) -> Path:
    """The recipe of a world of default settings, without its models."""
    folder.mkdir(parents=True)
    write_recipe(folder, WorldSettings())
    return folder / "recipe.yaml"


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_sound(name: str, tmp_path: Path) -> None:
    """Its available rows give valid recipes that differ, its worlds can be, and it has its reference row."""
    table, recipe = TABLES[name], recipe_of(tmp_path / "world")
    rows = asked_rows(table, None, METHODS)
    cells = cells_of(rows, [0], 1, WORLD)
    runs = {(cell.world.name, run_name(recipe, cell)) for cell in cells}
    assert len(runs) == len(cells) > 0
    assert table.reference in {row.label for row in table.rows}
    assert len({(row.group, row.label) for row in table.rows}) == len(table.rows)
    assert set(table.columns) <= set(COLUMNS)
    assert all(isinstance(figures, table.paper) for row in table.rows for figures in row.paper)
    assert f"\n  {name} " in TABLE_HELP


def test_rows_that_say_the_same_share_a_run_wherever_the_world_lies(tmp_path: Path) -> None:
    here, there = recipe_of(tmp_path / "here"), recipe_of(tmp_path / "there")
    plain, spelt_out = Row("a", ("method.name=metaapo",)), Row("b", ("meta.update_interval=8",))
    name = run_name(here, Cell(plain, WORLD))
    assert name == run_name(here, Cell(spelt_out, WORLD)) == run_name(there, Cell(plain, WORLD))
    assert run_name(here, Cell(Row("c", ("meta.update_interval=4",)), WORLD)) != name
    assert run_name(here, Cell(plain, WORLD, repeat=1)) != name


def test_rows_of_equal_length_have_the_steps_of_an_epoch_over_all_prompts(tmp_path: Path) -> None:
    """3000 prompts in three parts, 16 in a step: 63 steps, of which the last one of an epoch is half full."""
    recipe = recipe_of(tmp_path / "world")
    row = Row("BeeS", ("method.name=bees", "warmup_epochs=4"), epochs=1.0)
    assert settings_of(recipe, Cell(row, WORLD))[0] == "training.max_steps=63"
    twice = replace(row, epochs=2.0)
    assert settings_of(recipe, Cell(twice, WORLD))[0] == "training.max_steps=125"
    assert not any("max_steps" in each for each in settings_of(recipe, Cell(Row("", ()), WORLD)))


def test_repetitions_come_after_all_worlds_and_have_seeds_of_their_own() -> None:
    cells = cells_of([Row("", ())], [5, 6], 2, SMALL)
    assert [cell.place for cell in cells] == [(5, 0), (6, 0), (5, 1), (6, 1)]
    assert len({cell.seed for cell in cells}) == 4
    assert cells[0].seed == 5


def test_worlds_are_named_by_what_differs_from_the_defaults() -> None:
    noisy, plain = (
        cells_of([Row("", (), world)], range(2), 1, SMALL)[1] for world in ({"flipped": 0.3}, {"flipped": 0.1})
    )
    assert noisy.world.name == "prompts-64_flipped-0.3/seed-1"
    assert plain.world.name == "prompts-64/seed-1"


def test_unknown_tables_and_impossible_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="update-interval: Steps between"):
        find_table("nonsense", TABLES)
    with pytest.raises(SystemExit) as stopped:
        main(["sandbox", "table", "methods", "--seeds", "0", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err


# Summaries


def outcome(row: Row, seed: int, reward: float | None, **further: Any) -> Outcome:
    cell = Cell(row, WORLD.varied(seed, {}))
    if reward is None:
        return Outcome(cell, error="no luck")
    return Outcome(cell, Path("run"), Measurement(reward, 0.5, 0.8, 0.7, 0.5, 1, 2, 3, 9, **further))


def test_differences_are_paired_by_seed_within_a_group_and_failures_are_told() -> None:
    base, better = Row("base", ("method=dpo",), group="g"), Row("better", ("method=simpo",), group="g")
    other = Row("base", ("method=dpo",), group="h")
    outcomes = [outcome(base, 0, 0.5), outcome(base, 1, 0.9), outcome(better, 0, None), outcome(better, 1, 1.0)]
    summaries = summarize([base, better, other], [*outcomes, outcome(other, 0, None)], "base")
    assert summaries[0].difference is None
    assert summaries[1].difference is not None
    assert summaries[1].difference.mean == pytest.approx(0.1)
    assert summaries[1].errors == ["g, better, seed 0: no luck"]
    assert summaries[2].estimates == {}
    assert [row[1] for row in grid(SMALL_TABLE, summaries, 2).rows] == ["–", "1 of 2", "0 of 2"]


def test_text_of_a_row() -> None:
    figures = (MetaAPO("2", 47.48, 43.21, 58.4), MetaAPO("8", None, None, 58, 106, 59, 186))
    row = Row("MetaAPO", ("method=metaapo",), paper=figures)
    found = grid(SMALL_TABLE, summarize([row], [outcome(row, 0, 0.5), outcome(row, 1, 1.0)], "MetaAPO"), 2)
    assert dict(zip(found.titles, found.rows[0], strict=True)) == {
        "": "MetaAPO",
        "true reward": "0.750 [−2.427, 3.927]",
        "win rate, %": "80.0 [80.0, 80.0]",
        "at equal length, %": "70.0 [70.0, 70.0]",
        "words": "0.0 [0.0, 0.0]",
        "steps": "0",
        "prompts annotated, %": "50",
        "annotated responses a prompt": "0.0",
        "CPU seconds: generation / annotation / training / overall": "1 / 2 / 3 / 9",
        "paper: WR / LC / annotated, %": "47.48 / 43.21 / 58.4 (Table 2); – / – / 58 (Table 8)",
        "paper, minutes: sampling / training / overall": "106 / 59 / 186 (Table 8)",
    }


def test_an_interval_of_a_share_stays_a_share() -> None:
    row = Row("DPO", ("method=dpo",))
    found = summarize([row], [outcome(row, 0, 0.5, weight_auc=0.2), outcome(row, 1, 1.0, weight_auc=0.9)], "DPO")[0]
    assert (found.estimates["weight_auc"].low, found.estimates["weight_auc"].high) == (0.0, 1.0)
    assert found.estimates["true_reward"].low == pytest.approx(-2.427, abs=1e-3)


def test_the_score_before_training_is_the_mean_of_worlds() -> None:
    """Two runs in world 0 and one in world 1."""
    row = Row("DPO", ("method=dpo",))
    places = ((0, 0, 0.1), (0, 1, 0.3), (1, 0, 0.8))
    found = [
        Outcome(
            Cell(row, WORLD.varied(seed, {}), repeat), Path("run"), Measurement(0.5, sft, 0.8, 0.7, 0.5, 1, 2, 3, 9)
        )
        for seed, repeat, sft in places
    ]
    assert before_training(summarize([row], found, "DPO"), "reward") == ["The reward before training is 0.500."]


def test_a_table_says_which_columns_and_whose_figures_it_has() -> None:
    row = Row("MetaPO", ("method=metapo",), paper=(MetaPO("1", 51.6, 56.9), MetaPO("2", arena_hard=36.2)))
    table = Table("", (row,), "MetaPO", columns=("true_reward", "weight_auc", "margin_auc"), paper=MetaPO)
    found = grid(table, summarize([row], [outcome(row, 0, 0.5, weight_auc=0.75)], "MetaPO"), 1)
    assert dict(zip(found.titles, found.rows[0], strict=True)) == {
        "": "MetaPO",
        "true reward": "0.500",
        "AUC of the weight": "0.750",
        "MetaPO paper: WR / LC / Arena-Hard, %": "51.6 / 56.9 / – (Table 1); – / – / 36.2 (Table 2)",
    }


# Runs of other machines

MACHINES = Table("Machines", (Row("DPO", ("method.name=dpo",)), Row("MetaAPO", ("method.name=metaapo",))), "DPO")


def table_of(folder: Path, outcomes: list[Outcome]) -> Path:
    """The JSON file of `MACHINES` with these outcomes."""
    written = record("machines", MACHINES, Options(WORLD, 2, folder), summarize(MACHINES.rows, outcomes, "DPO"))
    write_json(folder / "machines.json", written)
    return folder / "machines.json"


def test_tables_of_several_machines_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One measured both rows in world 0, the other one row in world 1; nothing is run, and no world is built."""
    dpo, metaapo = MACHINES.rows
    boundary = Boundary(0.6, 0.5, 0.7, True, 0.4, 0.8)
    first = table_of(tmp_path / "a", [outcome(dpo, 0, 0.5), outcome(metaapo, 0, 0.7, boundary=boundary)])
    second = table_of(tmp_path / "b", [outcome(dpo, 1, 0.9, repeated=("warmup",)), outcome(metaapo, 1, None)])
    options = Options(WORLD, 2, tmp_path / "out", jobs=0, known=(first, second), docs=tmp_path / "docs.md")
    joined = run_table("machines", MACHINES, options)

    assert [summary.estimates["true_reward"].mean for summary in joined] == pytest.approx([0.7, 0.7])
    assert joined[1].differences == {(0, 0): pytest.approx(0.2)}
    assert joined[1].measured[0, 0].boundary == boundary
    assert joined[0].measured[1, 0].repeated == ("warmup",)
    assert not any(summary.errors for summary in joined)  # The failed run is missing, and would be run.
    assert "Known: 3 of 4 runs" in capsys.readouterr().out
    assert "| MetaAPO | 1 of 2 |" in (tmp_path / "docs.md").read_text()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tables"]

    again = Options(WORLD, 2, tmp_path / "again", jobs=0, known=(tmp_path / "out" / "tables" / "machines.json",))
    assert [summary.estimates for summary in run_table("machines", MACHINES, again)] == [s.estimates for s in joined]


def test_two_builds_of_a_world_do_not_join(tmp_path: Path) -> None:
    dpo, metaapo = MACHINES.rows
    first = table_of(tmp_path / "a", [outcome(dpo, 0, 0.5), outcome(metaapo, 1, 0.5)])
    elsewhere = outcome(metaapo, 0, 0.7)
    assert elsewhere.measurement is not None
    rounded = replace(elsewhere, measurement=replace(elsewhere.measurement, sft_reward=0.5001))
    options = Options(WORLD, 2, tmp_path / "out", jobs=0, known=(first, table_of(tmp_path / "b", [rounded])))
    with pytest.raises(ConfigError, match=r"seed-0 come from several builds.* 0\.5000 in one and 0\.5001"):
        run_table("machines", MACHINES, options)
    assert not (tmp_path / "out").exists()


def test_a_known_run_is_one_with_the_same_settings_whatever_its_label(tmp_path: Path) -> None:
    dpo = MACHINES.rows[0]
    known = read_known([table_of(tmp_path, [outcome(dpo, 0, 0.5), outcome(MACHINES.rows[1], 0, 0.7)])])
    cell, others = Cell(replace(dpo, label="another"), WORLD.varied(0, {})), {"epochs": 1.0, "start": dpo}
    assert known_outcome(cell, known) == replace(outcome(dpo, 0, 0.5), cell=cell)
    assert known_outcome(replace(cell, repeat=1), known) is None
    assert known_outcome(replace(cell, world=WORLD.varied(0, {"flipped": 0.2})), known) is None
    assert [known_outcome(replace(cell, row=replace(dpo, **{k: v})), known) for k, v in others.items()] == [None, None]


@pytest.mark.parametrize("text", ["{}", '{"rows": [{"cells": [{"error": null, "true_reward": 0.5}]}]}', "[", None])
def test_a_known_file_without_runs_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "table.json").write_text(text)
    with pytest.raises(ConfigError, match=r"table\.json"):
        read_known([tmp_path / "table.json"])


# The section of a Markdown file


def test_section_is_replaced_in_place(tmp_path: Path) -> None:
    path = tmp_path / "docs.md"
    path.write_text("# Head\n\n<!-- table a -->\nold\n<!-- end a -->\n\nTail\n")
    write_section(path, "a", "new")
    assert path.read_text() == "# Head\n\n<!-- table a -->\nnew\n<!-- end a -->\n\nTail\n"
    write_section(path, "b", "more")
    assert path.read_text().endswith("Tail\n\n<!-- table b -->\nmore\n<!-- end b -->\n")
    write_section(tmp_path / "fresh.md", "a", "new")
    assert (tmp_path / "fresh.md").read_text() == "<!-- table a -->\nnew\n<!-- end a -->\n"


@pytest.mark.parametrize("text", ["<!-- table a -->", "<!-- end a -->", "<!-- end a --><!-- table a -->"])
def test_half_a_section_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="needs both"):
        replaced(text, "a", "new")


# Processes


def leave(path: Path, code: int = 0) -> None:
    path.write_text(os.environ["OMP_NUM_THREADS"])
    if code > 0:
        os._exit(code)
    if code < 0:
        raise ValueError("broken")


def linger(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)


def test_one_task_that_fails_or_dies_stops_no_other(tmp_path: Path) -> None:
    tasks = [Task(leave, (tmp_path / str(code), code)) for code in (3, -1, 0)]
    errors = {finished.number: finished.error for finished in run_tasks(tasks, 2)}
    assert errors[0] is not None and "exit code 3" in errors[0]
    assert (errors[1], errors[2]) == ("ValueError: broken", None)
    assert (tmp_path / "0").read_text() == "1"


def test_whoever_stops_listening_ends_the_tasks_at_work(tmp_path: Path) -> None:
    finished = run_tasks([Task(linger, (tmp_path / "pid",)), Task(leave, (tmp_path / "done",))], 2)
    next(finished)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    finished.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_processes_start_afresh_where_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("adaptpo.sandbox.tables.processes.context", multiprocessing.get_context(start_method()))
    assert start_method() == "spawn"
    (finished,) = run_tasks([Task(os.mkdir, (tmp_path / "made",))], 1)
    assert finished.error is None and (tmp_path / "made").is_dir()


def test_a_run_is_measured_by_its_own_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The world's policy answers for the state before training, a run's final one for the run; both sample as the run
    does, whose stage would otherwise be that of other responses than its gain."""
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda path: path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda path: path)
    monkeypatch.setattr(sandbox_world, "heldout_prompts", lambda folder: ["p"])
    monkeypatch.setattr(
        sandbox_world,
        "sample_responses",
        lambda policy, *_, decoding: asked.append((str(Path(policy).relative_to(tmp_path)), decoding)) or [["tea"]],
    )
    world = SandboxWorld(WorldSettings(prompts=32))
    for name, own in (("dpo-0", {}), ("on_on-0", {"temperature": 0.7, "top_k": 50})):
        run = tmp_path / "runs" / world.name / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(json.dumps({"generation": {"temperature": 1.0, "top_p": 1.0, **own}}))
        world.respond(tmp_path, run)
    cool, runs, base = Decoding(0.7, top_k=50), f"runs/{world.name}", f"worlds/{world.name}/policy"
    assert asked == [
        (base, Decoding()), (f"{runs}/dpo-0/final", Decoding()), (base, cool), (f"{runs}/on_on-0/final", cool),
    ]  # fmt: skip
    kept = sorted(str(path.relative_to(tmp_path / "responses" / world.name)) for path in tmp_path.rglob("*.json"))
    after = "_temperature-0.7_top_k-50.json"
    assert kept == ["dpo-0.json", f"on_on-0{after}", "sft.json", f"sft{after}"]


def test_an_opening_that_another_row_has_begun_begins_again(tmp_path: Path) -> None:
    """Rows of one opening differ in what comes later. One of them was ended while it made the opening."""
    policy = save_policy(tmp_path / "policy")
    data = write_jsonl(tmp_path / "data.jsonl", preference_rows(12))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"{{model: {policy}, data: {data}, reward: 'python:tests.tiny:vowel_reward', output_dir: {tmp_path}/opening, "
        f"warmup_epochs: 1, num_iterations: 1, max_prompt_length: 64, generation: {{max_new_tokens: 4}}, "
        "training: {use_cpu: true, max_steps: 1}}"
    )
    open_policy(recipe, ("method.name=metaapo",))
    write_state(tmp_path / "opening", read_state(tmp_path / "opening") | {"opened": False})
    for _ in range(2):
        open_policy(recipe, ("method.name=online_dpo",))
        state = read_state(tmp_path / "opening")
        assert state["opened"] and state["phases"]["warmup"]["done"]


# From end to end

TINY = {"heldout": 12, "sft_epochs": 1, "reward_epochs": 1}
QUICK = ("num_iterations=1", "generation.num_generations=2", "generation.max_new_tokens=12")
TABLE = Table(
    title="A small table",
    rows=(
        Row("DPO", ("method.name=dpo", *QUICK), TINY, paper=(MetaAPO("1", 18.15, 25.2),)),
        Row("MetaAPO", ("method.name=metaapo", *QUICK), TINY, paper=(MetaAPO("1", 47.48, 43.21, 58.4),)),
        Row("MetaAPO again", ("meta.update_interval=8", *QUICK), TINY),
        Row("no annotator", ("method.name=metaapo", "reward=no/such/model", *QUICK), TINY),
        Row("no setting", ("generation.num_generations=1",), TINY),
        Row("later", ("method=not_yet",), TINY),
    ),
    reference="DPO",
    note="A note.",
)


def written_files(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and "tables" not in path.parts}


@pytest.mark.engines
def test_a_table_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet_libraries()
    out = tmp_path / "out"
    world = SandboxWorld(WorldSettings(prompts=32))
    options = Options(world, seeds=1, out=out, docs=tmp_path / "docs.md")
    summaries = {summary.row.label: summary for summary in run_table("small", TABLE, options)}

    assert [len(summary.measured) for summary in summaries.values()] == [1, 1, 1, 0, 0]
    assert len(list(out.glob("runs/*/seed-*/metaapo-*/final"))) == 1  # Two rows, one run.
    assert summaries["DPO"].estimates["annotated"].mean == 0
    assert 0 < summaries["MetaAPO"].estimates["annotated"].mean < 1
    assert summaries["MetaAPO"].estimates == summaries["MetaAPO again"].estimates
    difference = summaries["MetaAPO"].difference
    rewards = {label: summaries[label].estimates["true_reward"].mean for label in ("DPO", "MetaAPO")}
    assert difference is not None and difference.mean == pytest.approx(rewards["MetaAPO"] - rewards["DPO"])

    record = json.loads((out / "tables" / "small.json").read_text())
    assert [len(row["cells"]) for row in record["rows"]] == [1] * 5
    assert record["not_available"] == ["later"]
    assert "no/such/model" in record["rows"][3]["cells"][0]["error"]
    assert "num_generations" in record["rows"][4]["cells"][0]["error"]
    assert (out / "tables" / "small.png").read_bytes().startswith(b"\x89PNG")
    docs, shown = (tmp_path / "docs.md").read_text(), capsys.readouterr().out
    for text in ("47.48", "A note.", "Not available: later (not_yet).", "ailed: no annotator, seed 0", "0 of 1"):
        assert text in docs and text in shown
    assert str(tmp_path) not in docs

    before = written_files(out)
    again = {summary.row.label: summary for summary in run_table("small", TABLE, options)}
    unchanged = {path for path, when in before.items() if path.stat().st_mtime_ns == when}
    assert {path for path in before if path.suffix in (".parquet", ".safetensors", ".jsonl")} <= unchanged
    assert again["MetaAPO"].estimates == summaries["MetaAPO"].estimates
    assert (tmp_path / "docs.md").read_text() == docs
    shown = run_table("small", TABLE, replace(options, jobs=0))
    assert [(summary.estimates, summary.errors) for summary in shown[:3]] == [
        (s.estimates, []) for s in again.values()
    ][:3]
    assert not any(summary.measured or summary.errors for summary in shown[3:])

    later = run_table(
        "later", Table("Later", (Row("online", ("method.name=online_dpo", *QUICK), TINY),), "online"), options
    )
    assert len(later[0].measured) == 1  # Its opening is there already, by another row.
    assert len(list(out.glob("openings/*/seed-*/*"))) == 1

    other = SandboxWorld(WorldSettings(prompts=48, **TINY))
    (out / "worlds" / other.name).parent.mkdir()
    (out / "worlds" / world.varied(0, TINY).name).rename(out / "worlds" / other.name)
    with pytest.raises(RunError, match="world with other settings"):
        other.build(out, [])
