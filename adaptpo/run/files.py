"""Files that either exist whole or not at all: write beside the target, flush to disk, rename."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adaptpo.config.secrets import without_known
from adaptpo.errors import MachineError, RunError
from adaptpo.run.signals import SIGNALS

TEMPORARY = ".writing-"
REPLACED = ".replaced-"
FULL_DISK_MESSAGES = ("No space left on device", "unexpected pos", "file write failed")
"""Messages of the operating system, and of `torch.save`, which hides the system's message."""
BLOCK = 2**16
"""Bytes read at a time in the backward search for a line break."""


def flush(path: Path) -> None:
    """Forces a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a folder without write permission into a RunError that names the remedy.

    Libraries wrap the operating system's error in their own types, so the message is checked as well.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full_disk(path) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RunError(f"cannot write {path}: {error.strerror}; choose an output_dir you may write to") from error
        raise
    except Exception as error:
        if any(message in str(error) for message in FULL_DISK_MESSAGES):
            raise full_disk(path) from error
        raise


def full_disk(path: Path) -> MachineError:
    return MachineError(
        f"the disk is full: {path} was not written, and nothing half-written counts as done. "
        "Free some space and start the same command again; it resumes where it stopped."
    )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write; it becomes `path` when the block ends without an error."""
    temporary = path.with_name(TEMPORARY + path.name)
    with SIGNALS.kept_out(), disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder to fill; it becomes `path` when the block ends without an error."""
    temporary, replaced = path.with_name(TEMPORARY + path.name), path.with_name(REPLACED + path.name)
    shutil.rmtree(temporary, ignore_errors=True)
    with SIGNALS.kept_out(), disk_errors(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            flush_tree(temporary)
            shutil.rmtree(replaced, ignore_errors=True)
            if path.exists():
                path.replace(replaced)  # A kill while deleting in place would leave half of the old folder.
            temporary.replace(path)
            flush(path.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def flush_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(without_known(text), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_table(path: Path, table: pa.Table) -> None:
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def read_columns(paths: Path | Sequence[Path], *names: str) -> tuple[np.ndarray, ...]:
    """Numeric columns of one Parquet file, or of several concatenated ones."""
    files = [paths] if isinstance(paths, Path) else paths
    if not files:
        return tuple(np.zeros(0) for _ in names)
    whole = pa.concat_tables(pq.read_table(path, columns=list(names)) for path in files)
    return tuple(whole[name].to_numpy() for name in names)


def read_rows(
    path: Path, columns: list[str] | None = None, where: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The rows of a Parquet file, or only those whose columns have the values in `where`."""
    filters = [(name, "=", value) for name, value in where.items()] if where else None
    return pq.read_table(path, columns=columns, filters=filters).to_pylist()


def cut_torn_line(file: BinaryIO) -> None:
    """Removes what follows the last line break and leaves the file positioned at its end."""
    size = end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n") + 1
        end = start + found
        if found:
            break
    if end < size:
        file.truncate(end)
    file.seek(end)


class JsonLines:
    """An append-only log that survives a kill: a torn last line is dropped, and records can be discarded.

    Several processes may append at the same time; only one may discard, and only while none appends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, *records: dict[str, Any]) -> None:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with SIGNALS.kept_out(), disk_errors(self.path), self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            cut_torn_line(file)
            file.write(without_known(text).encode())

    def flush(self) -> None:
        """Forces what was appended to disk."""
        if self.path.exists():
            flush(self.path)

    def read(self) -> list[dict[str, Any]]:
        return list(self.records())

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields the records one by one. Raises RunError for a damaged one."""
        return map(self._record, self._lines())

    def _record(self, line: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{self.path} holds a damaged record ({error}): {line[:60]!r}. Restore the file, or remove that line"
            ) from error

    def salvage(self) -> int:
        """Removes the damaged records, and returns their number."""
        lost = sum(not self._is_sound(line) for line in self._lines())
        if lost:
            with whole_file(self.path) as temporary, temporary.open("wb") as file:
                file.writelines(line for line in self._lines() if self._is_sound(line))
        return lost

    def _is_sound(self, line: bytes) -> bool:
        try:
            self._record(line)
        except RunError:
            return False
        return True

    def _lines(self) -> Iterator[bytes]:
        if self.path.exists():
            with self.path.open("rb") as file:  # In binary mode, because a line may be torn inside a character.
                yield from (line for line in file if line.endswith(b"\n"))

    def discard(self, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Removes the records for which `unwanted` is true, and a torn last line."""
        if self.path.exists():
            with whole_file(self.path) as temporary, temporary.open("wb") as file:
                file.writelines(line for line in self._lines() if not unwanted(self._record(line)))
