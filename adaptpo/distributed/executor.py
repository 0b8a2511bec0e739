"""Executors, which compute the shards of a phase in this process or on workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Protocol, TypeVar

from adaptpo.errors import ConfigError

if TYPE_CHECKING:
    import torch
from adaptpo.config.executor import ExecutorSettings

Result = TypeVar("Result")


class Executor(Protocol):
    def start(self, device: torch.device, release: Callable[[], None]) -> None:
        """Prepares the executor. `device` is what the run computes on; `release` frees what this process holds there.

        Raises ConfigError if the executor is not available."""
        ...

    def compute(
        self, work: Callable[[int], Result], numbers: Sequence[int], at_once: int = 1
    ) -> Generator[tuple[int, Result]]:
        """Yields each number with the result of `work`, as they finish. Raises what `work` raises.

        `at_once`: how many a process without workers computes at a time, in threads; for work that waits for others."""
        ...

    def close(self) -> None: ...


class ThisProcess:
    """Computes shards in this process, one after the other or in threads."""

    def start(self, device: torch.device, release: Callable[[], None]) -> None:
        pass

    def compute(
        self, work: Callable[[int], Result], numbers: Sequence[int], at_once: int = 1
    ) -> Generator[tuple[int, Result]]:
        return in_threads(work, numbers, at_once) if at_once > 1 else ((number, work(number)) for number in numbers)

    def close(self) -> None:
        pass


def in_threads(work: Callable[[int], Result], numbers: Sequence[int], at_once: int) -> Generator[tuple[int, Result]]:
    """Yields each number with its result, as they finish. After a failure nothing new begins, what is in progress is
    still yielded, and then the failure is raised."""
    waiting, running = deque(numbers), dict[Future[Result], int]()
    failures: list[BaseException] = []
    pool = ThreadPoolExecutor(at_once)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number = waiting.popleft()
                running[pool.submit(work, number)] = number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                if failure := future.exception():
                    failures.append(failure)
                    waiting.clear()
                else:
                    yield number, future.result()
        for failure in failures:
            raise failure
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


HERE = ThisProcess()


def executor_of(settings: ExecutorSettings) -> Executor:
    """The executor of these settings. Raises ConfigError if Ray is requested but not installed."""
    if settings.kind == "local":
        return HERE
    try:
        from adaptpo.distributed.ray_executor import RayExecutor
    except ImportError as error:
        raise ConfigError(f"executor ray needs Ray ({error}): pip install 'adaptpo[ray]'") from error
    return RayExecutor(settings)
