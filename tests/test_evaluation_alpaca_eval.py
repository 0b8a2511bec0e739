"""AlpacaEval 2: published numbers, and what is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from adaptpo.data import open_rows
from adaptpo.errors import DataError
from adaptpo.evaluation.alpaca_eval.length_control import (
    GAMED_SLOPES,
    Design,
    Table,
    bootstrap,
    length_controlled,
    log_loss,
    read_table,
    sigmoid,
    weights_of,
)
from adaptpo.evaluation.alpaca_eval.preference import is_switched, preference_of_logprobs, preference_of_text
from adaptpo.evaluation.alpaca_eval.records import Comparison, read_comparisons, read_outputs
from adaptpo.evaluation.alpaca_eval.score import score
from adaptpo.evaluation.result import Origin
from adaptpo.evaluation.scoring import score_path
from adaptpo.evaluation.suite import Scoring
from tests.evaluation_data import ALPACA, BASELINE, EVALS, LENGTH_CONTROL, annotations, csv_rows, needs_shared

PUBLISHED = {row["model"]: row for row in csv_rows(ALPACA / "published.csv")} if ALPACA.exists() else {}
LEADERBOARD = {row[""]: row for row in csv_rows(EVALS / "alpaca_eval" / "leaderboard.csv.gz")} if EVALS.exists() else {}
ANNOTATED = ("alpaca-7b", "alpaca-7b_verbose", "gpt35_turbo_instruct", "phi-2", "gpt-3.5-turbo-0301")


@cache
def baseline() -> dict[str, str]:
    return read_outputs(BASELINE)


@cache
def table() -> Table:
    return read_table(LENGTH_CONTROL, list(baseline()))


def comparisons(path: Path) -> list[Comparison]:
    return read_comparisons(open_rows(path), baseline())


@needs_shared
@pytest.mark.parametrize("model", PUBLISHED)
def test_published_win_rates(model: str) -> None:
    found = comparisons(ALPACA / f"{model}.jsonl.gz")
    numbers = score(found, Origin())
    assert numbers.number("win rate").value == pytest.approx(float(PUBLISHED[model]["win_rate"]), abs=1e-5)
    published = LEADERBOARD[model]
    assert numbers.number("standard error").value == pytest.approx(float(published["standard_error"]), abs=1e-5)
    assert numbers.number("discrete win rate").value == pytest.approx(float(published["discrete_win_rate"]), abs=1e-5)
    fit = length_controlled(found, table())
    assert fit.win_rate == pytest.approx(float(PUBLISHED[model]["length_controlled_winrate"]), abs=0.05)
    if published["lc_standard_error"]:
        assert fit.published_error == pytest.approx(float(published["lc_standard_error"]), abs=0.01)


@needs_shared
def test_one_model_to_the_third_decimal() -> None:
    found = comparisons(ALPACA / "FuseChat-Llama-3.2-1B-Instruct.jsonl.gz")
    fit = length_controlled(found, table())
    assert fit.win_rate == pytest.approx(25.271, abs=0.005)
    assert bootstrap(found, table(), fit).deviation == pytest.approx(1.42, abs=0.15)


@needs_shared
@pytest.mark.parametrize("model", ANNOTATED)
def test_preferences_of_published_logprobs(model: str) -> None:
    for row in open_rows(annotations(model)):
        if not row["top_logprobs"]:
            assert row["preference"] == 1.5
        else:
            found = preference_of_logprobs(row["top_logprobs"], is_switched(row["instruction"]))
            assert found == pytest.approx(row["preference"], abs=1e-9)


@needs_shared
@pytest.mark.parametrize(
    ("model", "count", "published"), [("phi-2", 803, 4.399), ("gpt35_turbo_instruct", 804, 17.728)]
)
def test_row_position_reproduces_files_with_missing_rows(model: str, count: int, published: float) -> None:
    found = comparisons(annotations(model))
    assert len(found) == count
    assert length_controlled(found, table(), "row").win_rate == pytest.approx(published, abs=0.005)
    assert abs(length_controlled(found, table()).win_rate - published) > 0.4


@needs_shared
def test_keys_agree_where_no_row_is_missing() -> None:
    found = comparisons(annotations("alpaca-7b"))
    assert length_controlled(found, table(), "row").win_rate == length_controlled(found, table()).win_rate


@needs_shared
def test_other_instructions_are_refused() -> None:
    found = comparisons(annotations("alpaca-7b"))
    strange = [Comparison(0, "What is this?", 1.2, 10, 20), *found[1:]]
    with pytest.raises(DataError, match="not AlpacaEval's, the first 'What is this"):
        length_controlled(strange, table())
    with pytest.raises(DataError, match="804 instructions are not AlpacaEval's 805"):
        read_table(LENGTH_CONTROL, list(baseline())[1:])
    with pytest.raises(DataError, match="--baseline"):
        length_controlled([Comparison(one.row, one.instruction, one.preference, 3) for one in found], table())


@needs_shared
def test_a_file_says_which_number_is_missing() -> None:
    (result,) = score_path(ALPACA / "alpaca-7b.jsonl.gz", Scoring())
    assert result.main.name == "win rate"
    assert "--length-control" in result.warnings[0]
    (full,) = score_path(annotations("alpaca-7b"), Scoring(length_control=str(LENGTH_CONTROL)))
    assert full.main.value == pytest.approx(5.875, abs=0.005)


def test_preferences_by_hand() -> None:
    """P(m) = 0.6 and P(M) = 0.2: the second output is preferred with 0.25."""
    logprobs = {"m": float(np.log(0.6)), "M": float(np.log(0.2)), "The": -3.0}
    assert preference_of_logprobs(logprobs, False) == pytest.approx(1.25)
    assert preference_of_logprobs(logprobs, True) == pytest.approx(1.75)
    assert preference_of_logprobs({"m": -9.0}, False) == 1.0
    assert preference_of_logprobs({"The": -0.1}, False) is None
    assert [preference_of_text(text, False) for text in ("m", " M.", "`M`", "Model m", "")] == [
        1.0,
        2.0,
        2.0,
        None,
        None,
    ]


def test_win_rate_by_hand() -> None:
    """Wins 0.2, 0.5 and 0.9: mean 8/15, sd sqrt(0.1233), one win, one tie, one loss."""
    found = [Comparison(i, str(i), value) for i, value in enumerate([1.2, 1.5, 1.9, None])]
    result = score(found, Origin())
    assert result.number("win rate").value == pytest.approx(100 * 1.6 / 3)
    assert result.number("standard error").value == pytest.approx(100 * np.sqrt(0.37 / 3 / 3))
    assert result.number("discrete win rate").value == pytest.approx(50)
    assert (result.n, sum(result.invalid.values())) == (3, 1)


def test_scores_of_prompts_are_the_models_preferences() -> None:
    found = score([Comparison(0, "a", 1.2), Comparison(1, "b", 1.9)], Origin())
    assert [(one.id, one.value) for one in found.scores] == [("a", pytest.approx(20)), ("b", pytest.approx(90))]


def test_soft_labels_reach_the_stationary_point() -> None:
    """With hardly any penalty the gradient of the loss is 0 at the weights that are found."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 3))
    labels = sigmoid(features @ np.array([GAMED_SLOPES[0], GAMED_SLOPES[1], 0.3]))
    design = Design(features, labels, np.ones(200), np.arange(200))
    weights = weights_of(design, 1e6)
    assert weights == pytest.approx([*GAMED_SLOPES, 0.3], abs=1e-3)
    steps = np.eye(3) * 1e-4
    slopes = [(log_loss(design, weights + step) - log_loss(design, weights - step)) / 2e-4 for step in steps]
    assert slopes == pytest.approx([0, 0, 0], abs=1e-5)


@needs_shared
def test_another_baseline_is_said() -> None:
    found = comparisons(annotations("alpaca-7b"))[:60]
    for baseline_name, said in (("gpt-4o-2024-05-13", True), ("gpt-4-1106-preview", False), ("unknown", False)):
        warnings = score(found, Origin(baseline=baseline_name), table()).warnings
        assert any("learned against gpt4_1106_preview" in warning for warning in warnings) == said
