"""Compares a plan with the counts of a finished run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from adaptpo.errors import RunError
from adaptpo.plan.estimate import Plan, make_plan, with_measured
from adaptpo.plan.job import Job
from adaptpo.plan.phases import parts_of
from adaptpo.run.state import read_state

OFFLINE_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
KINDS = {"pair reference": "reference", "reference in training": "train"}
"""Phases of a plan that a run performs inside another phase."""


@dataclass(frozen=True)
class Comparison:
    """One count; `informed` is planned with the run's own share of selected prompts and mean response length."""

    name: str
    planned: float
    informed: float
    measured: float


@dataclass(frozen=True)
class ShareOfWork:
    """The share of one kind of phase in all work, over all iterations; `measured` in CPU time."""

    name: str
    operations: float
    seconds: float
    measured: float


@dataclass(frozen=True)
class Measured:
    pairs: int
    offline_tokens: int
    prompts: int
    selected: int
    alone: int
    responses: int
    fresh_tokens: int
    annotations: int

    @property
    def share(self) -> float:
        return self.selected / self.prompts if self.prompts else 0.0

    @property
    def mean_length(self) -> float:
        return self.fresh_tokens / self.responses if self.responses else 0.0


def measured(run: Path) -> Measured:
    """The counts of a finished run. Raises RunError if it is not finished."""
    phases = read_state(run)["phases"]
    if not phases.get("final", {}).get("done"):
        raise RunError(f"{run} holds no finished run; finish it with `adaptpo train`, or name another folder")
    files = sorted(run.glob("iterations/*/responses/[0-9]*.parquet"))
    by_kind = summed(phases)
    return Measured(
        pairs=phases["data"]["kept"],
        offline_tokens=sum(total_length(run / "data" / "offline.parquet", name) for name in OFFLINE_IDS),
        prompts=by_kind["select", "prompts"],
        selected=by_kind["select", "selected"],
        alone=by_kind["select", "prompts_alone"],
        responses=sum(pq.read_metadata(path).num_rows for path in files),
        fresh_tokens=sum(total_length(path, "ids") for path in files),
        annotations=by_kind["annotate", "annotated"] + by_kind["train", "annotated"],
    )


def summed(phases: dict[str, dict[str, Any]]) -> dict[tuple[str, str], int]:
    """Counts of the iterations' phases, summed by (kind, name)."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    for phase, facts in phases.items():
        if phase.startswith("iterations/"):
            for name, value in facts.items():
                if isinstance(value, int):
                    found[phase.split("/")[2], name] += value
    return found


def total_length(path: Path, column: str) -> int:
    """Total length of a column's lists, read one batch of rows at a time."""
    with pq.ParquetFile(path) as file:
        batches = file.iter_batches(columns=[column])
        return sum(pc.sum(pc.list_value_length(batch[column])).as_py() or 0 for batch in batches)


def compare_counts(plan: Plan, run: Path) -> list[Comparison]:
    """Planned and measured counts. Raises RunError if the run is not finished."""
    found = measured(run)
    informed = make_plan(with_measured(plan.job, found.share, found.mean_length), plan.machine)
    predictions = zip(predicted(plan).items(), predicted(informed).values(), counted(found), strict=True)
    return [Comparison(name, planned, better, count) for (name, planned), better, count in predictions]


def predicted(plan: Plan) -> dict[str, float]:
    job = plan.job
    generated = [cost for cost in plan.costs if cost.name == "generate"]
    responses = sum(cost.responses for cost in generated)
    count = max(1, job.method.pairing.num_generations)
    return {
        "pairs": job.data.pairs if job.has_pairs else 0,
        "offline tokens": sum(part.data.scale * offline_tokens(part) for part in parts_of(job)),
        "prompts with fresh responses": responses / count,
        "fresh responses": responses,
        "fresh tokens": responses * job.fresh,
        "annotations": sum(cost.annotations for cost in plan.costs if cost.name == "annotate"),
    }


def offline_tokens(job: Job) -> float:
    """Tokens of the sampled rows."""
    return sum(float(side.sum()) for side in (job.data.prompt, job.data.chosen, job.data.rejected))


def counted(found: Measured) -> tuple[float, ...]:
    return (
        found.pairs,
        found.offline_tokens,
        found.selected + found.alone,
        found.responses,
        found.fresh_tokens,
        found.annotations,
    )


def compare_shares(plan: Plan, run: Path) -> list[ShareOfWork]:
    """Planned and measured shares of the work by kind of phase, most expensive first."""
    operations = shares((cost.name, cost.operations) for cost in plan.costs)
    seconds = shares((cost.name, cost.seconds) for cost in plan.costs)
    taken = shares((phase, facts.get("cpu_seconds", 0.0)) for phase, facts in read_state(run)["phases"].items())
    found = [
        ShareOfWork(name, operations.get(name, 0), seconds.get(name, 0), taken.get(name, 0))
        for name in dict.fromkeys([*operations, *taken])
    ]
    return sorted(found, key=lambda one: -one.measured)


def shares(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for phase, value in values:
        sums[kind_of(phase)] += value
    whole = sum(sums.values()) or 1.0
    return {name: value / whole for name, value in sums.items()}


def kind_of(phase: str) -> str:
    """`train` for `iterations/0/train` and `train`; `evaluate` for `evaluate/initial` and `evaluate: generate`."""
    if phase.startswith("iterations/"):
        phase = phase.split("/", 2)[2]
    return KINDS.get(phase, phase.replace(":", "/").split("/")[0])
