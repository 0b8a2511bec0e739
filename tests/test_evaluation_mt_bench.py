"""MT-Bench: published judgments, and how ratings are read."""

from __future__ import annotations

import pytest

from adaptpo.errors import DataError
from adaptpo.evaluation.mt_bench.ratings import NO_RATING, OUT_OF_RANGE, Rating, rating_of, score
from adaptpo.evaluation.result import Origin, Result
from adaptpo.evaluation.scoring import score_path
from adaptpo.evaluation.suite import Scoring
from tests.evaluation_data import MT, needs_shared


def published(model: str) -> Result:
    scoring = Scoring(model=model, questions=str(MT / "question.jsonl.gz"))
    (result,) = score_path(MT / "judgments_mistral-orpo_gpt-4_single.jsonl.gz", scoring)
    return result


@needs_shared
def test_published_scores() -> None:
    result = published("mistral-orpo-trl")
    values = [result.number(name).value for name in ("turn 1", "turn 2", "score")]
    assert values == pytest.approx([7.73125, 6.60, 7.165625], abs=1e-9)
    assert (result.n, sum(result.invalid.values()), result.warnings) == (160, 0, [])
    assert result.origin.judge == "gpt-4"
    categories = [number.name for number in result.numbers[3:]]
    assert len(categories) == 8
    mean = sum(result.number(name).value for name in categories) / 8
    assert mean == pytest.approx(result.main.value)


@needs_shared
def test_duplicates_are_averaged_with_a_warning() -> None:
    result = published("mistral-orpo")
    assert (result.n, result.invalid[NO_RATING]) == (319, 1)
    assert result.main.value == pytest.approx(5.858934, abs=1e-6)
    assert "160 turns are judged more than once" in result.warnings[0]


def test_ratings() -> None:
    assert rating_of("Rating: [[7]]. Or [[9]].") == (7.0, "")
    assert rating_of("I give [8.5], not [9]") == (8.5, "")
    assert rating_of("[1] is cited; rating [[3]]") == (3.0, "")
    assert rating_of("no rating") == (None, NO_RATING)
    assert rating_of("[[11]]") == (None, OUT_OF_RANGE)


def test_means_by_hand() -> None:
    ratings = [Rating("1", 1, 4.0), Rating("1", 2, 8.0), Rating("2", 1, 6.0), Rating("2", 2, None, NO_RATING)]
    result = score(ratings, Origin(), {"1": "math", "2": "stem"})
    assert [number.value for number in result.numbers] == [6.0, 5.0, 8.0, 6.0, 6.0]
    assert [(one.id, one.value, one.group, one.weight) for one in result.scores] == [
        ("1", 6.0, "math", 2),
        ("2", 6.0, "stem", 1),
    ]


def test_missing_turns_are_said() -> None:
    result = score([Rating("1", 1, 4.0), Rating("1", 2, 8.0), Rating("2", 1, 6.0)], Origin(), {})
    assert "1 turns have no judgment" in result.warnings[0]
    with pytest.raises(DataError, match="none of 1 judgments"):
        score([Rating("1", 1, None, NO_RATING)], Origin(), {})
