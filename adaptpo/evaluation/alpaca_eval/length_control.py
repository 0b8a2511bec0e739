"""The length-controlled win rate: what the win rate would be if both outputs were of the same length.

A logistic model explains each preference by the difference in length, the instruction's difficulty and a constant; the
rate is its prediction without the length. Rows of the baseline against its own verbose and concise outputs keep
the weight of length from being learned from one model alone. Source: Dubois et al., "Length-Controlled AlpacaEval"
(2024), and the weights that AlpacaEval publishes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adaptpo.data import open_rows
from adaptpo.errors import ConfigError, DataError
from adaptpo.evaluation.alpaca_eval.records import Comparison, preferences
from adaptpo.evaluation.intervals import PROMPTS, Floats, Interval, bootstrap_values, quantiles

Keying = Literal["instruction", "row"]

INSTRUCTIONS = 805
INSTRUCTIONS_SHA256 = "4f47f1c4d96c59940dd770082caf840988123cc6e62d0cdcc7bf104715dae8b0"
"""Of AlpacaEval's instructions in their order, joined by the ASCII record separator."""
GAMED_SLOPES = (-1.8364989, 0.7443483)
"""Of tanh(length) and difficulty in the surrogate labels of the gamed rows: least squares on AlpacaEval's own ones."""
GAMED_WEIGHT = 0.1
STRENGTHS = np.logspace(-4, 4, 10)
"""Inverse strengths of the penalty, of which cross-validation takes one."""
FOLDS = 5
TOLERANCE = 1e-8
ITERATIONS = 10_000
LC_RESAMPLES = 300
NEEDED = "length control needs scikit-learn: pip install 'adaptpo[eval]'"


@dataclass(frozen=True)
class Table:
    """What AlpacaEval knows of its instructions, by their number: `difficulty` [805], and `gamed` [805, 2], the
    standardized differences in length of the baseline to its verbose and its concise outputs."""

    numbers: dict[str, int]
    difficulty: Floats
    gamed: Floats


@dataclass(frozen=True)
class Design:
    """Rows of a logistic model: `features` [n, 3] (length, difficulty, constant), `labels` [n] in [0, 1], `weights`
    [n], `groups` [n]: the instruction of a row, which cross-validation does not tear."""

    features: Floats
    labels: Floats
    weights: Floats
    groups: NDArray[np.intp]

    def pick(self, rows: NDArray[np.intp]) -> Design:
        return Design(self.features[rows], self.labels[rows], self.weights[rows], self.groups[rows])

    def __add__(self, other: Design) -> Design:
        mine, theirs = ((d.features, d.labels, d.weights, d.groups) for d in (self, other))
        return Design(*(np.concatenate(both) for both in zip(mine, theirs, strict=True)))


@dataclass(frozen=True)
class Fit:
    """`win_rate` in percent; `weights` of length, difficulty and constant; `predictions` [n] in [0, 1] at equal length;
    `strength`: the inverse of the penalty's."""

    win_rate: float
    weights: Floats
    predictions: Floats
    strength: float

    @property
    def published_error(self) -> float:
        """What AlpacaEval publishes as `lc_standard_error`: the spread of the predictions, which is no sampling
        error."""
        return 100 * float(self.predictions.std(ddof=1)) / len(self.predictions) ** 0.5


def read_table(path: Path | str, instructions: Sequence[str]) -> Table:
    """`path`: `length_control.csv`; `instructions` in AlpacaEval's order. Raises DataError for other instructions."""
    check_instructions(instructions)
    rows = sorted(open_rows(path), key=lambda row: int(row["index"]))
    columns = ("instruction_difficulty", "std_delta_len_verbose", "std_delta_len_concise")
    if len(rows) != INSTRUCTIONS or not set(columns) <= rows[0].keys():
        raise DataError(
            f"{path}: holds {len(rows)} rows; length control needs {INSTRUCTIONS} with {', '.join(columns)}"
        )
    values = np.array([[float(row[name]) for name in columns] for row in rows])
    return Table({text: number for number, text in enumerate(instructions)}, values[:, 0], values[:, 1:])


def check_instructions(instructions: Sequence[str]) -> None:
    found = hashlib.sha256("\x1e".join(instructions).encode()).hexdigest()
    if len(instructions) != INSTRUCTIONS or found != INSTRUCTIONS_SHA256:
        raise DataError(
            f"these {len(instructions)} instructions are not AlpacaEval's {INSTRUCTIONS} in their order, and the "
            "difficulties belong to those alone; give AlpacaEval's own baseline file, or leave length control out"
        )


def length_controlled(comparisons: Sequence[Comparison], table: Table, keyed_by: Keying = "instruction") -> Fit:
    """Of valid comparisons. `row` takes the difficulty by a record's position in its file, as the publications do; it
    differs where records are missing.

    Raises DataError for an unknown instruction or length.
    """
    model, gamed = model_rows(comparisons, table, keyed_by), gamed_rows(table)
    return predicted(model, fit(model + gamed))


def model_rows(comparisons: Sequence[Comparison], table: Table, keyed_by: Keying) -> Design:
    numbers = instruction_numbers(comparisons, table, keyed_by)
    delta = np.array([baseline - model for baseline, model in map(both_lengths, comparisons)], dtype=np.float64)
    features = [np.tanh(delta / delta.std(ddof=1)), table.difficulty[numbers], np.ones(len(delta))]
    return Design(np.column_stack(features), preferences(comparisons) - 1, np.ones(len(delta)), numbers)


def instruction_numbers(comparisons: Sequence[Comparison], table: Table, keyed_by: Keying) -> NDArray[np.intp]:
    strangers = [one.instruction for one in comparisons if one.instruction not in table.numbers]
    if strangers:
        raise DataError(
            f"{len(strangers)} instructions are not AlpacaEval's, the first {strangers[0][:60]!r}; no length control "
            "exists for them, so leave it out"
        )
    if keyed_by == "row":
        return np.array([one.row for one in comparisons], dtype=np.intp)
    return np.array([table.numbers[one.instruction] for one in comparisons], dtype=np.intp)


def both_lengths(one: Comparison) -> tuple[int, int]:
    if one.baseline_length is None or one.model_length is None:
        raise DataError(
            f"record {one.row} lacks the length of {'the baseline' if one.baseline_length is None else 'the model'}'s "
            "output; name the baseline's outputs with --baseline"
        )
    return one.baseline_length, one.model_length


def gamed_rows(table: Table) -> Design:
    """The baseline against itself, longer and shorter: [1610, 3]. They lack the constant, for they are of one model."""
    lengths = np.tanh(table.gamed.T.reshape(-1))
    difficulty = np.tile(table.difficulty, 2)
    labels = sigmoid(GAMED_SLOPES[0] * lengths + GAMED_SLOPES[1] * difficulty)
    features = np.column_stack([lengths, difficulty, np.zeros(len(lengths))])
    groups = np.tile(np.arange(len(table.difficulty)), 2)
    return Design(features, labels, np.full(len(labels), GAMED_WEIGHT), groups)


def sigmoid(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-values))


def predicted(model: Design, found: tuple[Floats, float]) -> Fit:
    weights, strength = found
    predictions = sigmoid(model.features[:, 1:] @ weights[1:])
    return Fit(100 * float(predictions.mean()), weights, predictions, strength)


def fit(design: Design) -> tuple[Floats, float]:
    """The weights [3] at the strength that cross-validation over instructions finds best, and that strength."""
    losses = [cross_validated_loss(design, strength) for strength in STRENGTHS]
    best = float(STRENGTHS[int(np.argmin(losses))])
    return weights_of(design, best), best


def cross_validated_loss(design: Design, strength: float) -> float:
    return float(np.mean([log_loss(test, weights_of(train, strength)) for train, test in folds(design)]))


def folds(design: Design) -> Iterator[tuple[Design, Design]]:
    from sklearn.model_selection import GroupKFold

    for train, test in GroupKFold(FOLDS).split(design.features, groups=design.groups):
        yield design.pick(train), design.pick(test)


def log_loss(design: Design, weights: Floats) -> float:
    """The mean over rows by their weights, in nats."""
    logits = design.features @ weights
    losses = np.logaddexp(0, logits) - design.labels * logits
    return float(np.average(losses, weights=design.weights))


def weights_of(design: Design, strength: float) -> Floats:
    """Of the L1-penalised logistic loss. Each row counts for both outcomes, by its label."""
    features = np.concatenate([design.features, design.features])
    outcomes = np.repeat([1, 0], len(design.labels))
    weights = np.concatenate([design.weights * design.labels, design.weights * (1 - design.labels)])
    return solver(strength).fit(features, outcomes, sample_weight=weights).coef_[0]


def solver(strength: float) -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ConfigError(NEEDED) from error
    return LogisticRegression(
        solver="liblinear", l1_ratio=1, C=strength, fit_intercept=False, tol=TOLERANCE, max_iter=ITERATIONS,
        random_state=0,
    )  # fmt: skip


def bootstrap(
    comparisons: Sequence[Comparison], table: Table, found: Fit, keyed_by: Keying = "instruction", seed: int = 0
) -> Interval:
    """Over prompts: the model is fitted anew to each draw, at the strength that was found."""
    gamed = gamed_rows(table)

    def win_rate(rows: NDArray[np.intp]) -> float:
        model = model_rows([comparisons[row] for row in rows], table, keyed_by)
        return predicted(model, (weights_of(model + gamed, found.strength), found.strength)).win_rate

    return quantiles(bootstrap_values(len(comparisons), win_rate, seed, LC_RESAMPLES), PROMPTS)
