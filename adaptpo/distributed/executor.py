"""Executors, which compute the shards of a phase in this process or on workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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

    def compute(self, work: Callable[[int], Result], numbers: Sequence[int]) -> Iterator[tuple[int, Result]]:
        """Yields each number with the result of `work`, as they finish. Raises what `work` raises."""
        ...

    def close(self) -> None: ...


class ThisProcess:
    """Computes shards one after the other in this process."""

    def start(self, device: torch.device, release: Callable[[], None]) -> None:
        pass

    def compute(self, work: Callable[[int], Result], numbers: Sequence[int]) -> Iterator[tuple[int, Result]]:
        return ((number, work(number)) for number in numbers)

    def close(self) -> None:
        pass


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
