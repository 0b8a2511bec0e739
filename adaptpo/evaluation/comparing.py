"""Results of one suite side by side: differences by prompt, and over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from adaptpo.errors import ConfigError, DataError
from adaptpo.evaluation.folder import EvaluationFolder
from adaptpo.evaluation.intervals import PROMPTS, Floats, Interval, bootstrap_values, quantiles
from adaptpo.evaluation.presets import protocol
from adaptpo.evaluation.result import PromptScore
from adaptpo.evaluation.suites import find_suite
from adaptpo.types import Row

COMPARED = ("judge", "baseline", "template", "decoding")
"""What must be the same for a difference to be one between models."""
PAIRED = f"paired {PROMPTS}"
ALL = "all"


@dataclass(frozen=True)
class Run:
    """One scored evaluation. `numbers` by name; `scores` by prompt."""

    path: Path
    row: Row
    scores: dict[str, PromptScore]

    @property
    def numbers(self) -> dict[str, float]:
        return {number["name"]: number["value"] for number in self.row["numbers"]}


@dataclass(frozen=True)
class Entry:
    """What is compared: one run, or several seeds of one method."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Cell:
    """A number of an entry: mean over its seeds, and sd with ddof 1 where it has several."""

    mean: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """An entry minus the first one, on the prompts that both answered, in the unit of the main number. `test`: the
    two-sided p-value of a paired t-test over seeds, None without several."""

    name: str
    group: str
    prompts: int
    value: float
    interval: Interval
    test: float | None = None


@dataclass(frozen=True)
class Comparison:
    suite: str
    columns: tuple[str, ...]
    cells: dict[str, list[Cell | None]]
    differences: list[Difference]
    warnings: list[str]

    def row(self) -> Row:
        return asdict(self)


def compare(arguments: Sequence[str], preset: str | None = None) -> Comparison:
    """`arguments`: folders, or NAME=FOLDER,FOLDER for seeds. Raises ConfigError or DataError where they cannot be
    compared."""
    entries = [read_entry(argument) for argument in arguments]
    if len(entries) < 2:
        raise ConfigError("a comparison needs two evaluations; name at least two folders")
    suites = {run.row["suite"] for entry in entries for run in entry.runs}
    if len(suites) > 1:
        raise ConfigError(f"these are of different suites ({', '.join(sorted(suites))}); compare one suite at a time")
    columns = columns_of(entries, preset)
    return Comparison(
        suite=suites.pop(),
        columns=columns,
        cells={entry.name: [cell(entry, column) for column in columns] for entry in entries},
        differences=[found for entry in entries[1:] for found in differences(entries[0], entry)],
        warnings=mismatches(entries),
    )


def read_entry(argument: str) -> Entry:
    name, given, folders = argument.partition("=")
    paths = [Path(path) for path in (folders if given else argument).split(",")]
    runs = tuple(read_run(path) for path in paths)
    if len({seed_of(run) for run in runs}) < len(runs):
        raise ConfigError(f"{argument}: several runs have the same seed and model; name different ones")
    return Entry(name if given else paths[0].name, runs)


def seed_of(run: Run) -> tuple[str, int]:
    settings = EvaluationFolder(run.path).settings
    return settings["model"], settings["seed"]


def read_run(path: Path) -> Run:
    folder = EvaluationFolder(path).require()
    return Run(path, folder.result(), {score.id: score for score in folder.scores()})


def columns_of(entries: Sequence[Entry], preset: str | None) -> tuple[str, ...]:
    """Those of a paper, or the main number; those that no run has are left out by `cell`."""
    first = entries[0].runs[0]
    if preset is None:
        return (first.row["numbers"][0]["name"],)
    return protocol(preset, EvaluationFolder(first.path).settings["suite"]).columns


def cell(entry: Entry, column: str) -> Cell | None:
    values = [run.numbers[column] for run in entry.runs if column in run.numbers]
    if not values:
        return None
    return Cell(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def mismatches(entries: Sequence[Entry]) -> list[str]:
    """What differs beside the model, so that a difference need not be the models'."""
    runs = [run for entry in entries for run in entry.runs]
    found = [
        f"{one.path.name} and {other.path.name} differ in {name}: {one.row[name]} and {other.row[name]}"
        for name in COMPARED
        for one, other in pairwise(runs)
        if one.row[name] != other.row[name]
    ]
    return [*found, *left_out(entries)]


def left_out(entries: Sequence[Entry]) -> list[str]:
    everywhere = set.intersection(*(set(run.scores) for entry in entries for run in entry.runs))
    most = max(len(run.scores) for entry in entries for run in entry.runs)
    return [f"{most - len(everywhere)} prompts are not scored in every run"] if len(everywhere) < most else []


def differences(first: Entry, other: Entry) -> list[Difference]:
    """Over all prompts where one mean makes sense, and by category."""
    shared = sorted(set.intersection(*(set(run.scores) for entry in (first, other) for run in entry.runs)))
    if not shared:
        raise DataError(f"{first.name} and {other.name} answered no prompt in common; judge both on the same questions")
    groups = {key: first.runs[0].scores[key].group for key in shared}
    names = sorted(set(groups.values()) - {""})
    parts = {name: [key for key in shared if groups[key] == name] for name in names if len(names) > 1}
    suite = find_suite(EvaluationFolder(first.runs[0].path).settings["suite"])
    whole = {ALL: shared} if suite.one_mean or not parts else {}
    return [difference(first, other, name, keys) for name, keys in (whole | parts).items()]


def difference(first: Entry, other: Entry, group: str, keys: Sequence[str]) -> Difference:
    old, new = weighted(first, keys), weighted(other, keys)

    def gain(rows: np.ndarray) -> float:
        return mean_of(new, rows) - mean_of(old, rows)

    every = np.arange(len(keys))
    interval = quantiles(bootstrap_values(len(keys), gain), PAIRED)
    return Difference(other.name, group, len(keys), gain(every), interval, over_seeds(first, other, keys))


def weighted(entry: Entry, keys: Sequence[str]) -> Floats:
    """[prompts, 2]: the sum of the weighted scores over seeds, and of the weights."""
    scores = [[run.scores[key] for key in keys] for run in entry.runs]
    sums = [[(score.value * score.weight, score.weight) for score in row] for row in scores]
    return np.array(sums).sum(axis=0)


def mean_of(sums: Floats, rows: np.ndarray) -> float:
    return float(sums[rows, 0].sum() / sums[rows, 1].sum())


def over_seeds(first: Entry, other: Entry, keys: Sequence[str]) -> float | None:
    """The p-value of a paired t-test over seeds, in the order in which they are named; None for one seed each."""
    if len(first.runs) != len(other.runs) or len(first.runs) < 2:
        return None
    from scipy.stats import ttest_rel

    mean: Callable[[Run], float] = lambda run: mean_of(weighted(Entry("", (run,)), keys), np.arange(len(keys)))  # noqa: E731
    return float(ttest_rel([mean(run) for run in other.runs], [mean(run) for run in first.runs]).pvalue)
