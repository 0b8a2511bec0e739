"""The report's tables by data set, for a run on several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adaptpo.report.formats import styled
from adaptpo.report.reading import RunData
from adaptpo.report.tables import Table, ratio

Cells = dict[str, str | None]
Numbers = dict[str, Any]


def datasets_table(run: RunData) -> Table | None:
    """One row for each data set: what was read of it."""
    found = by_dataset(run, "data")
    taken = sum(own["taken"] for own in found.values())
    note = (
        "Taken are the rows that weights and max_rows leave of those that match the filter; the share is theirs. "
        "Rows that could not be used are listed below."
    )
    return Table.of((dataset_row(name, own, taken) for name, own in found.items()), note)


def by_dataset(run: RunData, phase: str) -> dict[str, Numbers]:
    """The numbers of a phase by data set; empty for a run on one."""
    return run.phases.get(phase, {}).get("datasets") or {}


def dataset_row(name: str, own: Numbers, taken: int) -> Cells:
    filtered = own["matching"] != own["rows"]
    return {
        "data set": name,
        "rows": styled(own["rows"]),
        "match the filter": styled(own["matching"]) if filtered else None,
        "taken": styled(own["taken"]),
        "share": styled(ratio(own["taken"], taken), ".1%"),
        "kept": styled(own["kept"]),
        "left out": styled(own["dropped"]),
    }


def dataset_iterations_table(run: RunData) -> Table | None:
    """One row for each data set in each iteration."""
    return Table.of(iteration_rows(run), "Weights are means over the pairs' visits in training.")


def iteration_rows(run: RunData) -> Iterator[Cells]:
    for t in run.iterations:
        for name, own in by_dataset(run, f"iterations/{t}/datasets").items():
            yield {
                "iteration": str(t),
                "data set": name,
                "prompts": styled(own.get("prompts")),
                "generated for": styled(own.get("selected")),
                "share": styled(ratio(own.get("selected"), own.get("prompts") or None), ".1%"),
                "prompts without a pair": styled(own.get("prompts_alone") or None),
                "responses": styled(own.get("responses")),
                "reward": styled(own.get("reward/mean"), ".3f"),
                "± std": styled(own.get("reward/std"), ".3f"),
                "offline score": styled(own.get("score/mean"), ".3f"),
                "offline weight": styled(own.get("weight/offline"), ".3f"),
                "online weight": styled(own.get("weight/online"), ".3f"),
                "mixed weight": styled(own.get("weight/mixed"), ".3f"),
            }


def dataset_evaluation_table(run: RunData) -> Table | None:
    """One row for each data set of the held-out prompts at each stage."""
    return Table.of(
        {
            "stage": stage.label,
            "data set": name,
            "reward": styled(own.get("reward/mean"), ".3f"),
            "± std": styled(own.get("reward/std"), ".3f"),
            "win rate": styled(own.get("win_rate"), ".1%"),
            "offline score": styled(own.get("score/mean"), ".3f"),
            "accuracy of pairs": styled(own.get("eval_rewards/accuracies"), ".1%"),
        }
        for stage in run.stages
        for name, own in by_dataset(run, f"evaluate/{stage.key}").items()
    )
