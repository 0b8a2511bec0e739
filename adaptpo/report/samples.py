"""Sample held-out prompts with the responses of every stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaptpo.report.formats import clipped, short
from adaptpo.report.reading import RunData, number
from adaptpo.types import Row

SAMPLES_AT_MOST = 5
RowsById = dict[int, Row]


@dataclass(frozen=True)
class Answer:
    """One response in the comparison; `note` says where it comes from and what it scored."""

    label: str
    note: str
    text: str


@dataclass(frozen=True)
class Sample:
    """A held-out prompt with the response of every stage."""

    prompt: str
    note: str
    answers: list[Answer]


def samples(run: RunData) -> list[Sample]:
    """Held-out prompts from the largest loss to the largest gain in reward between the first and the last stage."""
    stages = {stage.label: rows for stage in run.stages if (rows := stage.rows())}
    if not stages:
        return []
    first, last = (list(stages.values())[end] for end in (0, -1))
    picks = spread(first, last)
    in_data = run.chosen_responses({first[key]["prompt"] for key, _ in picks})
    return [sample(key, note, stages, in_data) for key, note in picks]


def spread(first: RowsById, last: RowsById) -> list[tuple[int, str]]:
    """Prompts evenly spaced in the ranking by change in reward, each with a note on that change."""
    changes = {key: change for key in first if (change := reward_change(first[key], last.get(key, {}))) is not None}
    if first is last or not changes:
        return [(key, "") for key in sorted(first)[:SAMPLES_AT_MOST]]
    ranked = sorted(changes, key=lambda key: (changes[key], key))
    picks = np.unique(np.linspace(0, len(ranked) - 1, SAMPLES_AT_MOST).round().astype(int))
    return [
        (ranked[pick], f"reward {short(changes[ranked[pick]], '+')}, rank {pick + 1} of {len(ranked)}")
        for pick in picks
    ]


def reward_change(first: Row, last: Row) -> float | None:
    before, after = number(first.get("reward")), number(last.get("reward"))
    return None if before is None or after is None else after - before


def sample(key: int, note: str, stages: dict[str, RowsById], chosen_in_data: dict[str, str]) -> Sample:
    rows = {label: stage[key] for label, stage in stages.items() if key in stage}
    first = next(iter(rows.values()))
    chosen = first.get("chosen") or chosen_in_data.get(first["prompt"])
    offline = [Answer("offline chosen", "from the data", clipped(chosen))] if chosen else []
    answers = [*offline, *(answer(label, row) for label, row in rows.items())]
    return Sample(clipped(first["prompt"]), f"prompt {key}" + (f" · {note}" if note else ""), answers)


def answer(label: str, row: Row) -> Answer:
    reward = number(row.get("reward"))
    note = "no valid reward" if reward is None else f"reward {short(reward)}"
    return Answer(label, note + ("" if row["ended"] else " · cut off"), clipped(row["response"]))
