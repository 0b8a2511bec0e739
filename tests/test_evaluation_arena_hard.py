"""Arena-Hard: published scores, verdicts, and style."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest

from adaptpo.data import open_rows
from adaptpo.errors import DataError
from adaptpo.evaluation.answers import answer_of, answer_row
from adaptpo.evaluation.arena_hard.battles import (
    Battle,
    battles_of_games,
    interval_over_battles,
    interval_over_prompts,
    outcomes,
    published_battles,
    score,
)
from adaptpo.evaluation.arena_hard.score import NO_STYLE, prompt_scores
from adaptpo.evaluation.arena_hard.style import (
    PUBLISHED,
    Style,
    controlled,
    equal_style,
    logistic_weights,
    pieces,
    style_of,
)
from adaptpo.evaluation.arena_hard.verdicts import Verdict, label_of, says_nothing, verdict_of
from adaptpo.evaluation.result import PromptScore
from adaptpo.evaluation.scoring import score_path
from adaptpo.evaluation.suite import Scoring
from tests.evaluation_data import ARENA, csv_rows, needs_shared
from tests.tiny import write_jsonl

BATTLES = ARENA / "v0.1_battles_gpt4-0613_gpt35-0125.jsonl.gz"
MODELS = ("gpt-4-0314", "gpt-4-0613", "gpt-3.5-turbo-0125")


@cache
def battles(model: str) -> list[Battle]:
    return [battle for battle in published_battles(open_rows(BATTLES)) if battle.model == model]


@cache
def styles() -> dict[str, dict[str, Style]]:
    return {
        model: {row["question_id"]: style_of(row["content"], row["token_len"]) for row in open_rows(path(model))}
        for model in MODELS
    }


def path(model: str) -> str:
    return str(ARENA / f"v0.1_answers_{model}.jsonl.gz")


@needs_shared
@pytest.mark.parametrize(("model", "published"), [("gpt-4-0613", 37.902), ("gpt-3.5-turbo-0125", 23.338)])
def test_published_scores(model: str, published: float) -> None:
    assert score(battles(model)) == pytest.approx(published, abs=0.0005)
    board = {row["model"]: row for row in csv_rows(ARENA / "v0.1_leaderboard_20240731.csv.gz")}[model]
    assert round(score(battles(model)), 2) == float(board["score"])
    interval = interval_over_battles(battles(model), "v0.1")
    assert interval.low == pytest.approx(float(board["rating_q025"]), abs=0.5)
    assert interval.high == pytest.approx(float(board["rating_q975"]), abs=0.5)


@needs_shared
def test_interval_clustered_by_prompt_is_wider_by_half() -> None:
    found = battles("gpt-4-0613")
    honest, published = interval_over_prompts(found, "v0.1"), interval_over_battles(found, "v0.1")
    assert honest.low - score(found) == pytest.approx(-4.0, abs=0.5)
    assert honest.high - score(found) == pytest.approx(4.1, abs=0.5)
    assert 1.3 < (honest.high - honest.low) / (published.high - published.low) < 1.8


@needs_shared
def test_equal_style() -> None:
    for model, expected in (("gpt-4-0613", 42.95), ("gpt-3.5-turbo-0125", 26.18)):
        assert equal_style(battles(model), styles())[model] == pytest.approx(expected, abs=0.05)


@needs_shared
def test_style_control_depends_on_the_pool() -> None:
    alone = controlled(battles("gpt-4-0613"), styles())["gpt-4-0613"]
    together = controlled([*battles("gpt-4-0613"), *battles("gpt-3.5-turbo-0125")], styles())["gpt-4-0613"]
    assert abs(alone - together) > 0.2
    (result,) = score_path(BATTLES, Scoring(answers=tuple(map(path, MODELS)), model="gpt-4-0613"))
    assert result.number("style control").value == pytest.approx(together)
    assert "gpt-3.5-turbo-0125, gpt-4-0613" in result.warnings[0]
    assert result.origin.baseline == "gpt-4-0314"
    assert PUBLISHED in result.number("equal style").note
    assert result.n == 1000  # Two games a prompt, of which 1,244 battles come by their weights.
    (bare,) = score_path(BATTLES, Scoring(model="gpt-4-0613"))
    assert "equal style" not in [number.name for number in bare.numbers] and bare.warnings == [NO_STYLE]


@needs_shared
def test_own_count_of_tokens_gives_nearly_the_published_style() -> None:
    texts = {model: {row["question_id"]: row["content"] for row in open_rows(path(model))} for model in MODELS}
    own = {
        model: {key: style_of(text, pieces(text)) for key, text in answers.items()} for model, answers in texts.items()
    }
    for model in MODELS[1:]:
        assert equal_style(battles(model), own)[model] == pytest.approx(
            equal_style(battles(model), styles())[model], abs=0.3
        )
        pool = [*battles("gpt-4-0613"), *battles("gpt-3.5-turbo-0125")]
        assert controlled(pool, own)[model] == pytest.approx(controlled(pool, styles())[model], abs=0.2)


def test_pieces_of_a_text() -> None:
    assert pieces("Two words, 12345!!\n\nsnake_case") == 2 + 1 + 2 + 1 + 1 + 3
    assert pieces("東京です") == 4 and pieces(" ") == 0


@pytest.mark.parametrize(
    "row",
    [
        {"choices": [{"turns": [{"content": "a", "token_len": 7}]}]},
        {"choices": [{"turns": [{"content": "a"}]}], "conv_metadata": {"token_len": 7}},
        {"messages": [{"role": "assistant", "content": {"answer": "a"}}], "metadata": {"token_len": 7}},
        {"content": "a", "token_len": 7},
    ],
)
def test_every_place_of_the_published_count_is_read(row: dict[str, Any]) -> None:
    answer = answer_of(row | {"question_id": "0", "model_id": "m"}, "file")
    assert (answer.turns, answer.token_len, answer.tokens) == (("a",), 7, ())
    assert answer_of(answer_row(answer, "m"), "file") == answer


@needs_shared
def test_counts_of_style_agree_with_published_metadata() -> None:
    for row in open_rows(ARENA / "v2.0_answers_o3-mini-2025-01-31.jsonl.gz"):
        counts = row["metadata"]
        found = style_of(row["answer"], counts["token_len"])
        expected = [sum(counts[name].values()) for name in ("header_count", "list_count", "bold_count")]
        assert [found.headers, found.lists, found.bold] == expected


@needs_shared
def test_weighted_mean_maximizes_the_bradley_terry_likelihood() -> None:
    found = battles("gpt-4-0613")
    (logit,) = logistic_weights(np.ones((len(found), 1)), outcomes(found))
    assert 100 / (1 + math.exp(-logit)) == pytest.approx(score(found), abs=1e-4)


def test_verdicts_of_v01_must_agree() -> None:
    assert label_of("[[A>B]] and again [[A>B]]", "v0.1") == "A>B"
    assert label_of("[[A>B]] or [[B>A]]", "v0.1") is None
    assert label_of("[A>B]", "v0.1") is None
    assert says_nothing("I must think", "v0.1") and not says_nothing("[[A>B]] or [[B>A]]", "v0.1")
    assert verdict_of("B=A", "v0.1") is None


def test_verdicts_of_v2_are_the_last_ones() -> None:
    assert label_of("[[A>B]] no, [[b>>a]]", "v2.0") == "B>>A"
    assert label_of("my verdict is [A=B]", "v2.0") == "A=B"
    assert label_of("none", "v2.0") is None
    assert verdict_of("A<<B", "v2.0") == Verdict(0.0, 3)
    assert verdict_of("B=A", "v2.0") == Verdict(0.5)
    assert verdict_of("A<>B", "v2.0") is None


def test_games_by_hand() -> None:
    """The baseline loses clearly as A, and wins narrowly as B: three wins and a loss."""
    games = [verdict_of("B>>A", "v0.1"), verdict_of("B>A", "v0.1")]
    found = battles_of_games("p", "m", "b", games, "v0.1")
    assert [battle.outcome for battle in found] == [1.0, 1.0, 1.0, 0.0]
    assert score(found) == 75
    assert len(battles_of_games("p", "m", "b", [games[0], None], "v0.1")) == 3
    assert battles_of_games("p", "m", "b", [games[0], None], "v2.0") == []


def test_scores_of_prompts_are_weighted_by_their_battles() -> None:
    outcomes = {"p": [1.0, 1.0, 1.0], "q": [0.0]}
    battles = [Battle(prompt, "m", "b", outcome) for prompt, several in outcomes.items() for outcome in several]
    assert prompt_scores(battles, {"q": "hard"}) == [PromptScore("p", 100, "", 3), PromptScore("q", 0, "hard", 1)]


def test_a_judgment_file_of_each_version(tmp_path) -> None:
    old = {"model": "m", "judge": "j", "games": [{"judgment": "[[B>A]]"}, {"judgment": "[[A=B]] [[A>B]]"}]}
    rows = [old | {"question_id": str(number)} for number in range(3)]
    (result,) = score_path(write_jsonl(tmp_path / "old.jsonl", rows) and tmp_path / "old.jsonl", Scoring())
    assert (result.suite, result.main.value, result.n) == ("Arena-Hard v0.1", 100, 3)
    assert sum(result.invalid.values()) == 3
    new = {"model": "m", "judge": "j", "baseline": "b"}
    games = [{"score": "B>A", "judgment": {"answer": "[[b>a]]"}}, {"score": "A>>B", "judgment": {"answer": "[[A>>B]]"}}]
    rows = [new | {"uid": str(n), "category": "math" if n else "coding", "games": games} for n in range(2)]
    write_jsonl(tmp_path / "new.jsonl", [*rows, new | {"uid": "9", "category": "math", "games": [games[0], None]}])
    (result,) = score_path(tmp_path / "new.jsonl", Scoring())
    assert (result.main.value, result.n, sum(result.invalid.values())) == (100, 4, 2)
    assert result.main.interval is not None and result.main.interval.level == 0.9
    assert [number.name for number in result.numbers[2:]] == ["coding", "math"]


def test_style_outside_code() -> None:
    text = "# Title\n\n- **bold**\n- two\n```\n# no title\n- no item\n```\n1. three"
    assert style_of(text, 30) == Style(30, headers=1, lists=3, bold=1)


def test_missing_answers_are_named() -> None:
    with pytest.raises(DataError, match="--answers"):
        equal_style([Battle("p", "m", "b", 1.0)], {"b": {}})
