"""The numbers of AlpacaEval 2."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from adaptpo.errors import DataError
from adaptpo.evaluation.alpaca_eval.length_control import (
    Fit,
    Keying,
    Table,
    bootstrap,
    length_controlled,
)
from adaptpo.evaluation.alpaca_eval.preference import EQUAL
from adaptpo.evaluation.alpaca_eval.records import NO_PREFERENCE, Comparison, preferences, valid
from adaptpo.evaluation.intervals import Floats, Interval, bootstrap_mean
from adaptpo.evaluation.result import UNKNOWN, Number, Origin, PromptScore, Result

SUITE = "AlpacaEval 2"
NO_TABLE = (
    "no length-controlled win rate: name AlpacaEval's length_control.csv with --length-control, and the baseline's "
    "outputs with --baseline"
)
NO_LENGTHS = "no length-controlled win rate: the lengths of the outputs are not known; name --baseline"
DISCRETE = "verdicts rounded to win, tie and loss: for judges without log-probs"
TABLE_BASELINE = "gpt41106preview"
OTHER_BASELINE = (
    "length control's difficulties were learned against gpt4_1106_preview, and the baseline is {}: take the "
    "length-controlled rate with care, and compare it with rates over the same baseline alone"
)
BY_ROW = "difficulty taken by row position, as in publications; it is another instruction's where records are missing"


def score(
    comparisons: Sequence[Comparison], origin: Origin, table: Table | None = None, keyed_by: Keying = "instruction"
) -> Result:
    """Win rate, discrete win rate, and with a table the length-controlled one, in percent.

    Raises DataError where no verdict is valid, or length control does not apply.
    """
    found = valid(comparisons)
    if len(found) < 2:
        raise DataError(f"{len(found)} of {len(comparisons)} comparisons are valid; two are needed to say anything")
    wins = preferences(found) - 1
    numbers = [win_rate(wins), standard_error(wins), discrete(wins)]
    controlled = control(found, table, keyed_by)
    missing = [] if controlled else [NO_TABLE if table is None else NO_LENGTHS]
    keys = [one.instruction for one in found]
    return Result(
        suite=SUITE,
        origin=origin,
        n=len(found),
        invalid=Counter(one.problem or NO_PREFERENCE for one in comparisons if one.preference is None),
        numbers=[*controlled, *numbers, *lengths(found)],
        scores=[PromptScore(key, 100 * win) for key, win in zip(keys, wins.tolist(), strict=True)],
        warnings=[*missing, *(beware(origin, keyed_by) if controlled else [])],
        details={"ties": int((wins == EQUAL - 1).sum())},
    )


def beware(origin: Origin, keyed_by: Keying) -> list[str]:
    """What makes a length-controlled rate another one than the published."""
    name = re.sub(r"[^a-z0-9]", "", origin.baseline.lower())
    other = [OTHER_BASELINE.format(origin.baseline)] if name not in (UNKNOWN, TABLE_BASELINE) else []
    return other + ([BY_ROW] if keyed_by == "row" else [])


def win_rate(wins: Floats) -> Number:
    return Number("win rate", 100 * float(wins.mean()), percent(bootstrap_mean(wins)))


def standard_error(wins: Floats) -> Number:
    """Of the win rate, in points."""
    value = 100 * float(wins.std(ddof=1)) / len(wins) ** 0.5
    return Number("standard error", value, note="of the win rate, sd with ddof 1")


def discrete(wins: Floats) -> Number:
    rounded = np.where(wins > 0.5, 1.0, np.where(wins < 0.5, 0.0, 0.5))
    return Number("discrete win rate", 100 * float(rounded.mean()), percent(bootstrap_mean(rounded)), DISCRETE)


def percent(interval: Interval) -> Interval:
    deviation = None if interval.deviation is None else 100 * interval.deviation
    return Interval(100 * interval.low, 100 * interval.high, interval.kind, interval.level, deviation)


def control(found: Sequence[Comparison], table: Table | None, keyed_by: Keying) -> list[Number]:
    if table is None or all(one.model_length is None or one.baseline_length is None for one in found):
        return []
    fit = length_controlled(found, table, keyed_by)
    return [
        Number("length-controlled win rate", fit.win_rate, bootstrap(found, table, fit, keyed_by)),
        Number("lc_standard_error", fit.published_error, note=published_error_note(fit)),
    ]


def published_error_note(fit: Fit) -> str:
    return f"as AlpacaEval publishes it: spread of the predictions, no sampling error; penalty's C {fit.strength:.4g}"


def lengths(found: Sequence[Comparison]) -> list[Number]:
    known = [one.model_length for one in found if one.model_length is not None]
    return [Number("mean length", float(np.mean(known)), note="characters of the model's outputs")] if known else []
