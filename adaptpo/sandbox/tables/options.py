"""What is asked of a table: where it runs, how often, and where it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaptpo.errors import ConfigError
from adaptpo.sandbox.tables.statistics import Unit
from adaptpo.sandbox.tables.world import World


@dataclass(frozen=True)
class Options:
    """`seeds`: number of worlds, with seeds from `first`, all as `world` otherwise. `runs`: runs of each row in each
    world, with seeds of their own. `methods`, `labels`: only rows of these methods, with these labels. `jobs`: number
    of parallel processes; with 0 nothing is run, and the table shows what has finished. `docs`: a Markdown file to
    write the table's section to. `known`: JSON files of tables, whose runs are not repeated."""

    world: World
    seeds: int
    out: Path
    runs: int = 1
    first: int = 0
    methods: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    jobs: int = 1
    docs: Path | None = None
    known: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if min(self.seeds, self.runs) < 1 or min(self.first, self.jobs) < 0:
            raise ConfigError("--seeds and --runs must be at least 1, and --first and --jobs at least 0")

    @property
    def worlds(self) -> range:
        return range(self.first, self.first + self.seeds)

    @property
    def places(self) -> int:
        """Number of runs that each row should have, over all worlds."""
        return self.seeds * self.runs

    @property
    def unit(self) -> Unit:
        """What the table's intervals are between."""
        return "runs" if self.seeds == 1 and self.world.runs_are_units else "worlds"

    def command(self, name: str) -> str:
        """The command that gives the same numbers, without options for where to write them."""
        methods = f" --methods {','.join(self.methods)}" if self.methods is not None else ""
        labels = f" --rows '{';'.join(self.labels)}'" if self.labels is not None else ""
        first = f" --first {self.first}" if self.first else ""
        runs = f" --runs {self.runs}" if self.runs > 1 else ""
        return self.world.command(name, f"--seeds {self.seeds}{first}{runs}{methods}{labels}")
