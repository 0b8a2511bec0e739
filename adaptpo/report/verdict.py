"""The verdict on a run, in words: what improved, by how much, at what cost, and what to worry about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from adaptpo.report.formats import duration, short
from adaptpo.report.reading import RunData, Stage, finite, number
from adaptpo.report.tables import IterationCounts, iteration_counts, ratio
from adaptpo.report.visits import FloatArray

LONGER = 1.25
"""Responses this much longer may win by length alone."""
FALLEN = 0.1
"""A fall of the chosen responses' log-prob worth a worry, as a share of its size."""
EXTREME = 0.03
"""A learned selection this close to no prompt, or to every prompt, selects nothing."""
MANY = 0.1
"""A share of pairs without a winner, of rewards without a value, or of rows left out that is worth a worry."""
CUT = 0.2
"""A share of held-out responses cut at the length limit that is worth a worry."""


@dataclass(frozen=True)
class Verdict:
    """Sentences: `findings` about outcome and cost, `worries` about what may be wrong."""

    findings: list[str]
    worries: list[str]


def verdict(run: RunData) -> Verdict:
    counts = [iteration_counts(run, t) for t in run.iterations]
    return Verdict([*outcome(run), *cost(run, counts)], [*worries(run, counts)])


# Outcome and cost


def outcome(run: RunData) -> Iterator[str]:
    known = [stage for stage in run.stages if stage.value("reward/mean") is not None]
    if len(known) > 1:
        yield moved(known[0], known[-1])
        warmup = next((stage for stage in known[1:-1] if stage.key == "warmup"), None)
        if warmup is not None:
            yield f"{moved(warmup, known[-1])} The iterations are responsible for this part."
    elif run.phases.get("final", {}).get("done"):
        yield from held_out_loss(run)


def moved(first: Stage, last: Stage) -> str:
    """How the mean reward changed between two stages, with an interval over the prompts that both answered."""
    before, after = (stage.value("reward/mean") or 0.0 for stage in (first, last))
    told = f"from {short(before)} ({first.label}) to {short(after)} ({last.label})"
    gains = paired_gains(first, last)
    if len(gains) < 2:
        return f"Held-out reward went {told}."
    mean, half = float(gains.mean()), 1.96 * float(gains.std(ddof=1)) / len(gains) ** 0.5
    interval = f"{short(mean, '+')}, 95 % interval {short(mean - half, '+')} to {short(mean + half, '+')}"
    word = "did not change measurably:" if abs(mean) <= half else "rose" if mean > 0 else "FELL"
    return f"Held-out reward {word} {told}: {interval}, over {len(gains):,} prompts."


def paired_gains(first: Stage, last: Stage) -> FloatArray:
    """The change in reward of each prompt that has one at both stages, [n]."""
    before = {key: number(row["reward"]) for key, row in first.rows().items()}
    after = {key: number(row["reward"]) for key, row in last.rows().items()}
    gains = [a - b for key, b in before.items() if b is not None and (a := after.get(key)) is not None]
    return np.array(gains, dtype=np.float64)


def held_out_loss(run: RunData) -> Iterator[str]:
    known = [(stage.label, loss) for stage in run.stages if (loss := stage.value("eval_loss")) is not None]
    if len(known) > 1:
        (first, before), (last, after) = known[0], known[-1]
        yield f"The loss on held-out pairs went from {short(before)} ({first}) to {short(after)} ({last})."
    else:
        yield "Nothing was held out, so the run cannot say whether the policy improved; set eval_data."


def cost(run: RunData, counts: Sequence[IterationCounts]) -> Iterator[str]:
    if not run.phases:
        return
    prompts = sum(count.prompts or 0 for count in counts)
    generated = sum(count.generated_for or 0 for count in counts)
    annotated = sum(count.annotated or 0 for count in counts)
    fresh = f"{annotated:,} annotated responses for {generated:,} of {prompts:,} prompts, and " if annotated else ""
    yield f"It took {fresh}{duration(run.seconds())}."


# Worries


def worries(run: RunData, counts: Sequence[IterationCounts]) -> Iterator[str]:
    yield from length(run)
    yield from unlearned(run)
    for t, count in zip(run.iterations, counts, strict=True):
        yield from selection(run, t)
        yield from annotation(run, t, count)
    yield from cut_off(run)
    yield from left_out(run)


def length(run: RunData) -> Iterator[str]:
    known = [(stage.label, tokens) for stage in run.stages if (tokens := stage.value("length/mean"))]
    if len(known) > 1 and known[-1][1] > LONGER * known[0][1]:
        (_, before), (label, after) = known[0], known[-1]
        yield (
            f"Responses grew from {before:.0f} to {after:.0f} tokens ({label}). Compare at equal length: a reward may "
            "prefer long responses."
        )


def unlearned(run: RunData) -> Iterator[str]:
    """Falling log-probs of chosen responses in the last iteration: the mean of its last fifth against its first."""
    if not run.iterations:
        return
    phase = f"iterations/{run.iterations[-1]}/train"
    lines = [number(line.get("logps/chosen")) for line in run.metrics if line.get("phase") == phase]
    values = np.array([value for value in lines if value is not None], dtype=np.float64)
    fifth = len(values) // 5
    if fifth < 2:
        return
    start, end = float(values[:fifth].mean()), float(values[-fifth:].mean())
    noise = 2 * float(np.hypot(values[:fifth].std(), values[-fifth:].std())) / fifth**0.5
    if start - end > max(FALLEN * abs(start), noise):
        yield (
            f"The log-prob of chosen responses fell from {start:.1f} to {end:.1f} nats in the last iteration: the "
            "policy unlearns them. Lower the learning rate, or raise beta."
        )


def selection(run: RunData, t: int) -> Iterator[str]:
    """A learned selection at an extreme; one that takes all or none by design is none."""
    probability = finite(run.table(f"iterations/{t}/selection.parquet", "probability"), "probability")
    if not len(probability) or set(np.unique(probability)) <= {0.0, 1.0}:
        return
    mean = float(probability.mean())
    if not EXTREME <= mean <= 1 - EXTREME:
        word = "almost every prompt" if mean > 0.5 else "almost no prompt"
        yield f"In iteration {t} the selection asked for fresh responses to {word} ({mean:.1%}): it no longer selects."


def annotation(run: RunData, t: int, count: IterationCounts) -> Iterator[str]:
    tied = ratio(run.phases.get(f"iterations/{t}/pair", {}).get("no_pair"), count.generated_for) or 0.0
    if tied > MANY:
        yield (
            f"In iteration {t}, {tied:.0%} of the prompts with fresh responses gave no pair, mostly because best and "
            "worst tie. The reward may be too coarse."
        )
    invalid = ratio(count.invalid, (count.annotated or 0) + (count.invalid or 0)) or 0.0
    if invalid > MANY:
        yield f"In iteration {t}, {invalid:.0%} of the responses got no valid reward."


def cut_off(run: RunData) -> Iterator[str]:
    ended = run.stages[-1].value("ended") if run.stages else None
    if ended is not None and 1 - ended > CUT:
        yield f"{1 - ended:.0%} of the last held-out responses were cut off; raise generation.max_new_tokens."


def left_out(run: RunData) -> Iterator[str]:
    kept = run.phases.get("data", {}).get("kept")
    rows = sum("row" in line and line.get("phase") == "data" for line in run.dropped)
    if kept and rows / (rows + kept) > MANY:
        yield f"{rows:,} of {rows + kept:,} rows of the data were left out; the reasons are below."
