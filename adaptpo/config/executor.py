"""The key `executor` of a recipe: which processes compute the shards of a phase."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from adaptpo.config.base import Settings
from adaptpo.config.numbers import Count


class ExecutorSettings(Settings):
    """What computes the shards of a phase."""

    kind: Literal["local", "ray"] = "local"
    """`local` is this process; `ray` sends every phase's shards to Ray workers."""
    address: str | None = Field(None, pattern=r"^(auto|[^/\s]+:\d+)$")
    """`auto` or HOST:PORT joins a Ray cluster; null starts Ray on this machine for this run only."""
    workers: Count | None = None
    """Number of Ray workers; null starts as many as fit. A worker takes one GPU if the run computes on GPUs."""
    num_cpus: Count = 1
    """Cores of one Ray worker."""

    @property
    def cores(self) -> int | None:
        """The cores of all workers together, if their number is set."""
        return self.workers * self.num_cpus if self.workers else None

    @model_validator(mode="after")
    def _keys_are_read(self) -> ExecutorSettings:
        """Refuses keys that the executor would not read."""
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if self.kind == "local" and changed:
            raise ValueError(f"{changed[0]} is read only by executor ray; set kind to ray")
        return self
