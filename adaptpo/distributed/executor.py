"""Who computes the shards of a phase: this process, or workers that it hands them to."""

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
        """Before anything is computed. `device`: what the run computes on; `release` frees this process's hold on it.

        Raises ConfigError where the executor cannot be had."""
        ...

    def compute(self, work: Callable[[int], Result], numbers: Sequence[int]) -> Iterator[tuple[int, Result]]:
        """Each number with what `work` makes of it, as they are done. Raises what `work` raises."""
        ...

    def close(self) -> None: ...


class ThisProcess:
    """One after the other, here."""

    def start(self, device: torch.device, release: Callable[[], None]) -> None:
        pass

    def compute(self, work: Callable[[int], Result], numbers: Sequence[int]) -> Iterator[tuple[int, Result]]:
        return ((number, work(number)) for number in numbers)

    def close(self) -> None:
        pass


HERE = ThisProcess()


def executor_of(settings: ExecutorSettings) -> Executor:
    """Raises ConfigError where Ray is asked for and not installed."""
    if settings.kind == "local":
        return HERE
    try:
        from adaptpo.distributed.ray_executor import RayExecutor
    except ImportError as error:
        raise ConfigError(f"executor ray needs Ray ({error}): pip install 'adaptpo[ray]'") from error
    return RayExecutor(settings)
