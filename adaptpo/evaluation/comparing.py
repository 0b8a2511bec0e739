"""Results of one suite side by side: differences by prompt, and over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from adaptpo.errors import ConfigError, DataError
from adaptpo.evaluation.folder import EvaluationFolder
from adaptpo.evaluation.intervals import PROMPTS, Floats, Interval, bootstrap_values, quantiles
from adaptpo.evaluation.presets import protocol
from adaptpo.evaluation.result import PromptScore
from adaptpo.evaluation.suite import Suite
from adaptpo.evaluation.suites import find_suite
from adaptpo.types import Row

CHAT_TEMPLATE = "chat_template_kwargs"
PAIRED = f"paired {PROMPTS}"
ALL = "all"


@dataclass(frozen=True)
class Run:
    """One scored evaluation. `numbers` by name; `scores` by prompt; `label` tells it from the others."""

    label: str
    path: Path
    row: Row
    scores: dict[str, PromptScore]

    @property
    def numbers(self) -> dict[str, float]:
        return {number["name"]: number["value"] for number in self.row["numbers"]}

    @property
    def conditions(self) -> Row:
        """What must be the same for a difference to be one between models."""
        folder = EvaluationFolder(self.path)
        return {
            **{name: self.row[name] for name in ("judge", "baseline", "template", "decoding")},
            "the judge's options": folder.judging.get("options"),
            "references": folder.judging.get("references"),
            CHAT_TEMPLATE: folder.settings.get(CHAT_TEMPLATE, {}),
        }


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
    """An entry minus the first one, on the prompts that both answered. `test`: the two-sided p-value of a paired t-test
    over seeds, None without several."""

    name: str
    group: str
    prompts: int
    value: float
    interval: Interval
    test: float | None = None


@dataclass(frozen=True)
class Comparison:
    """`measured`: the number whose differences these are; where a model explains the main number, its prompts have
    none."""

    suite: str
    measured: str
    columns: tuple[str, ...]
    cells: dict[str, list[Cell | None]]
    differences: list[Difference]
    warnings: list[str]

    def row(self) -> Row:
        return asdict(self)


def compare(arguments: Sequence[str], preset: str | None = None) -> Comparison:
    """`arguments`: folders, or NAME=FOLDER,FOLDER for seeds. Raises ConfigError or DataError where they cannot be
    compared."""
    entries = read_entries(arguments)
    if len(entries) < 2:
        raise ConfigError("a comparison needs two evaluations; name at least two folders")
    suites = {run.row["suite"] for entry in entries for run in entry.runs}
    if len(suites) > 1:
        raise ConfigError(f"these are of different suites ({', '.join(sorted(suites))}); compare one suite at a time")
    columns = columns_of(entries, preset)
    return Comparison(
        suite=suites.pop(),
        measured=suite_of(entries[0]).prompt_number,
        columns=columns,
        cells={entry.name: [cell(entry, column) for column in columns] for entry in entries},
        differences=[found for entry in entries[1:] for found in differences(entries[0], entry)],
        warnings=[*mismatches(entries), *left_out(entries), *paired_as_named(entries)],
    )


def read_entries(arguments: Sequence[str]) -> list[Entry]:
    """Raises ConfigError where a name or a folder stands for two."""
    named = [parsed(argument) for argument in arguments]
    labels = labelled([path for _, paths in named for path in paths])
    entries = [read_entry(name or labels[paths[0]], paths, labels) for name, paths in named]
    if twice := repeated(entry.name for entry in entries):
        raise ConfigError(f"two entries are named {twice}; give each a name of its own: A=DIR B=DIR")
    return entries


def parsed(argument: str) -> tuple[str, list[Path]]:
    """The name, empty without one, and the folders."""
    name, given, folders = argument.partition("=")
    return (name if given else ""), [Path(path) for path in (folders if given else argument).split(",")]


def labelled(paths: Sequence[Path]) -> dict[Path, str]:
    """By their folders' names, or by more of their paths where the names are equal."""
    parts = [path.resolve().parts for path in paths]
    if twice := repeated(parts):
        raise ConfigError(f"{Path(*twice)} is named twice; name different evaluations")
    length = next(n for n in range(1, max(map(len, parts)) + 1) if not repeated(one[-n:] for one in parts))
    return {path: "/".join(one[-length:]) for path, one in zip(paths, parts, strict=True)}


def repeated(values: Iterable[Hashable]) -> Any:
    """The first of the values that is there more than once, or None."""
    return next((value for value, count in Counter(values).items() if count > 1), None)


def read_entry(name: str, paths: Sequence[Path], labels: Mapping[Path, str]) -> Entry:
    runs = tuple(read_run(path, labels[path]) for path in paths)
    if len({(model_of(run), seed_of(run)) for run in runs}) < len(runs):
        raise ConfigError(f"{name}: several runs have the same seed and model; name different ones")
    return Entry(name, runs)


def model_of(run: Run) -> str:
    return EvaluationFolder(run.path).settings["model"]


def seed_of(run: Run) -> int:
    return EvaluationFolder(run.path).settings["seed"]


def suite_of(entry: Entry) -> Suite:
    return find_suite(EvaluationFolder(entry.runs[0].path).settings["suite"])


def read_run(path: Path, label: str) -> Run:
    folder = EvaluationFolder(path).require()
    return Run(label, path, folder.result(), {score.id: score for score in folder.scores()})


def columns_of(entries: Sequence[Entry], preset: str | None) -> tuple[str, ...]:
    """Those of a paper, or the main number and the one whose differences are measured. `cell` leaves out those that no
    run has."""
    first, suite = entries[0].runs[0], suite_of(entries[0])
    if preset is not None:
        return protocol(preset, suite.name).columns
    main = first.row["numbers"][0]["name"]
    return (main, suite.prompt_number) if suite.prompt_number in first.numbers.keys() - {main} else (main,)


def cell(entry: Entry, column: str) -> Cell | None:
    values = [run.numbers[column] for run in entry.runs if column in run.numbers]
    if not values:
        return None
    return Cell(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def mismatches(entries: Sequence[Entry]) -> list[str]:
    """What differs beside the model, so that a difference need not be the models'."""
    runs = [(run.label, run.conditions) for entry in entries for run in entry.runs]
    return [
        f"{one} and {other} differ in {name}: {old[name]} and {new[name]}"
        for name in runs[0][1]
        for (one, old), (other, new) in pairwise(runs)
        if old[name] != new[name]
    ]


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
    whole = {ALL: shared} if suite_of(first).one_mean or not parts else {}
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
    """The p-value of a paired t-test over seeds; None for one seed each."""
    if not has_test(first, other):
        return None
    from scipy.stats import ttest_rel

    mean: Callable[[Run], float] = lambda run: mean_of(weighted(Entry("", (run,)), keys), np.arange(len(keys)))  # noqa: E731
    old, new = (sorted(entry.runs, key=seed_of) if same_seeds(first, other) else entry.runs for entry in (first, other))
    return float(ttest_rel([mean(run) for run in new], [mean(run) for run in old]).pvalue)


def has_test(first: Entry, other: Entry) -> bool:
    return len(first.runs) == len(other.runs) > 1


def same_seeds(first: Entry, other: Entry) -> bool:
    """Whether the seeds say which runs of two entries belong together."""
    old, new = ({seed_of(run) for run in entry.runs} for entry in (first, other))
    return old == new and len(old) == len(first.runs)


def paired_as_named(entries: Sequence[Entry]) -> list[str]:
    first, *others = entries
    return [
        f"the t-test pairs the runs of {other.name} and {first.name} in the order in which they are named, for their "
        "seeds do not say which belong together"
        for other in others
        if has_test(first, other) and not same_seeds(first, other)
    ]
