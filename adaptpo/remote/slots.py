"""A limit on requests in progress that holds across threads, each with an event loop of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from threading import Lock


class Slots:
    """At most `count` holders of `async with slots` at a time, served in the order in which they came."""

    def __init__(self, count: int) -> None:
        self.free = count
        self.waiting = deque[Future[None]]()
        self.lock = Lock()

    async def __aenter__(self) -> None:
        if (turn := self._turn()) is not None:
            await asyncio.wrap_future(turn)

    def _turn(self) -> Future[None] | None:
        """None if a slot is free, which is taken; otherwise what ends when one is handed over."""
        with self.lock:
            if self.free:
                self.free -= 1
                return None
            turn = Future[None]()
            self.waiting.append(turn)
            return turn

    async def __aexit__(self, *_: object) -> None:
        with self.lock:
            while self.waiting:
                turn = self.waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self.free += 1
