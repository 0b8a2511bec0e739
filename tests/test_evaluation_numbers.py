"""Numbers of an evaluation by hand: intervals, groups, shots and the decoding of each preset."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adaptpo.cli import main
from adaptpo.evaluation.alpaca_eval.score import discrete, win_rate
from adaptpo.evaluation.arena_hard.battles import Battle
from adaptpo.evaluation.arena_hard.score import by_group
from adaptpo.evaluation.cases import write_cases
from adaptpo.evaluation.comparing import Entry, Run, difference
from adaptpo.evaluation.intervals import wilson
from adaptpo.evaluation.mt_bench.ratings import Rating, mean
from adaptpo.evaluation.mt_bench.suite import TEMPERATURES
from adaptpo.evaluation.presets import PRESETS
from adaptpo.evaluation.result import PromptScore
from adaptpo.evaluation.tasks import SHOTS, Tasks, evaluated, task_rows
from adaptpo.stage.groups import BUCKETS, token_features
from adaptpo.types import Prompt
from tests.test_evaluation_comparing import scored


def test_wilsons_interval_by_hand() -> None:
    """15 of 20: z = 1.96, middle (0.75 + 0.09604) / 1.19207 = 0.7097, half sqrt(0.009375 + 0.002401) z / 1.19207."""
    found = wilson(15, 20)
    assert (found.low, found.high) == pytest.approx((53.130, 88.814), abs=1e-3)


def test_each_category_has_its_own_score() -> None:
    battles = [Battle("p", "m", "b", 1.0), Battle("q", "m", "b", 0.0)]
    numbers = by_group(battles, "v2.0", {"p": "coding", "q": "math"})
    assert [(number.name, number.value) for number in numbers] == [("coding", 100.0), ("math", 0.0)]


def test_turns_of_a_question_are_not_independent() -> None:
    """Two questions with four ratings each: the mean of two draws of 2 and 8 has a deviation of sqrt(4.5)."""
    ratings = [Rating(question, turn, value) for question, value in (("p", 2.0), ("q", 8.0)) for turn in range(4)]
    interval = mean("score", ratings).interval
    assert interval is not None and interval.deviation == pytest.approx(4.5**0.5, rel=0.03)


def test_intervals_are_in_percent() -> None:
    """100 comparisons, half of them won: a standard error of 5 points."""
    interval = win_rate(np.array([0.0, 1.0] * 50)).interval
    assert interval is not None and (interval.low, interval.high) == pytest.approx((40, 60), abs=1.5)
    assert interval.deviation == pytest.approx(5, rel=0.05)


def test_the_interval_of_the_discrete_rate_is_of_its_outcomes() -> None:
    interval = discrete(np.full(10, 0.6)).interval
    assert interval is not None and (interval.low, interval.high) == (100, 100)


def entry(name: str, **scores: PromptScore) -> Entry:
    return Entry(name, (Run(name, Path(name), {"settings": {}}, scores),))


def test_a_resampled_difference_has_the_weights_of_its_draw() -> None:
    """A prompt of weight 3 gains 100, one of weight 1 nothing: 75, and 100 where the first is drawn twice."""
    old = entry("old", a=PromptScore("a", 0.0, weight=3.0), b=PromptScore("b", 0.0))
    new = entry("new", a=PromptScore("a", 100.0, weight=3.0), b=PromptScore("b", 0.0))
    found = difference(old, new, "", ["a", "b"])
    assert (found.value, found.interval.low, found.interval.high) == (75, 0, 100)


def test_rare_words_count_more() -> None:
    """A token of both prompts says nothing, so their features are orthogonal; with others they are unit vectors."""
    features = token_features([Prompt(0, "", [1, 2]), Prompt(1, "", [1, 3])])
    assert features.shape == (2, BUCKETS)
    assert features @ features.T == pytest.approx(np.eye(2))


# General tasks


def test_the_interval_of_a_task_is_symmetric() -> None:
    found = {"results": {"t": {"acc,none": 0.5, "acc_stderr,none": 0.1}}}
    (row,) = task_rows(found, Tasks("m"))
    assert row["interval"] == pytest.approx([0.304, 0.696])


def test_tasks_have_the_papers_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """MetaAPO's appendix and MetaPO's section 4.1: 8 for GSM8K, 5 for MMLU, 25 for ARC-Challenge."""
    assert {name: shots for name, shots in SHOTS.items() if shots} == {"gsm8k_cot": 8, "mmlu": 5, "arc_challenge": 25}
    asked: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=lambda **given: asked.update(given)))
    evaluated("gsm8k_cot", None, None, Tasks("m", limit=3, seed=5))
    assert (asked["num_fewshot"], asked["limit"], asked["fewshot_random_seed"]) == (8, 3, 5)


# The page of cases


def test_the_largest_win_comes_first(tmp_path: Path) -> None:
    """Question 2 gains 9 points, question 0 one, and question 1 loses 3."""
    a = scored(tmp_path / "a", [1.0, 5.0, 1.0, 2.0], "mt_bench")
    b = scored(tmp_path / "b", [2.0, 2.0, 10.0, 2.0], "mt_bench")
    page = write_cases([str(a), str(b)], tmp_path / "cases.html", count=1).read_text()
    first = page.split('id="wins"')[1].split('id="losses"')[0] if 'id="wins"' in page else page
    assert "b 10" in first and "b 2" not in first.split("b 10")[0]


def test_the_page_of_cases_follows_its_options(tmp_path: Path) -> None:
    folders = [str(scored(tmp_path / name, [1.0, 2.0, 3.0, float(n)])) for n, name in enumerate("ab")]
    page = tmp_path / "cases.html"
    with pytest.raises(SystemExit):
        main(["eval", "compare", *folders, "--html", str(page), "--cases", "1", "--seed", "3"])
    assert "A sample (1)" in page.read_text() and "Drawn with seed 3" in page.read_text()


# Decoding


def test_decoding_of_the_papers() -> None:
    """MetaAPO's appendix B.2; alignment stages' Table 7. Others leave it to the suite."""
    known = {(name, one.suite): one.decoding for name in ("metaapo", "metapo", "stages") for one in PRESETS[name]}
    greedy, long = {"temperature": 0.0}, {"max_new_tokens": 4096}
    assert known == {
        ("metaapo", "alpaca_eval_2"): long,
        ("metaapo", "arena_hard_v0.1"): greedy | long,
        ("metaapo", "mt_bench"): long,
        ("metapo", "alpaca_eval_2"): {},
        ("metapo", "arena_hard_v0.1"): greedy,
        ("metapo", "mt_bench"): {},
        ("stages", "alpaca_eval_2"): {"temperature": 0.7, "top_p": 0.9, "top_k": 50},
    }


def test_temperatures_of_mt_bench() -> None:
    warm, cool = dict.fromkeys(("writing", "roleplay"), 0.7), dict.fromkeys(("stem", "humanities"), 0.1)
    greedy = dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0)
    assert warm | cool | greedy == TEMPERATURES
