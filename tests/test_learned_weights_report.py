"""What the report says of MetaPO's weights: by hand, and on a small hand-written run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptpo.choices.learners.temporal.features import BASE
from adaptpo.report import RunData, write_report
from adaptpo.report.learned_weights import (
    cases,
    coefficient_figure,
    group_table,
    importance_table,
    trajectory_figure,
    visit_table,
)
from adaptpo.report.shapley import importance, shapley_values
from adaptpo.report.visits import histories
from tests.test_report import Links, RunWriter, cell, write_json, write_lines, write_table

FIGURES = {"coefficients", "landscape", "factors", "trajectories"}
SURE, RATHER, WRONG = math.log(9), math.log(4), math.log(1 / 4)  # p is 0.9, 0.8 and 0.2.


def weighed(root: Path, margins: dict[int, list[float]], weight: float = 1.0) -> RunData:
    """A run whose pairs have these margins, one visit in each epoch."""
    run = RunWriter(root, "metapo")
    write_json(root / "snapshots/start.json", {"learned_weight": {"column": "temporal"}})
    lines = [line_of(prompt, seen, visit, weight) for visit in range(4) for prompt, seen in margins.items()]
    write_lines(root / "iterations/0/pair_weights.jsonl", [line for line in lines if line])
    return RunData.open(run.root)


def line_of(prompt: int, margins: list[float], visit: int, weight: float) -> dict[str, Any]:
    if visit >= len(margins):
        return {}
    line = {"step": 10 * visit, "prompt_id": prompt, "source": "offline", "margin": margins[visit], "weight": weight}
    return line | {name: 0.1 * prompt for name in BASE if name != "margin"} | {"temporal": weight}


def test_visits_by_hand(tmp_path: Path) -> None:
    visits = weighed(tmp_path / "run", {7: [1.0, 3.0], 2: [0.0]}).visits
    assert visits is not None
    assert visits.pair.tolist() == [0, 1, 0] and visits.count.tolist() == [1, 1, 2]
    assert visits.volatility.tolist() == [0.0, 0.0, 1.0]
    assert [line["prompt_id"] for line in visits.last.lines] == [2, 7]
    assert visits.probability[1] == visits.focal[1] == 0.5


def test_groups_are_those_of_the_paper(tmp_path: Path) -> None:
    margins = {1: [SURE, SURE], 2: [SURE - 2, SURE], 3: [0.0, WRONG], 4: [0.0, 0.0]}
    table = group_table(weighed(tmp_path / "run", margins, weight=0.5))
    assert [cell(table, row, "number") for row in range(4)] == ["1", "1", "1", "4"]
    assert cell(table, 0, "FocalPO's weight") == "0.900" and cell(table, 0, "weight") == "0.500"
    assert cell(table, 2, "DPO's factor") == "0.800" and cell(table, 2, "factor") == "0.400"
    factors = np.array([0.1, 0.1, 0.8, 0.5])
    assert f"is {np.var(0.5 * factors):.4f}, with DPO's weights {np.var(factors):.4f}" in table.note


def test_equal_weights_have_the_highest_entropy(tmp_path: Path) -> None:
    table = visit_table(weighed(tmp_path / "run", {1: [1.0, 1.0], 2: [0.0, 2.0], 3: [1.0]}))
    assert [cell(table, row, "pairs") for row in range(2)] == ["3", "2"]
    assert cell(table, 0, "entropy, nats") == cell(table, 0, "of equal weights") == f"{math.log(3):.4f}"


def test_single_pairs_are_of_the_four_kinds(tmp_path: Path) -> None:
    margins = {1: [1.0, 1.1], 2: [1.0, 9.0], 3: [-1.0, 1.0], 4: [-3.0, 2.0], 9: [-1.0, -1.0]}
    run = weighed(tmp_path / "run", margins)
    visits = run.visits
    assert visits is not None
    found = {title: visits.lines[list(visits.pair).index(pair)]["prompt_id"] for title, pair in cases(visits)}
    expected = {"stable correct": 1, "volatile correct": 2, "recently learned": 4, "far from the reference": 9}
    assert found == expected


def test_one_visit_has_no_trajectory(tmp_path: Path) -> None:
    assert trajectory_figure(weighed(tmp_path / "run", {1: [1.0], 2: [2.0]})) is None


# Shapley values


def test_shapley_values_of_two_features_by_hand() -> None:
    """One background row: each value is the mean of the two orders in which the features can come."""

    def weight(z: float) -> float:
        return math.log1p(math.exp(z))

    found = shapley_values(np.array([[1.0, 2.0]]), np.array([[0.0, 0.0]]), np.array([3.0, -1.0]), 0.5)
    first = (weight(3.5) - weight(0.5) + weight(1.5) - weight(-1.5)) / 2
    second = (weight(-1.5) - weight(0.5) + weight(1.5) - weight(3.5)) / 2
    assert found[0] == pytest.approx([first, second])


def test_shapley_values_sum_to_what_sets_a_pair_apart() -> None:
    rng = np.random.default_rng(3)
    features, background, slopes = rng.normal(size=(5, 6)), rng.normal(size=(7, 6)), rng.normal(size=6)
    slopes[2] = 0.0
    found = shapley_values(features, background, slopes, 0.2)
    apart = np.logaddexp(0, features @ slopes + 0.2) - np.logaddexp(0, background @ slopes + 0.2).mean()
    assert found.sum(axis=1) == pytest.approx(apart)
    assert found[:, 2] == pytest.approx(0)


def test_far_above_zero_softplus_is_linear_and_so_are_the_values() -> None:
    rng = np.random.default_rng(4)
    features, background, slopes = rng.normal(size=(5, 3)), rng.normal(size=(7, 3)), np.array([1.0, -2.0, 0.5])
    found = shapley_values(features, background, slopes, 60.0)
    assert found == pytest.approx(slopes * (features - background.mean(axis=0)))
    assert importance(features, slopes, 60.0).shape == (3,)


# The page


def metapo_run(root: Path) -> RunWriter:
    run = RunWriter(root, "metapo")
    run.data()
    run.evaluate("initial", 0.0)
    write_table(root / "data/validation.parquet", prompt_id=[1, 2], difficulty=[0.1, 0.2])
    rng = np.random.default_rng(5)
    weighed_lines = [
        line_of(prompt, list(rng.normal(0.5, 1, 3)), visit, float(rng.gamma(4, 0.25)))
        for visit in range(3)
        for prompt in range(60)
    ]
    write_lines(root / "iterations/0/pair_weights.jsonl", weighed_lines)
    coefficients = {name: 0.1 * (place - 2) for place, name in enumerate((*BASE, "bias"))}
    for name, values in (("start", dict.fromkeys(coefficients, 0.0)), ("iteration-0", coefficients)):
        learned = {"column": "temporal", "features": list(BASE), "coefficients": values}
        write_json(root / f"snapshots/{name}.json", {"learned_weight": learned})
    run.train_lines("iterations/0/train", 0, 20, 0.4)
    for line in run.metrics[-20:]:
        line |= {f"temporal/{name}": value * line["step"] / 20 for name, value in coefficients.items()}
    run.finish("iterations/0/train", 5.0)
    return run


def test_page_shows_what_metapo_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures and tables from one reading of the visits."""
    counted: list[int] = []

    def counting(lines: list[dict[str, Any]]) -> list[tuple[int, int, float]]:
        counted.append(len(lines))
        return histories(lines)

    monkeypatch.setattr("adaptpo.report.visits.histories", counting)
    page = write_report(metapo_run(tmp_path / "run").root)
    assert counted == [180]
    links = Links(page.read_text())
    assert FIGURES | {"learned-weights"} <= links.ids
    assert all((page.parent / f"{name}.png").stat().st_size > 8_000 for name in FIGURES)
    for caption in ("What each feature contributes", "Weights of groups of pairs", "Weights from visit to visit"):
        assert caption in page.read_text()


def test_importance_is_shared_by_the_features_that_count(tmp_path: Path) -> None:
    table = importance_table(RunData.open(metapo_run(tmp_path / "run").root))
    assert [row[0] for row in table.rows] == list(BASE)
    assert cell(table, 2, "coefficient") == "0.000" and cell(table, 2, "share") == "0.0%"
    assert sum(float(cell(table, row, "share").rstrip("%")) for row in range(6)) == pytest.approx(100, abs=0.3)


def test_runs_without_metapo_show_nothing_of_it(tmp_path: Path, undrawn: None) -> None:
    run = RunWriter(tmp_path / "run", "dpo")
    run.train_lines("iterations/0/train", 0, 5, 0.4)
    data = RunData.open(run.root)
    assert coefficient_figure(data) is group_table(data) is visit_table(data) is importance_table(data) is None
    assert "learned-weights" not in Links(write_report(run.root).read_text()).ids
