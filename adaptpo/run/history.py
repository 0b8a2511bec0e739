"""What was logged over a whole run, on one axis of optimizer steps; `metrics.jsonl` counts those of each phase."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from adaptpo.run.files import JsonLines
from adaptpo.run.state import read_state
from adaptpo.types import Row

WHERE = ("phase", "iteration", "step", "time")
"""Keys of a record that say where it belongs; all others are metrics."""


class StepAxis:
    """Counts optimizer steps of the policy over the training phases of a run, in the order in which these were first
    logged. A phase that trains another model, such as a reward model, counts its own.

    A phase that a resumed run repeats in part keeps its place, so a step has the same number in every attempt.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.phase = run, ""
        self.ends: dict[str, int] = {}

    def place(self, record: Row) -> int:
        """The number of optimizer steps that the policy had made when the run logged this record."""
        phase, step = record["phase"], record["step"]
        if step is not None and not trains_policy(phase):
            return int(step)
        if phase != self.phase:
            self._count_unlogged()
            self.phase = phase
        if step is None:
            return sum(self.ends.values())
        self.ends[phase] = max(step, self.ends.get(phase, 0))
        before = list(self.ends)[: list(self.ends).index(phase)]
        return sum(self.ends[earlier] for earlier in before) + step

    def _count_unlogged(self) -> None:
        """Adds the steps of finished phases after their last log."""
        known = steps_of_phases(self.run)
        self.ends = {phase: max(end, known.get(phase, 0)) for phase, end in self.ends.items()}


def steps_of_phases(run: Path) -> dict[str, int]:
    phases = read_state(run)["phases"].items()
    return {name: facts["steps"] for name, facts in phases if facts["done"] and facts.get("steps")}


def placed_records(run: Path) -> Iterator[tuple[int, Row]]:
    """Every record of `metrics.jsonl`, with its place on the axis."""
    axis = StepAxis(run)
    return ((axis.place(record), record) for record in JsonLines(run / "metrics.jsonl").records())


def log_history(run: Path) -> list[Row]:
    """What transformers' `TrainerState.log_history` holds, over all phases: `step` counts the whole run's."""
    return [
        {**{name: value for name, value in record.items() if name not in WHERE}, "step": place}
        | {name: record[name] for name in ("phase", "iteration") if record[name] is not None}
        for place, record in placed_records(run)
    ]


def training_loss(run: Path, phases: Iterable[str]) -> float | None:
    """The mean loss over the steps of these phases; a logged loss is the mean since the last log. None without any."""
    total, ends = 0.0, dict.fromkeys(phases, 0)
    for record in JsonLines(run / "metrics.jsonl").records():
        if record["phase"] in ends and "loss" in record:
            total += record["loss"] * (record["step"] - ends[record["phase"]])
            ends[record["phase"]] = record["step"]
    return total / sum(ends.values()) if any(ends.values()) else None


def policy_phases(run: Path) -> dict[str, Row]:
    """The finished phases that train the policy, with what `state.json` has about them."""
    phases = read_state(run)["phases"].items()
    return {name: facts for name, facts in phases if facts["done"] and trains_policy(name)}


def trains_policy(phase: str) -> bool:
    return phase == "warmup" or phase.endswith("/train")


def steps_so_far(run: Path) -> int:
    """Like `global_step`, with the steps that unfinished phases have logged."""
    ends: dict[str, int] = {}
    for record in JsonLines(run / "metrics.jsonl").records():
        if record["step"] is not None and trains_policy(record["phase"]):
            ends[record["phase"]] = max(record["step"], ends.get(record["phase"], 0))
    return sum((ends | {phase: facts.get("steps", 0) for phase, facts in policy_phases(run).items()}).values())


def global_step(run: Path) -> int:
    """The optimizer steps that changed the policy: those of the warm-up and of all iterations."""
    return sum(facts.get("steps", 0) for facts in policy_phases(run).values())
