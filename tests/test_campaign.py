"""A short slice of the campaign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.campaign import annotators, recipes, rows
from tests.campaign.kills import disturbed
from tests.campaign.outcomes import Nonsense, Outcomes
from tests.campaign.running import campaign

FIRST = 1_000_000


@pytest.mark.parametrize(
    ("classes", "count"),
    [(recipes.CLASSES, 120), (rows.CLASSES, 400), ({"f": annotators.CLASSES["reward function"]}, 200)],
    ids=["recipes", "rows", "reward functions"],
)
def test_no_input_ends_in_a_traceback_or_is_taken_as_nonsense(classes: Any, count: int, tmp_path: Path) -> None:
    outcomes = Outcomes()
    campaign(classes, range(FIRST, FIRST + count), outcomes, tmp_path)
    assert outcomes.failures == []
    assert outcomes.counts.total() == count
    assert len({kind for kind, _ in outcomes.counts}) == len(classes)


def test_run_that_is_ended_at_random_moments_comes_out_the_same(tmp_path: Path) -> None:
    outcomes = Outcomes()
    cases = {how: (1, lambda rng, folder, how=how: disturbed("plain", how, rng, folder)) for how in ("kill", "TERM")}
    campaign(cases, range(2), outcomes, tmp_path)
    assert outcomes.failures == [] and outcomes.ended.total() > 0


def test_failures_are_found(tmp_path: Path) -> None:
    def broken(*_: Any) -> None:
        raise KeyError

    def odd(*_: Any) -> None:
        raise Nonsense("accepted: beta: -1")

    outcomes = Outcomes()
    campaign({"broken": (1, broken), "odd": (1, odd)}, range(20), outcomes, tmp_path)
    assert set(outcomes.counts) == {("broken", "traceback"), ("odd", "nonsense")}
    assert len(outcomes.failures) == 20
