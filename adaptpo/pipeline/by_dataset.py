"""The names under which a phase's numbers by data set stand in `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DATASETS = "datasets"


def flat(by_dataset: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`datasets/NAME/NUMBER` for each number of each data set.

    >>> flat({"hh": {"kept": 3}, "uf": {"kept": 4}})
    {'datasets/hh/kept': 3, 'datasets/uf/kept': 4}
    """
    return {f"{DATASETS}/{name}/{key}": value for name, own in by_dataset.items() for key, value in own.items()}
