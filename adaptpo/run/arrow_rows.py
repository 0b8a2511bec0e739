"""Rows for random access: a memory-mapped Arrow file, whose pages the system loads on demand and drops if it must."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adaptpo.errors import RunError
from adaptpo.run.files import whole_file
from adaptpo.run.lazy_sequence import Indices, as_array, batched
from adaptpo.types import Row

BATCH = 256
"""Maximum number of rows held as Python objects while a file is written."""
GROUP = 32
"""Batches per Parquet row group; the file's footer has an entry for every column of every group."""


def write_rows(path: Path, rows: Iterable[Row], schema: pa.Schema) -> MappedRows:
    """Writes the rows as they arrive, and maps the file."""
    with whole_file(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for piece in batched(rows, BATCH):
            writer.write_batch(pa.RecordBatch.from_pylist(piece, schema=schema))
    return MappedRows(path)


def write_batches(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Writes a Parquet file with no more than one row group in memory."""
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for group in batched(batches, GROUP):
            writer.write_table(pa.Table.from_batches(group, schema))


class MappedRows:
    """The rows of a file that `write_rows` wrote, by row number.

    Raises RunError if the file is missing.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise RunError(
                f"{path} is missing: the run was started by another version of adaptpo, or the file was removed; "
                "resume with that version, or choose another output_dir"
            )
        self.path = path
        self.file = pa.ipc.open_file(pa.memory_map(str(path)))
        self.size = self.file.get_batch(0).num_rows if self.file.num_record_batches else 1

    def __reduce__(self) -> tuple[type[MappedRows], tuple[Path]]:
        return MappedRows, (self.path,)

    def __len__(self) -> int:
        last = self.file.num_record_batches - 1
        return 0 if last < 0 else last * self.size + self.file.get_batch(last).num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        for number in range(self.file.num_record_batches):
            yield self.file.get_batch(number)

    def read(self, indices: Indices, columns: Sequence[str] | None = None) -> list[Row]:
        """The rows with these numbers, in this order."""
        numbers = as_array(indices)
        borders = np.flatnonzero(np.diff(numbers // self.size)) + 1
        pieces = np.split(numbers, borders) if len(numbers) else []
        return [row for piece in pieces for row in self._of_batch(piece, columns)]

    def _of_batch(self, numbers: np.ndarray, columns: Sequence[str] | None) -> list[Row]:
        batch = self.file.get_batch(int(numbers[0]) // self.size)
        if columns is not None:
            batch = batch.select(columns)
        within = numbers % self.size
        if (np.diff(within) == 1).all():
            found = batch.slice(within[0], len(within)).to_pydict()
        else:
            found = batch.take(pa.array(within)).to_pydict()
        return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
