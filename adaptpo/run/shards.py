"""Artefacts in shards: one Parquet file for each so many items, which exists whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from adaptpo.distributed.executor import HERE, Executor
from adaptpo.distributed.ranks import Ranks
from adaptpo.run.checked_files import CheckedFiles
from adaptpo.run.files import read_columns, read_rows, write_table
from adaptpo.run.manifest import MISSING
from adaptpo.run.progress import progress_bar
from adaptpo.types import Row

Item = TypeVar("Item")


class Shards(CheckedFiles):
    """The shards of a run's folder. Ranks and workers of the executor compute them; each is listed once it is there."""

    def __init__(self, path: Path, ranks: Ranks, executor: Executor) -> None:
        super().__init__(path, ranks)
        self.executor = executor

    def shards(
        self,
        folder: str,
        items: Sequence[Item],
        size: int,
        work: Callable[[Sequence[Item]], pa.Table],
        show_progress: bool = True,
        at_once: int = 1,
        by_first: bool = False,
    ) -> None:
        """Applies `work` to consecutive shards of `size` items and stores each result as one Parquet file.

        Ranks take the missing shards in turn, and the executor computes them, in this process up to `at_once` at a
        time in threads. Each is stored when it is complete. The composition of a shard depends only
        on `items` and `size`. A resumed run, or one with more ranks or workers, therefore computes each shard exactly
        like an uninterrupted run. With `by_first`, rank 0 computes all of them in its process.
        """
        starts = range(0, len(items), size)
        missing = self.ranks.on_first(lambda: self._missing(folder, len(starts)))
        own = (missing if self.ranks.is_first else []) if by_first else self.ranks.share(missing)
        executor = HERE if by_first else self.executor

        def compute(number: int) -> pa.Table:
            return work(items[starts[number] : starts[number] + size])

        prompts = {number: min(size, len(items) - starts[number]) for number in own}
        with (
            progress_bar(folder, sum(prompts.values()), "prompt", show_progress) as bar,
            closing(executor.compute(compute, own, at_once)) as results,
        ):
            for number, table in results:
                self.write_shard(folder, number, table)
                bar.update(prompts[number])
        self.ranks.wait()

    def write_shard(self, folder: str, number: int, table: pa.Table) -> None:
        """Writes a shard on any rank, and then lists it."""
        path = self._shard(folder, number)
        write_table(path, table)
        self.manifest.add(self.current, path, artefact=folder)

    def _missing(self, folder: str, count: int) -> list[int]:
        """The shards that are not there, or not as they were written. Those of an older version are listed now."""
        self.manifest.refresh()
        older, missing = self.is_older_than_manifests, []
        for number, path in enumerate(self._shard(folder, number) for number in range(count)):
            entry = self.manifest.entry(self.manifest.name(path))
            fault = MISSING if entry is None else self.manifest.fault(entry)
            if entry is None and older and path.exists():
                self.manifest.add(self.current, path, artefact=folder)
            elif fault is not None:
                missing.append(number)
                if entry is not None and fault != MISSING:
                    self.tell(entry.file, fault, "computed again")
        return missing

    def _shard(self, folder: str, number: int) -> Path:
        return self.path / folder / f"{number:05d}.parquet"

    def _shards(self, folder: str) -> list[Path]:
        """The shards that are listed, checked; those of an older version as they are in the folder."""
        self.manifest.refresh()
        listed = [self.checked(self.path / file) for file in self.manifest.artefacts.get(folder, ())]
        # By number, because beyond 100,000 shards the names do not sort alphabetically.
        return sorted(listed or (self.path / folder).glob("[0-9]*.parquet"), key=lambda path: int(path.stem))

    def read_shards(self, folder: str, columns: list[str] | None = None) -> Iterator[Row]:
        for path in self._shards(folder):
            yield from read_rows(path, columns)

    def read_shards_of(
        self, folder: str, items: Iterable[int], size: int, columns: list[str] | None = None
    ) -> Iterator[Row]:
        """Yields the rows of the shards that hold the items with these numbers."""
        for number in dict.fromkeys(int(item) // size for item in items):
            yield from read_rows(self.checked(self._shard(folder, number)), columns)

    def read_columns(self, folder: str, *names: str) -> tuple[np.ndarray, ...]:
        """Numeric columns of all shards."""
        return read_columns(self._shards(folder), *names)
