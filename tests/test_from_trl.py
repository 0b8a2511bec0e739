"""`docs/from-trl.md` has every field of the installed TRL's configurations, with what a run answers to it."""

from __future__ import annotations

import re

import pytest

from adaptpo.config.base import dotted_keys
from adaptpo.config.elsewhere import training_fields
from adaptpo.config.recipe import Recipe
from tests.from_trl import DOCS, HEADING, KINDS, OF_ALL, table, text

ROWS = list(table())
KEYS = {*dotted_keys(Recipe), *(f"training.{name}" for name in training_fields())}


def test_the_table_has_every_field() -> None:
    assert {name for name, *_ in ROWS} == {
        name for kind in KINDS.values() for name, field in kind.__dataclass_fields__.items() if field.init
    }
    assert DOCS.read_text("utf-8").split(HEADING)[1] == text().split(HEADING)[1], "python -m tests.from_trl"


@pytest.mark.parametrize(("name", "kinds", "key", "remedy"), ROWS, ids=[name for name, *_ in ROWS])
def test_a_field_is_taken_or_answered(name: str, kinds: str, key: str, remedy: str | None) -> None:
    """What is refused names the remedy; a key in it exists."""
    if remedy is None:
        assert key in KEYS or key.startswith("reward_training.")
        return
    assert "did you mean" not in remedy and "valid are" not in remedy, remedy
    for named in re.findall(r"\b((?:training|generation|stage|executor)\.[a-z_]+)", remedy):
        assert named in KEYS, named


def test_most_fields_are_taken() -> None:
    taken = [name for name, _, _, remedy in ROWS if remedy is None and name in OF_ALL]
    assert len(taken) > 60
