"""A short slice of the campaign."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from adaptpo.config.strict_yaml import read_yaml
from tests.campaign import annotators, recipes, rows
from tests.campaign.corruption import Case, Outcome, Results, class_of, evenly
from tests.campaign.kills import disturbed, start_of, straight
from tests.campaign.moments import ENDED, PLAIN
from tests.campaign.outcomes import Nonsense, Outcomes
from tests.campaign.running import campaign
from tests.damage import DAMAGES
from tests.runs import assert_same_run

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


@pytest.mark.engines
@pytest.mark.parametrize(("kind", "threads"), [("plain", 1), ("two threads", 2)])
def test_forked_run_is_that_of_a_new_interpreter(kind: str, threads: int, tmp_path: Path) -> None:
    """Bit for bit; so the campaign tests what a user starts."""
    forked, _ = straight(kind, tmp_path)
    anew = start_of(kind, tmp_path / "anew")
    assert anew.anew() == 0
    assert read_yaml((anew.out / "config.yaml").read_text())["threads"] == threads
    assert_same_run(forked, anew.out)


def test_first_cases_of_the_matrix_cover_every_file_damage_and_class_of_moments() -> None:
    everything = [Case(at, kind, kind, how) for at in (*PLAIN.moments, ENDED) for kind in ("a", "b") for how in DAMAGES]
    order = evenly(everything, random.Random(0))
    first = {(case.kind, case.damage, class_of(case.moment)) for case in order[: 2 * 6 * 3]}
    assert len(first) == 2 * 6 * 3 and sorted(map(str, order)) == sorted(map(str, everything))


def test_matrix_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The last outcome of a case counts."""
    results, case = Results(tmp_path / "results.jsonl"), Case(ENDED, "a", "a", "half")
    assert results.read() == {}
    for result in ("SILENT", "same"):
        results.add(Outcome(case, result, ""))
    assert results.read() == {case: Outcome(case, "same", "")}
