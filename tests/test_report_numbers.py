"""Numbers and points of reports, read back from tables and figures."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adaptpo.plan.memory import GB, disk
from adaptpo.report import RunData
from adaptpo.report.adaptation_plots import GainPanel, draw_gains
from adaptpo.report.canvas import LIGHT as THEME
from adaptpo.report.canvas import blank
from adaptpo.report.comparing import result_row, step_curves
from adaptpo.report.cost import fresh_share
from adaptpo.report.datasets import iteration_rows
from adaptpo.report.learned_weight_plots import coefficients, gradient_factors
from adaptpo.report.outcome import quantiles, reward_figure
from adaptpo.report.plots import Line
from adaptpo.report.reading import Stage
from adaptpo.report.stage_page import histogram_table, length_figure
from adaptpo.report.verdict import verdict
from adaptpo.stage.diagnostics import CandidateFacts
from tests.test_plan import SHAPE, job
from tests.test_report import RunWriter, write_table


def evaluated(run: RunWriter, name: str, rewards: list[float], loss: float) -> None:
    if rewards:
        texts = {"prompt": ["p"] * len(rewards), "response": ["r"] * len(rewards)}
        write_table(run.root / f"evaluation/{name}.parquet", prompt_id=range(len(rewards)), reward=rewards, **texts)
    run.metrics.append({"phase": f"evaluate/{name}", "iteration": None, "step": None, "eval_loss": loss})
    run.finish(f"evaluate/{name}", 1.0)


def test_a_comparison_shows_the_aligned_policy(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run")
    evaluated(run, "initial", [0.0, 0.2], 0.69)
    evaluated(run, "iteration-0", [0.8, 1.0], 0.41)
    row = result_row("run", RunData.open(run.root))
    assert (row["held-out reward"], row["eval_loss"]) == ("0.900", "0.4100")


def test_the_loss_on_held_out_pairs_is_told_from_start_to_end(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run")
    evaluated(run, "initial", [], 0.69)
    evaluated(run, "iteration-0", [], 0.41)
    run.finish("final", 1.0)
    sentence = "The loss on held-out pairs went from 0.690 (initial) to 0.410 (iteration 0)."
    assert sentence in verdict(RunData.open(run.root)).findings


def test_a_running_mean_of_a_constant_is_the_constant(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run")
    lines = [{"phase": "warmup", "iteration": None, "step": step, "loss": 2.0} for step in range(1, 41)]
    run.metrics += lines
    run.finish("warmup", 1.0, steps=40)
    x, y = step_curves({"run": RunData.open(run.root)}, "loss")["run"]
    assert (x[0], x[-1]) == (2, 40) and y == pytest.approx([2.0] * 39)


def test_weights_of_a_data_set_are_in_their_columns() -> None:
    weights = {"weight/offline": 0.2, "weight/online": 0.7, "weight/mixed": 0.1}
    phases = {"iterations/0/datasets": {"datasets": {"a": {"prompts": 4, "selected": 1, **weights}}}}
    (row,) = iteration_rows(SimpleNamespace(iterations=[0], phases=phases))  # type: ignore[arg-type]
    found = [row[name] for name in ("offline weight", "online weight", "mixed weight", "share")]
    assert found == ["0.200", "0.700", "0.100", "25.0%"]


def test_the_time_that_selection_reduces_is_of_generation_and_annotation() -> None:
    spent = {"generate": np.array([30.0]), "annotate": np.array([20.0, 10.0]), "train": np.array([40.0])}
    assert "took 60%" in fresh_share(spent)


def test_a_band_holds_the_middle_80_percent() -> None:
    stage = Stage("initial", {"reward": np.arange(11.0)})
    assert quantiles(stage, "reward").tolist() == [1.0, 9.0]


def test_rewards_are_those_of_start_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("adaptpo.report.outcome.plots.reward_distributions", lambda shown, theme: drawn.append(shown))
    stages = [Stage(key, {"reward": np.array([value, value])}) for key, value in zip(
        ("initial", "iteration-0", "iteration-1"), (0.0, 1.0, 2.0), strict=True
    )]  # fmt: skip
    figure = reward_figure(SimpleNamespace(stages=stages))  # type: ignore[arg-type]
    assert figure is not None
    figure.draw(THEME)
    assert [(label, values[0]) for label, _, values in drawn[0]] == [("initial", 0.0), ("iteration 1", 2.0)]


# Figures


def points(figure: Any) -> np.ndarray:
    return np.concatenate([part.get_offsets() for axes in figure.axes for part in axes.collections])


def test_points_of_the_gradient_factors_by_hand() -> None:
    """w (1 - p): 1 and 0.9 give 0.1, 2 and 0.5 give 1."""
    size = 6
    visits: Any = SimpleNamespace(
        probability=np.array([0.9, 0.9, 0.5, 0.5, 0.5, 0.5]),
        weight=np.array([1.0, 1.0, 2.0, 2.0, 2.0, 2.0]),
        volatility=np.arange(float(size)),
    )
    found = points(gradient_factors(visits, THEME))
    assert sorted(set(found[:, 1].round(6))) == [0.1, 1.0]


def test_the_bias_is_drawn_as_what_it_has_learned() -> None:
    """It starts at ln(e - 1), where softplus is 1."""
    start = math.log(math.e - 1)
    figure = coefficients([Line("bias", np.array([0.0, 1.0]), np.array([start, start + 0.5]))], THEME)
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "bias"]
    assert list(line.get_ydata()) == pytest.approx([0.0, 0.5])


def test_the_share_of_gains_is_of_those_above_zero() -> None:
    _, grid = blank(THEME, 3.0)
    empty = np.array([])
    panel = GainPanel("it", np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, -1.0]), empty, empty)
    draw_gains(grid[0, 0], panel, (-5, 5), (-5, 5), THEME)
    assert "online > offline: 75% of 4 prompts" in [text.get_text() for text in grid[0, 0].texts]


def test_the_stage_page_counts_comparisons_that_were_won() -> None:
    """Counts are of half comparisons: the fourth level is 1.5 of 4."""
    table = histogram_table({"prompts": 1, "counts": [0, 0, 0, 1]})
    assert table is not None and [row[0] for row in table.rows] == ["1.5"]


def test_lengths_of_fresh_and_offline_responses_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(
        "adaptpo.report.stage_page.stage_plots.densities", lambda sides, unit, theme: drawn.append(sides)
    )
    none = np.zeros((1, 2))
    candidates = CandidateFacts((0,), none, none, np.array([[3.0, 4.0]]), np.array([[7.0, 8.0]]))
    length_figure(candidates).draw(THEME)
    assert [(label, values.tolist()) for label, _, values in drawn[0]] == [
        ("fresh", [3.0, 4.0]),
        ("offline", [7.0, 8.0]),
    ]


def test_disk_space_by_hand() -> None:
    """The warm-up's checkpoint, one of each iteration, and the final model; training holds three copies twice."""
    made = job()
    kept, training = disk(made)[:2]
    size = SHAPE.parameters * made.weight_bytes / GB
    assert kept.gigabytes == pytest.approx((1 + made.iterations + 1) * size) and made.warmup_epochs > 0
    assert training.gigabytes == pytest.approx(2 * 3 * size)
