"""The interface of a world: what a comparison of methods needs of the place where they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from adaptpo.sandbox.tables.measure import Measurement
from adaptpo.sandbox.tables.row import Row


@dataclass(frozen=True)
class Score:
    """The words for the score that rows are compared by (`Measurement.true_reward`): its name, and what it is taken of
    and over."""

    name: str
    taken: str


class World(Protocol):
    """A policy and data on which methods are compared, and how a run there is measured.

    Worlds are values, and processes get copies. A world lies in `worlds/<name>` below the folder of the tables, and its
    runs lie in `runs/<name>`.
    """

    score: ClassVar[Score]
    measurement: ClassVar[type[Measurement]]
    runs_are_units: ClassVar[bool]
    """Whether several runs in a single world give an interval, which then holds for that world's prompts alone."""

    @property
    def seed(self) -> int:
        """The number of the world, and the seed of its first run."""
        ...

    @property
    def name(self) -> str:
        """The name of its folder, which other settings do not share: `prompts-3000/seed-0`."""
        ...

    @property
    def key(self) -> str:
        """The name, and what else its runs depend on."""
        ...

    def varied(self, seed: int, changes: Mapping[str, Any]) -> World:
        """The world with another seed and other settings. Raises ConfigError for impossible ones."""
        ...

    def command(self, table: str, options: str) -> str:
        """The command that gives a table in this world; `options` are those that all worlds have."""
        ...

    def build(self, out: Path, rows: Sequence[Row]) -> None:
        """Writes data, `recipe.yaml` and what else the runs of `rows` need, unless it is there.

        Raises RunError if its folder holds a world with other settings.
        """
        ...

    def assignments(self, recipe: Path, row: Row) -> tuple[str, ...]:
        """What a run of this row assigns to the world's recipe, but its seed.

        Raises ConfigError if the row's settings are invalid.
        """
        ...

    def respond(self, out: Path, run: Path) -> None:
        """Samples held-out responses of a finished run's policy, unless they are there."""
        ...

    def measure(self, out: Path, run: Path, start: Path | None) -> Measurement:
        """Measures a finished run. `start`: the run whose policy it started from; None: the world's own policy.

        Raises RunError if a file is broken.
        """
        ...


def folder_of(out: Path, world: World) -> Path:
    return out / "worlds" / world.name
