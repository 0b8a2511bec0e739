"""The key `executor` of a recipe: which processes compute the shards of a phase."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from adaptpo.config.base import Settings


class ExecutorSettings(Settings):
    """Settings of the executor. `kind`: `local` is this process; `ray` sends every phase's shards to Ray Data workers.

    `address`: None starts Ray on this machine for this run only; `auto` or HOST:PORT joins a cluster. `workers`: None
    starts as many as fit. A worker takes one GPU, or `num_cpus` cores if the run computes on CPUs.
    """

    kind: Literal["local", "ray"] = "local"
    address: str | None = Field(None, pattern=r"^(auto|[^/\s]+:\d+)$")
    workers: int | None = Field(None, gt=0)
    num_cpus: int = Field(1, gt=0)

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
