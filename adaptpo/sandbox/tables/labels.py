"""How well a method's weights and margins separate right labels from wrong ones."""

from __future__ import annotations

import json

from adaptpo.report.reading import RunData
from adaptpo.sandbox.tables.statistics import area_under_curve


def label_separation(run: RunData, quantity: str) -> float | None:
    """Area under the ROC curve of the offline pairs' `weight` or `margin`, right labels against wrong ones.

    Each pair counts with its last visit in training: in the last epoch. None unless both kinds were trained on.
    """
    last, wrong = last_visits(run, quantity), wrong_labels(run)
    right = [value for prompt, value in last.items() if prompt not in wrong]
    other = [value for prompt, value in last.items() if prompt in wrong]
    return area_under_curve(right, other) if right and other else None


def last_visits(run: RunData, quantity: str) -> dict[int, float]:
    """The quantity of each trained offline pair at its last visit, by prompt id."""
    lines = (line for t in run.iterations for line in run.pair_weights[t] if line["source"] == "offline")
    return {line["prompt_id"]: line[quantity] for line in lines}


def wrong_labels(run: RunData) -> set[int]:
    """Prompts whose pair has the wrong label, by the world's column `flipped`."""
    data = run.table("data/offline.parquet", "prompt_id", "columns")
    pairs = zip(data["prompt_id"].tolist(), data["columns"], strict=True) if data else ()
    return {prompt for prompt, columns in pairs if json.loads(columns).get("flipped")}
