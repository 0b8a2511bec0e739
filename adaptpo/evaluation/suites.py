"""The table of suites."""

from __future__ import annotations

from collections.abc import Sequence

from adaptpo.config.base import nearest
from adaptpo.errors import ConfigError, DataError
from adaptpo.evaluation.alpaca_eval.suite import AlpacaEval
from adaptpo.evaluation.arena_hard.suite import ArenaHardV01, ArenaHardV2
from adaptpo.evaluation.mt_bench.suite import MTBench
from adaptpo.evaluation.refusal.suite import XSTest
from adaptpo.evaluation.suite import Suite
from adaptpo.types import Row

SUITES: dict[str, Suite] = {
    suite.name: suite for suite in (AlpacaEval(), ArenaHardV01(), ArenaHardV2(), MTBench(), XSTest())
}


def find_suite(name: str) -> Suite:
    """Raises ConfigError for an unknown name, with the nearest one."""
    if name not in SUITES:
        raise ConfigError(f"there is no suite '{name}'; {nearest(name, list(SUITES))}")
    return SUITES[name]


def suite_of(rows: Sequence[Row], place: str) -> Suite:
    """The suite whose verdicts these are. Raises DataError where no suite knows them, or there are none."""
    if not rows:
        raise DataError(f"{place} holds no rows; nothing can be scored")
    found = next((suite for suite in SUITES.values() if suite.fits(rows[0])), None)
    if found is None:
        raise DataError(
            f"{place}: verdicts of no suite (found {', '.join(rows[0])}); accepted are AlpacaEval's annotations, "
            "Arena-Hard's battles and model_judgment, FastChat's model_judgment, XSTest's completions"
        )
    return found
