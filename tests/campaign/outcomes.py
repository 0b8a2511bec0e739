"""Counts of a campaign by class and outcome, and what counts as a failure."""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptpo.errors import AdaptpoError

LONGEST = 20
"""Seconds of CPU time that one input may take."""
FINE = ("accepted", "refused", "the same")
OUTCOMES = (*FINE, "differs", "nonsense", "traceback", "hang")


class Nonsense(Exception):  # noqa: N818 - an outcome
    """An input was taken that means nothing, rows got lost, or a key was shown."""


class Hang(BaseException):
    """An input took longer than `LONGEST`."""


@dataclass
class Outcomes:
    """How each input of a class ended; `failures` has seed, class and what happened. `ended`: how often runs of a class
    were ended on the way."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    log: Path | None = None
    """A file that gets a line about each case as it ends: its class, seed, outcome, and how often it was ended."""

    def take(self, kind: str, seed: int, case: Callable[[], Any]) -> None:
        """Runs a case, which returns how often it ended a run, if it did that, or None."""
        started = time.process_time()
        outcome, found = outcome_of(case)
        self.slowest = max(self.slowest, (time.process_time() - started, f"{kind} {seed}"))
        self.counts[kind, outcome] += 1
        if outcome not in FINE:
            self.failures.append(f"{outcome}: {kind}, seed {seed}: {found}")
        elif isinstance(found, int):
            self.ended[kind] += found
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(json.dumps([kind, seed, outcome, found]) + "\n")

    def add(self, other: Outcomes) -> None:
        self.counts += other.counts
        self.ended += other.ended
        self.failures += other.failures
        self.slowest = max(self.slowest, other.slowest)

    def show(self) -> None:
        kinds = sorted({kind for kind, _ in self.counts})
        names = [name for name in OUTCOMES if name in FINE or any(self.counts[kind, name] for kind in kinds)]
        print(f"{'class':28}", *(f"{name:>10}" for name in names), f"{'ended':>10}")
        for kind in kinds:
            print(f"{kind:28}", *(f"{self.counts[kind, name]:10}" for name in names), f"{self.ended[kind] or '':>10}")
        totals = [sum(self.counts[kind, name] for kind in kinds) for name in names]
        print(f"{'all':28}", *(f"{total:10}" for total in totals), f"{self.ended.total() or '':>10}")
        print(f"longest in this process: {self.slowest[0]:.1f} s ({self.slowest[1]})")


def outcome_of(case: Callable[[], Any]) -> tuple[str, Any]:
    try:
        with at_most(LONGEST):
            found = case()
    except AdaptpoError as error:
        return "refused", str(error)
    except Nonsense as error:
        return "nonsense", str(error)
    except AssertionError as error:
        return "differs", str(error)[:500]
    except Hang:
        return "hang", f"over {LONGEST} s"
    except Exception:  # noqa: BLE001 - the campaign's subject: what is no AdaptpoError reaches a user as a traceback.
        return "traceback", traceback.format_exc()
    return ("accepted", "") if found is None else ("the same", found)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raises Hang after these seconds of this process's CPU time, or thirty times as many by the clock."""

    def end(*_: Any) -> None:
        raise Hang

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 30 * seconds)}
    before = {number: signal.signal(number, end) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])
