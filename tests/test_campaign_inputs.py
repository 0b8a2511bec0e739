"""A short slice of the campaign over recipes, rows and files."""

from __future__ import annotations

from typing import Any

import pytest

from tests.campaign import recipes, rows
from tests.campaign.inputs import campaign
from tests.campaign.outcomes import Nonsense, Outcomes


@pytest.mark.parametrize(("classes", "count"), [(recipes.CLASSES, 120), (rows.CLASSES, 400)], ids=["recipes", "rows"])
def test_no_input_ends_in_a_traceback_or_is_taken_as_nonsense(classes: Any, count: int) -> None:
    outcomes = Outcomes()
    campaign(classes, count, outcomes, first=1_000_000)
    assert outcomes.failures == []
    assert outcomes.counts.total() == count
    assert len({kind for kind, _ in outcomes.counts}) == len(classes)


def test_failures_are_found() -> None:
    def broken(*_: Any) -> None:
        raise KeyError

    def odd(*_: Any) -> None:
        raise Nonsense("accepted: beta: -1")

    outcomes = Outcomes()
    campaign({"broken": (1, broken), "odd": (1, odd)}, 20, outcomes)
    assert set(outcomes.counts) == {("broken", "traceback"), ("odd", "nonsense")}
    assert len(outcomes.failures) == 20
