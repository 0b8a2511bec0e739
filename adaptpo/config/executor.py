"""The key `executor` of a recipe: which processes compute the shards of a phase."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from adaptpo.config.base import Settings

if TYPE_CHECKING:
    pass


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
