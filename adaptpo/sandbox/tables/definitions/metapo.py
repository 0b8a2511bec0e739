"""The tables on MetaPO: those of its paper, and one on its weights under wrong labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adaptpo.choices.learners.temporal.features import BASE, GRADIENT
from adaptpo.sandbox.tables.definitions.metaapo import SIMPO, SLOW_SIMPO
from adaptpo.sandbox.tables.papers import MetaPO
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.table import STANDARD, Table

# All pairs three times (the paper's Table 22): a pair seen once has no history.
EPOCHS = ("training.num_train_epochs=3", "warmup_epochs=0")
AT_ONCE = ("num_iterations=1", *EPOCHS)
# Each of the three iterations sees its third of the pairs three times: the same number of steps in total.
IN_THREE = ("num_iterations=3", *EPOCHS)

LEARNING_RATE = 3e-2
"""The default of `metapo`. Learning rates of the paper's tables are scaled by it."""
HOW = (
    "A run has about 550 steps, a tenth of the paper's 5700. MetaPO updates its weights after every fiftieth of the "
    f"steps, and its learning rate is {LEARNING_RATE:g} instead of 1e-4, at which they would move a coefficient by at "
    "most 0.01."
)

OFFLINE = tuple(name for name in STANDARD if name != "annotated")
SEPARATION = ("true_reward", "difference", "win_rate", "length_controlled", "weight_auc", "margin_auc", "seconds")


def metapo(label: str, *paper: MetaPO, **arguments: object) -> Row:
    """MetaPO with these arguments instead of its defaults."""
    given = tuple(f"method.{name}={value}" for name, value in arguments.items())
    return Row(label, ("method.name=metapo", *given, *AT_ONCE), paper=paper)


def other(label: str, method: str, *paper: MetaPO) -> Row:
    return Row(label, (f"method.name={method}", *AT_ONCE), paper=paper)


def in_world(row: Row, world: Mapping[str, Any], group: str = "") -> Row:
    return replace(row, world=world, group=group)


METHOD_ROWS = (
    other("DPO", "dpo", MetaPO("1", 47.5, 48.2), MetaPO("2", arena_hard=33.1)),
    Row("SimPO", (*SIMPO, *AT_ONCE), paper=(MetaPO("1", 47.5, 53.7), MetaPO("2", arena_hard=33.8))),
    other("FocalPO", "focalpo", MetaPO("1", 49.8, 54.7), MetaPO("2", arena_hard=34.6)),
    other("RDO", "rdo", MetaPO("3", 49.1, arena_hard=34.0)),
    metapo("MetaPO", MetaPO("1", 51.6, 56.9), MetaPO("2", arena_hard=36.2)),
)


def with_further(label: str, paper: MetaPO, *names: str) -> Row:
    """MetaPO with the six features and these."""
    return metapo(label, paper, features=f"[{', '.join((*BASE, *names))}]")


FEATURE_ROWS = (
    metapo("all features", MetaPO("6", 51.6, arena_hard=36.2), MetaPO("19", 51.6, arena_hard=36.2)),
    metapo(
        "without margin",
        MetaPO("6", 49.2, arena_hard=33.8),
        features="[volatility, volatility_ema, divergence, divergence_ema]",
    ),
    metapo(
        "without volatility",
        MetaPO("6", 48.7, arena_hard=33.1),
        features="[margin, margin_ema, divergence, divergence_ema]",
    ),
    metapo(
        "without reference",
        MetaPO("6", 50.4, arena_hard=35.3),
        features="[margin, margin_ema, volatility, volatility_ema]",
    ),
    metapo("current values alone", MetaPO("6", 48.1, arena_hard=32.6), features="[margin, volatility, divergence]"),
    with_further("and skewness", MetaPO("19", 51.7, arena_hard=36.1), "skewness"),
    with_further("and kurtosis", MetaPO("19", 51.5, arena_hard=36.0), "kurtosis"),
    with_further("and gradient norm", MetaPO("19", 51.8, arena_hard=36.3), *GRADIENT),
    with_further("and rate of change", MetaPO("19", 51.6, arena_hard=36.2), "change"),
)

INTERVAL_ROWS = (
    metapo("K = 1 (paper: 10)", MetaPO("11", 51.4, hours=6.8), meta_interval=1),
    metapo("K = 5 (paper: 50)", MetaPO("11", 51.5, hours=6.4), meta_interval=5),
    metapo("K = 10 (paper: 100)", MetaPO("11", 51.6, hours=6.3), meta_interval=10),
    metapo("K = 20 (paper: 200)", MetaPO("11", 51.3, hours=6.1), meta_interval=20),
    metapo("K = 50 (paper: 500)", MetaPO("11", 50.8, hours=6.0), meta_interval=50),
)


def at_learning_rate(label: str, share: float, paper: MetaPO, **arguments: object) -> Row:
    """MetaPO with this share of its default learning rate."""
    return metapo(label, paper, meta_learning_rate=f"{share * LEARNING_RATE:g}", **arguments)


NETWORK_ROWS = (
    metapo("linear", MetaPO("12", 51.6, hours=6.3), MetaPO("20", 51.6, arena_hard=36.2)),
    metapo("6-32-1", MetaPO("12", 51.7, hours=6.5), MetaPO("20", 51.7, arena_hard=36.0), architecture="mlp"),
    at_learning_rate("6-32-1, half the learning rate", 0.5, MetaPO("20", 51.8, arena_hard=36.3), architecture="mlp"),
    metapo("6-64-32-1", MetaPO("12", 51.5, hours=6.8), architecture="deep_mlp"),
    at_learning_rate(
        "6-64-32-1, half the learning rate", 0.5, MetaPO("20", 51.6, arena_hard=36.1), architecture="deep_mlp"
    ),
    at_learning_rate(
        "6-64-32-1, a tenth of the learning rate", 0.1, MetaPO("20", 51.5, arena_hard=35.9), architecture="deep_mlp"
    ),
    metapo("attention, two heads", MetaPO("12", 51.3, hours=6.7), architecture="attention"),
)

VALIDATION_ROWS = (
    metapo("3 %, stratified", MetaPO("13", 51.6), MetaPO("14", 51.8)),
    metapo("0.8 %", MetaPO("13", 50.3), validation_share=0.008),
    metapo("1.6 %", MetaPO("13", 50.9), validation_share=0.016),
    metapo("8 %", MetaPO("13", 51.7), validation_share=0.08),
    metapo("16 %", MetaPO("13", 51.6), validation_share=0.16),
    metapo("random", MetaPO("14", 51.6), validation_split="random"),
    metapo("last 20 %", MetaPO("14", 51.2), validation_split="last", validation_share=0.2),
)

ENTROPY = 1e-2
OBJECTIVE_ROWS = (
    metapo("loss and margin", MetaPO("15", 51.6)),
    metapo("loss alone", MetaPO("15", 50.3), margin_weight=0),
    metapo("loss and entropy", MetaPO("15", 50.8), margin_weight=0, entropy=ENTROPY),
    metapo("loss, margin and entropy", MetaPO("15", 51.4), entropy=ENTROPY),
)

SENSITIVITY_ROWS = (
    metapo("decay 0.9, lambda 0.1", MetaPO("18", 51.6)),
    metapo("decay 0.8", MetaPO("18", 51.1), decay=0.8),
    metapo("decay 0.95", MetaPO("18", 51.3), decay=0.95),
    metapo("lambda 0.05", MetaPO("18", 51.0), margin_weight=0.05),
    metapo("lambda 0.2", MetaPO("18", 51.4), margin_weight=0.2),
)

ONLINE_ROWS = (
    other("DPO", "dpo", MetaPO("21", 47.5)),
    Row("Iterative DPO", ("method.name=iterative_dpo", *IN_THREE), paper=(MetaPO("21", 50.2),)),
    metapo("MetaPO", MetaPO("21", 51.6)),
    Row(
        "Iterative DPO + MetaPO",
        ("method.name=iterative_dpo_metapo", *IN_THREE),
        paper=(MetaPO("21", 52.8),),
    ),
)

WRONG = (0.0, 0.1, 0.2, 0.4)
EARLY = {"dense_start": 0.1, "normalize_weights": "true"}
ORACLE = Row(
    "oracle: DPO on the right labels", ("method.name=dpo", "data.filter={flipped: {any_of: [false]}}", *AT_ONCE)
)


def noise_rows(share: float) -> tuple[Row, ...]:
    """The methods in worlds with this share of wrong labels; the oracle differs from DPO only where there are any."""
    rows = (
        other("DPO", "dpo"),
        other("FocalPO", "focalpo"),
        metapo("MetaPO"),
        metapo("MetaPO, early, of mean 1", **EARLY),
        metapo("MetaPO, early, of mean 1, all held-out pairs", **EARLY, validation_batch="null"),
        metapo("MetaPO, at most 2", max_weight=2),
        *([ORACLE] if share else []),
    )
    return tuple(in_world(row, {"flipped": share}, f"{100 * share:.0f} % of the offline labels wrong") for row in rows)


NOISE_ROWS = tuple(row for share in WRONG for row in noise_rows(share))

FILTER_ROWS = (
    other("DPO", "dpo", MetaPO("17", 47.5)),
    other("perplexity, best 80 %", "perplexity_filter", MetaPO("17", 48.9)),
    other("loss curriculum", "loss_curriculum", MetaPO("17", 49.2)),
    other("Selective DPO, best half", "selective_dpo"),
    other("FocalPO", "focalpo", MetaPO("17", 49.8)),
    metapo("MetaPO", MetaPO("17", 51.6)),
)


def held_out_wrong(label: str, share: float, paper: MetaPO) -> Row:
    """MetaPO on held-out pairs of which this share has a wrong label, and the other pairs 10 %, as in all worlds."""
    row = metapo(label, paper, validation_split="last", validation_batch="null")
    return in_world(row, {"last_flipped": share})


HELD_OUT_ROWS = (
    held_out_wrong("all held-out labels right", 0.0, MetaPO("14", 51.6)),
    held_out_wrong("10 % wrong", 0.1, MetaPO("14", 50.9)),
    held_out_wrong("20 % wrong", 0.2, MetaPO("14", 49.8)),
    held_out_wrong("40 % wrong", 0.4, MetaPO("14")),
)


def table(
    title: str, rows: tuple[Row, ...], reference: str, note: str = "", columns: tuple[str, ...] = OFFLINE
) -> Table:
    """All rows take as many steps as three epochs over all pairs, also those that hold out or drop some."""
    matched = tuple(replace(row, epochs=3.0) for row in rows)
    return Table(title, matched, reference, " ".join(filter(None, (HOW, note))), columns, MetaPO)


TABLES: dict[str, Table] = {
    "metapo": table(
        "Weights of pairs (the MetaPO paper's Tables 1 to 3)",
        METHOD_ROWS,
        "FocalPO",
        f"RDO trains on fresh pairs, whose rewards are known, and the others on the offline ones. {SLOW_SIMPO}",
        STANDARD,
    ),
    "metapo-features": table(
        "MetaPO's features (its Tables 6 and 19)",
        FEATURE_ROWS,
        "all features",
        "The gradient norm, current and smoothed, is that of the language-model head's weight; the paper does not say "
        "which one it uses.",
    ),
    "metapo-interval": table("Steps between updates of MetaPO (its Table 11)", INTERVAL_ROWS, "K = 10 (paper: 100)"),
    "metapo-network": table("MetaPO's weighting network (its Tables 12 and 20)", NETWORK_ROWS, "linear"),
    "metapo-validation": table(
        "MetaPO's held-out pairs (its Tables 13 and 14)",
        VALIDATION_ROWS,
        "3 %, stratified",
        "As in the other pairs, a tenth of the held-out labels are wrong. `metapo-held-out` varies their share.",
    ),
    "metapo-objective": table(
        "MetaPO's objective on held-out pairs (its Table 15)",
        OBJECTIVE_ROWS,
        "loss and margin",
        f"The entropy has weight {ENTROPY:g}; the paper gives no number.",
    ),
    "metapo-sensitivity": table("MetaPO's decay and lambda (its Table 18)", SENSITIVITY_ROWS, "decay 0.9, lambda 0.1"),
    "metapo-online": table(
        "MetaPO with fresh pairs (its Table 21)",
        ONLINE_ROWS,
        "Iterative DPO",
        "Iterative rows have three iterations of a third of the prompts, the others one; all take equally many steps.",
        STANDARD,
    ),
    "metapo-noise": table(
        "Wrong labels and the weights of their pairs",
        NOISE_ROWS,
        "DPO",
        "The oracle knows which labels are wrong and trains on the other pairs alone. Early: an update after each "
        "of the first tenth of the steps.",
        SEPARATION,
    ),
    "metapo-filters": table(
        "Static filters (the MetaPO paper's Table 17)",
        FILTER_ROWS,
        "DPO",
    ),
    "metapo-held-out": table(
        "Wrong labels in MetaPO's held-out pairs alone (its Table 14)",
        HELD_OUT_ROWS,
        "all held-out labels right",
        "The last 3 % of the pairs are held out, and all of them seen in each update. 10 % of the other labels are "
        "wrong in every row.",
        SEPARATION,
    ),
}
