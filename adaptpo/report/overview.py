"""The head of the page: the run's settings, status and key figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from adaptpo.report.formats import duration, short
from adaptpo.report.reading import RunData
from adaptpo.report.tables import IterationCounts, iteration_counts

FACTS = {
    "model": "model",
    "reward": "reward",
    "data": "data",
    "held-out data": "eval_data",
    "iterations": "num_iterations",
    "seed": "seed",
}
Tile = tuple[str, str, str]
"""A key figure: label, value, note."""


def header(run: RunData) -> dict[str, Any]:
    """The run's method with its four choices, model, seed and status."""
    method = run.config.get("method")
    choices = method.get("choices", {}) if isinstance(method, dict) else {}
    finished = bool(run.phases.get("final", {}).get("done"))
    return {
        "method": name(method),
        "choices": list(choices.items()),
        "facts": [(label, name(run.config[key])) for label, key in FACTS.items() if run.config.get(key) is not None],
        "finished": finished,
        "status": "finished" if finished else unfinished(run),
    }


def name(value: Any) -> str:
    """The name of a configured value: its `path` or `name`, the names of its `sets`, or the value itself."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(value.get("sets") or ()) or str(value.get("path") or value.get("name"))


def unfinished(run: RunData) -> str:
    begun = next((phase for phase, state in run.phases.items() if not state.get("done")), None)
    if begun:
        return f"unfinished: {begun} has started but is not done"
    if not run.phases:
        return "unfinished: nothing is done yet"
    last = list(run.phases)[-1]
    order = list(planned(run))
    following = order[order.index(last) + 1] if last in order else "final"
    return f"unfinished: {last} is done, next is {following}"


def planned(run: RunData) -> Iterator[str]:
    """The phases in order; `training` and `iteration T` stand for phases that only the method knows."""
    evaluated = bool(run.config.get("eval_data") or run.config.get("inputs", {}).get("eval_data"))
    reference = ["reference"] if "reference" in run.phases else []
    datasets = ["datasets"] if run.phases.get("data", {}).get("datasets") else []
    yield from ["data", *["reward"] * (run.config.get("reward") == "train"), *reference]
    yield from ["evaluate/initial"] * evaluated
    warmup = warms_up(run)
    if warmup is None:
        yield "training"
    elif warmup:
        yield from ["warmup", *["evaluate/warmup"] * evaluated]
    for t in range(run.config.get("num_iterations", 1)):
        yield f"iteration {t}"
        kinds = ["stage", "score", "select", "generate", "annotate", "pair", *reference, "train", *datasets]
        yield from (f"iterations/{t}/{kind}" for kind in kinds)
        yield from [f"evaluate/iteration-{t}"] * evaluated
    yield "final"


def warms_up(run: RunData) -> bool | None:
    """Whether this run has a warm-up; None if the method decides and no warm-up has started."""
    epochs = run.config.get("warmup_epochs")
    if "warmup" in run.phases:
        return True
    return None if epochs is None else bool(epochs)


def warnings(run: RunData) -> list[str]:
    """Warnings issued before training, and problems found after it."""
    trained = [(t, run.phases.get(f"iterations/{t}/train", {})) for t in run.iterations]
    idle = [
        f"iteration {t}: {title} was not updated"
        for t, facts in trained
        for title, count in (facts.get("learner_updates") or {}).items()
        if not count
    ]
    empty = [f"iteration {t}: no prompt had anything to train on" for t, facts in trained if facts.get("prompts") == 0]
    return [*run.warnings, *idle, *empty]


def key_figures(run: RunData) -> list[Tile]:
    """The run in a few numbers."""
    counts = [iteration_counts(run, t) for t in run.iterations]
    tiles = [
        annotation_ratio(counts),
        responses_annotated(counts),
        change(run, "held-out reward", "reward/mean", short),
        change(run, "win rate over the initial policy", "win_rate", "{:.0%}".format),
        wall_time(run),
        dropped_rows(run),
    ]
    return [tile for tile in tiles if tile]


def annotation_ratio(counts: Sequence[IterationCounts]) -> Tile | None:
    """Share of prompts with fresh responses, over all iterations so far."""
    prompts = sum(count.prompts or 0 for count in counts)
    if not prompts or all(count.generated_for is None for count in counts):
        return None
    answered = sum(count.generated_for or 0 for count in counts)
    alone = sum(count.alone or 0 for count in counts)
    beside = f", and for {alone:,} without a pair" if alone else ""
    return "annotation ratio", f"{answered / prompts:.1%}", f"responses for {answered:,} of {prompts:,} prompts{beside}"


def responses_annotated(counts: Sequence[IterationCounts]) -> Tile | None:
    annotated = sum(count.annotated or 0 for count in counts)
    invalid = sum(count.invalid or 0 for count in counts)
    return ("responses annotated", f"{annotated:,}", f"{invalid:,} without a valid reward") if annotated else None


def change(run: RunData, label: str, metric: str, show: Callable[[float], str]) -> Tile | None:
    known = [(stage.label, show(value)) for stage in run.stages if (value := stage.value(metric)) is not None]
    if not known:
        return None
    (first, before), (last, after) = known[0], known[-1]
    return (label, after, first) if first == last else (label, f"{before} → {after}", f"{first} → {last}")


def wall_time(run: RunData) -> Tile | None:
    if not run.phases:
        return None
    repeated = len(run.repeated())
    one_or_more = "1 phase counted with its" if repeated == 1 else f"{repeated} phases counted with their"
    note = f"{one_or_more} last attempt only" if repeated else "all phases together"
    return "wall time", duration(run.seconds()), note


def dropped_rows(run: RunData) -> Tile:
    count = sum("row" in line for line in run.dropped)
    return "dropped rows", f"{count:,}", "of the data, listed below" if count else "every row is used"
