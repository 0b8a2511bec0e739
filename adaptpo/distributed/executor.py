"""Who computes the shards of a phase: this process, or workers that it hands them to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from pydantic import Field, model_validator

from adaptpo.config.base import Settings
from adaptpo.errors import ConfigError

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")


class ExecutorSettings(Settings):
    """`kind`: `local` is this process; `ray` hands the shards of every phase to workers of Ray Data.

    `address`: None starts Ray on this machine, for the run alone; `auto` or HOST:PORT joins a cluster. `workers`: None
    takes as many as there is room for. A worker takes one GPU, or `num_cpus` cores where the run computes on CPUs.
    """

    kind: Literal["local", "ray"] = "local"
    address: str | None = Field(None, pattern=r"^(auto|[^/\s]+:\d+)$")
    workers: int | None = Field(None, gt=0)
    num_cpus: int = Field(1, gt=0)

    @property
    def cores(self) -> int | None:
        """Of all workers together, where their number is given."""
        return self.workers * self.num_cpus if self.workers else None

    @model_validator(mode="after")
    def _keys_are_read(self) -> ExecutorSettings:
        """A key that the executor would not read is a mistake."""
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if self.kind == "local" and changed:
            raise ValueError(f"{changed[0]} is read by executor ray alone; set kind to ray")
        return self


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
