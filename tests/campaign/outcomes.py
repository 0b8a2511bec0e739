"""Counts of a campaign by class and outcome, and what counts as a failure."""

from __future__ import annotations

import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from adaptpo.errors import AdaptpoError

LONGEST = 20
"""Seconds that one input may take."""
FINE = ("accepted", "refused")


class Nonsense(Exception):  # noqa: N818 - an outcome
    """An input was taken that means nothing, rows got lost, or a key was shown."""


class Hang(BaseException):
    """An input took longer than `LONGEST`."""


@dataclass
class Outcomes:
    """How each input of a class ended; `failures` has seed, class and what happened."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def take(self, kind: str, seed: int, case: Callable[[], Any]) -> None:
        started = time.perf_counter()
        outcome, problem = outcome_of(case)
        spent = time.perf_counter() - started
        self.counts[kind, outcome] += 1
        self.slowest = max(self.slowest, (spent, f"{kind} {seed}"))
        if outcome not in FINE:
            self.failures.append(f"{outcome}: {kind}, seed {seed}: {problem}")

    def show(self) -> None:
        kinds = sorted({kind for kind, _ in self.counts})
        names = sorted({outcome for _, outcome in self.counts} | set(FINE) | {"traceback", "hang", "nonsense"})
        print(f"{'class':28}", *(f"{name:>10}" for name in names))
        for kind in kinds:
            print(f"{kind:28}", *(f"{self.counts[kind, name]:10}" for name in names))
        totals = {name: sum(count for (_, outcome), count in self.counts.items() if outcome == name) for name in names}
        print(f"{'all':28}", *(f"{totals[name]:10}" for name in names))
        print(f"slowest: {self.slowest[0]:.1f} s ({self.slowest[1]})")


def outcome_of(case: Callable[[], Any]) -> tuple[str, str]:
    try:
        with at_most(LONGEST):
            case()
    except AdaptpoError as error:
        return "refused", str(error)
    except Nonsense as error:
        return "nonsense", str(error)
    except Hang:
        return "hang", f"over {LONGEST} s"
    except Exception:  # noqa: BLE001 - the campaign's subject: what is no AdaptpoError reaches a user as a traceback.
        return "traceback", traceback.format_exc()
    return "accepted", ""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def end(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
