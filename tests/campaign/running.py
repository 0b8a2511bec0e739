"""`python -m tests.campaign`: everything that can go wrong, drawn at random for some minutes.

Recipes, rows and files, reward functions and servers; runs of several kinds that are killed, or get signals, and
resumed in the same or in another environment; two processes at once. (`python -m tests.campaign.corruption` damages
files.) Prints counts by class and outcome, and the seed of each failure: `--only CLASS --first SEED --count 1` repeats
it. Exit status 1 if there are failures.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.campaign import annotators, recipes, rows
from tests.campaign.environments import another_environment
from tests.campaign.kills import KINDS, disturbed, once_more, two_at_once
from tests.campaign.outcomes import Outcomes

Case = Callable[[random.Random, Path], Any]
Classes = Mapping[str, tuple[float, Case]]


def whole_runs() -> dict[str, tuple[float, Case]]:
    """Each of these takes seconds, those of inputs milliseconds."""
    kills = {f"kill: {name}": (8.0, partial(disturbed, name, "kill")) for name in KINDS}
    signals = {f"signal: {how}": (3.0, partial(disturbed, "plain", how)) for how in ("TERM", "INT", "TERM twice")}
    straight = {f"straight: {name}": (2.0, partial(once_more, name)) for name in ("plain", "two threads")}
    return kills | signals | straight | {"two at once": (3.0, two_at_once), "environment": (1.0, another_environment)}


def all_classes() -> Classes:
    inputs = [*recipes.CLASSES.items(), *rows.CLASSES.items(), *annotators.CLASSES.items()]
    return {name: (50.0 * weight, case) for name, (weight, case) in inputs} | whole_runs()


def campaign(classes: Classes, seeds: Any, outcomes: Outcomes, folder: Path, minutes: float = 1e6) -> None:
    """Runs the cases with these seeds until the time is over; a case's seed also draws its class."""
    names, weights = list(classes), [weight for weight, _ in classes.values()]
    end = time.monotonic() + 60 * minutes
    for seed in seeds:
        if time.monotonic() > end:
            return
        rng = random.Random(seed)
        (name,) = rng.choices(names, weights)
        outcomes.take(name, seed, partial(classes[name][1], rng, folder))


def job(number: int, options: argparse.Namespace) -> Outcomes:
    outcomes = Outcomes(log=options.log)
    seeds = range(options.first + number, options.first + options.count, options.jobs)
    with TemporaryDirectory() as folder:
        campaign(chosen(options.only), seeds, outcomes, Path(folder), options.minutes)
    return outcomes


def chosen(only: str | None) -> Classes:
    found = {name: entry for name, entry in all_classes().items() if only is None or name.startswith(only)}
    if not found:
        sys.exit(f"no class begins with '{only}'; there are {', '.join(all_classes())}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="begin no case after this time (default: 10)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run cases (default: 1)")
    parser.add_argument("--first", type=int, default=0, help="first seed (default: 0)")
    parser.add_argument("--count", type=int, default=10**9, help="number of cases (default: as many as fit)")
    parser.add_argument("--log", type=Path, help="add a line about each case to this file, as it ends")
    parser.add_argument("--only", metavar="CLASS", help="classes that begin with this alone")
    options = parser.parse_args()
    chosen(options.only)
    outcomes = Outcomes()
    with ProcessPoolExecutor(options.jobs, get_context("fork")) as pool:
        for found in pool.map(partial(job, options=options), range(options.jobs)):
            outcomes.add(found)
    outcomes.show()
    for failure in outcomes.failures[:20]:
        print(failure, file=sys.stderr)
    return 1 if outcomes.failures else 0
