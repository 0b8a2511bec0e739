"""The examples in docstrings of the purest modules give what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pkgutil import walk_packages

import pytest

import adaptpo.choices
import adaptpo.stage

MODULES = [
    module.name
    for package in (adaptpo.choices, adaptpo.stage)
    for module in walk_packages(package.__path__, f"{package.__name__}.")
]
WITH_EXAMPLES = ("objectives.dpo", "objectives.simpo", "weighting", "learners.meta_learner", "stage.score")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    found = doctest.testmod(import_module(name))
    assert found.failed == 0
    assert found.attempted >= 2 * name.endswith(WITH_EXAMPLES)
