"""`python -m tests.campaign.inputs`: recipes, rows and files with faults, in process, each from its own seed.

Prints counts by class and outcome. An input is accepted or refused with a message; anything else is a failure, whose
seed is printed: `--only CLASS --first SEED --count 1` repeats it. Exit status 1 if there are failures.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.campaign import recipes, rows
from tests.campaign.outcomes import Outcomes

Case = Callable[[random.Random, Path], None]
Classes = Mapping[str, tuple[int, Case]]


def campaign(classes: Classes, count: int, outcomes: Outcomes, first: int = 0) -> None:
    """Runs the cases with the seeds from `first` on; a case's seed also draws its class."""
    names, weights = list(classes), [weight for weight, _ in classes.values()]
    with TemporaryDirectory() as folder:
        for seed in range(first, first + count):
            rng = random.Random(seed)
            (name,) = rng.choices(names, weights)
            outcomes.take(name, seed, lambda name=name, rng=rng: classes[name][1](rng, Path(folder)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="first seed (default: 0)")
    parser.add_argument("--only", help="this class alone")
    options = parser.parse_args()
    outcomes = Outcomes()
    for classes, count in ((recipes.CLASSES, options.recipes), (rows.CLASSES, options.rows)):
        if options.only is None:
            campaign(classes, count, outcomes, options.first)
        elif options.only in classes:
            campaign({options.only: classes[options.only]}, count, outcomes, options.first)
    outcomes.show()
    for failure in outcomes.failures[:20]:
        print(failure, file=sys.stderr)
    return 1 if outcomes.failures else 0


if __name__ == "__main__":
    sys.exit(main())
