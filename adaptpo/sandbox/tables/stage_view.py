"""Pairs of runs that start from one policy, trained on PC_off and on PC_on, and the boundary score measured before:
the alignment-stages paper's Tables 3 and 5."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from statistics import fmean

from adaptpo.sandbox.tables.measure import Boundary, Measurement
from adaptpo.sandbox.tables.statistics import Estimate, Place, estimate
from adaptpo.sandbox.tables.summary import RowSummary
from adaptpo.sandbox.tables.text import NOTHING, number
from adaptpo.sandbox.tables.view import Grid

PC_OFF, PC_ON = "PC_off", "PC_on"
"""Labels of a policy's two rows; the policy's name is their group. The row of PC_on measures the stage."""


def effectiveness(offline_gain: float, online_gain: float) -> float | None:
    """Delta of the paper's Tables 1, 3 and 5: the gain on PC_off over that on PC_on. Infinite if only PC_off gains,
    0 if only PC_on does, None if neither does (a dash in the paper)."""
    if online_gain > 0:
        return max(offline_gain, 0.0) / online_gain
    return math.inf if offline_gain > 0 else None


@dataclass(frozen=True)
class Duel:
    """One policy in one world: its boundary score, its true reward, and the gains of training on either data; mean
    length and term for the number of items of both trained policies, PC_off first."""

    boundary: Boundary
    before: float
    offline_gain: float
    online_gain: float
    words: tuple[float, float] = (0.0, 0.0)
    counts: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def between(cls, boundary: Boundary, offline: Measurement, online: Measurement) -> Duel:
        words, counts = (offline.words, online.words), (offline.count_term, online.count_term)
        return cls(boundary, online.sft_reward, offline.gain, online.gain, words, counts)

    @property
    def predicted(self) -> bool:
        """Whether Algorithm 1 predicted the data that gained more."""
        return self.boundary.injection == (self.offline_gain > self.online_gain)


@dataclass(frozen=True)
class PolicySummary:
    """The results of a policy over its worlds and runs."""

    name: str
    duels: Mapping[Place, Duel]

    @property
    def all(self) -> list[Duel]:
        return list(self.duels.values())

    @property
    def effectiveness(self) -> float | None:
        """The effectiveness of the mean gains: ratios of single seeds have no mean if one of them is infinite."""
        return effectiveness(fmean(d.offline_gain for d in self.all), fmean(d.online_gain for d in self.all))

    def over_seeds(self, value: Callable[[Duel], float]) -> Estimate | None:
        return estimate({place: value(duel) for place, duel in self.duels.items()}) if self.duels else None


def policies(summaries: Sequence[RowSummary]) -> list[PolicySummary]:
    groups = groupby(summaries, key=lambda summary: summary.row.group)
    return [PolicySummary(name, duels(list(pair))) for name, pair in groups]


def duels(pair: Sequence[RowSummary]) -> dict[Place, Duel]:
    """The duels by world and run, where both runs succeeded; empty if a row was not requested."""
    rows = {summary.row.label: summary.measured for summary in pair}
    offline, online = rows.get(PC_OFF, {}), rows.get(PC_ON, {})
    return {
        place: Duel.between(found.boundary, offline[place], found)
        for place, found in online.items()
        if place in offline and found.boundary is not None
    }


@dataclass(frozen=True)
class StageView:
    """Shows a line for each policy. `paper`: the paper's figures by policy name; `models`: the models they are for."""

    models: str
    paper: Mapping[str, str] = field(default_factory=dict)

    def grid(self, summaries: Sequence[RowSummary], places: int) -> Grid:
        lines = policies(summaries)
        rows = [[cell(line) for cell in self.columns(places).values()] for line in lines]
        return Grid(list(self.columns(places)), rows, [""] * len(lines))

    def columns(self, places: int) -> dict[str, Callable[[PolicySummary], str]]:
        def mean(value: Callable[[Duel], float], sign: str, line: PolicySummary) -> str:
            return number(line.over_seeds(value), 1, 3, sign)

        return {
            "policy": lambda line: line.name,
            "runs": lambda line: f"{len(line.duels)} of {places}",
            "true reward": partial(mean, lambda duel: duel.before, ""),
            "boundary score": score_text,
            "against chosen / rejected": parts_text,
            "gain on PC_off": partial(mean, lambda duel: duel.offline_gain, "+"),
            "gain on PC_on": partial(mean, lambda duel: duel.online_gain, "+"),
            "difference, off − on": partial(mean, lambda duel: duel.offline_gain - duel.online_gain, "+"),
            "words, off / on": lambda line: means_text(line, lambda duel: duel.words, 1),
            "count, off / on": lambda line: means_text(line, lambda duel: duel.counts, 2),
            "effectiveness": lambda line: ratio_text(line.effectiveness) if line.duels else NOTHING,
            "predicted": lambda line: f"{hits(line.all)} of {len(line.duels)}",
            f"paper, {self.models}: score / effectiveness": lambda line: self.paper.get(line.name, NOTHING),
        }

    def remarks(self, summaries: Sequence[RowSummary], worlds: int) -> list[str]:
        """Notes for the reader of the numbers."""
        everything = [duel for line in policies(summaries) for duel in line.all]
        decided = [duel for duel in everything if duel.boundary.decided]
        spread = "brackets: 95 % interval (Student's t) between worlds; " if worlds > 1 else ""
        return [
            f"Means over worlds; {spread}± after a score: half the width of its own 95 % interval over prompts.",
            "Boundary score: share of comparisons that the policy's fresh responses win; below 0.5 it predicts PC_off. "
            "It is the mean of the shares won against chosen and against rejected offline responses.",
            "Words: mean length of the responses after training. Count: mean term of the true reward for the number of "
            "items, 1 if it is the one asked for.",
            "Gains: true reward on held-out prompts after one epoch on all prompts, minus that of the policy itself.",
            "Effectiveness: mean gain on PC_off over mean gain on PC_on; ∞ if only PC_off gains, 0 if only PC_on does, "
            "– if neither does.",
            f"The score predicted the better data in {hits(everything)} of {len(everything)} cases (policy, world "
            f"and run); if its interval excludes 0.5, in {hits(decided)} of {len(decided)}.",
        ]

    def record(self, summaries: Sequence[RowSummary]) -> list[dict[str, object]]:
        """The lines in JSON-ready form, with every run; an infinite effectiveness is the text `inf`."""
        return [line_record(line) for line in policies(summaries)]


def line_record(line: PolicySummary) -> dict[str, object]:
    ratio = line.effectiveness if line.duels else None
    cells = [
        {"seed": seed, "repeat": repeat, **asdict(duel), "predicted": duel.predicted}
        for (seed, repeat), duel in line.duels.items()
    ]
    return {"policy": line.name, "effectiveness": "inf" if ratio == math.inf else ratio, "cells": cells}


def score_text(line: PolicySummary) -> str:
    """The score as text, for instance `0.412 [0.400, 0.420]; ±0.013`."""
    if not line.duels:
        return NOTHING
    own = fmean(duel.boundary.half_width for duel in line.all)
    return f"{number(line.over_seeds(lambda duel: duel.boundary.score), 1, 3)}; ±{own:.3f}"


def parts_text(line: PolicySummary) -> str:
    """The score's two parts; nothing if a run predates them."""
    parts = [(duel.boundary.against_chosen, duel.boundary.against_rejected) for duel in line.all]
    known = [(chosen, rejected) for chosen, rejected in parts if chosen is not None and rejected is not None]
    return " / ".join(f"{fmean(side):.3f}" for side in zip(*known, strict=True)) or NOTHING


def means_text(line: PolicySummary, values: Callable[[Duel], tuple[float, float]], digits: int) -> str:
    sides = zip(*map(values, line.all), strict=True)
    return " / ".join(f"{fmean(side):.{digits}f}" for side in sides) or NOTHING


def ratio_text(ratio: float | None) -> str:
    if ratio is None:
        return NOTHING
    return "∞" if ratio == math.inf else f"{ratio:.2f}"


def hits(duels: Sequence[Duel]) -> int:
    return sum(duel.predicted for duel in duels)
