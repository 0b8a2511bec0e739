"""TERM and INT: the write in progress is finished, then the run ends; a second signal ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import _exit  # Its own: a reward function may not call it (annotation/function.py).
from typing import Any

LISTENED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end. `status` is the exit status that shells expect: 128 and its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def status_of(interruption: KeyboardInterrupt) -> int:
    return interruption.status if isinstance(interruption, Interrupted) else 128 + signal.SIGINT


class Signals:
    """Turns the first signal into `Interrupted`, as soon as the main thread writes nothing."""

    def __init__(self) -> None:
        self.writes = 0
        self.received: int | None = None
        self.waiting = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Takes the signals over for a block, if this is the main thread: another one may not."""
        own = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self._take) for number in LISTENED if own}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, _: Any) -> None:
        if self.received is not None:
            _exit(128 + number)
        self.received = number
        if not self.writes:
            raise Interrupted(number)
        self.waiting = True

    @contextmanager
    def kept_out(self) -> Iterator[None]:
        """A block that the first signal does not interrupt, unless another thread runs it."""
        own = threading.current_thread() is threading.main_thread()
        self.writes += own
        try:
            yield
        finally:
            self.writes -= own
            if self.waiting and own and not self.writes:
                self.waiting = False
                raise Interrupted(int(self.received or signal.SIGTERM))


SIGNALS = Signals()
"""Those of this process."""
