"""A SQLite file that keeps whatever was committed: records that cost people's time or money."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adaptpo.errors import RunError
from adaptpo.run.file_locks import is_across_machines, refuse_without_locks
from adaptpo.run.files import disk_errors, full_disk
from adaptpo.run.signals import SIGNALS
from adaptpo.types import Row

IN_MEMORY = Path(":memory:")

BUSY_SECONDS = 60.0
"""How long a write waits for another process to finish its own."""
NO_DATABASE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
NOT_WRITABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)


class Database:
    """One SQLite file, for any number of threads and processes; at `IN_MEMORY`, for this process alone.

    A transaction that returned is on disk: it survives `kill -9` and a power failure. One that did not return has left
    nothing. Write-ahead logging needs shared memory; on a file system that several machines mount, writers wait for one
    another instead.

    Raises RunError when the file cannot be opened, read or written, and on a file system whose locks do not hold.
    """

    def __init__(self, path: Path, schema: str) -> None:
        """`schema`: statements that may run again on an existing file (`CREATE TABLE IF NOT EXISTS`)."""
        self.path = path
        self._lock = threading.RLock()
        with database_errors(path):
            if path != IN_MEMORY:
                path.parent.mkdir(parents=True, exist_ok=True)
                refuse_without_locks(path.parent)
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level="IMMEDIATE", check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._set_journal("DELETE" if is_across_machines(path.parent) else "WAL")
            # FULL flushes the log at every commit; NORMAL would lose the last ones in a power failure.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(schema)

    def _set_journal(self, mode: str) -> None:
        """SQLite does not wait for another process that is doing the same."""
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute(f"PRAGMA journal_mode = {mode}")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block's writes are on disk when it ends; none of them if it raises."""
        with SIGNALS.kept_out(), self._lock, database_errors(self.path), self._connection:
            yield self._connection

    def write(self, statement: str, *values: Any) -> int:
        """Run one statement in a transaction of its own; returns how many rows it changed."""
        with self.transaction() as connection:
            return connection.execute(statement, values).rowcount

    def rows(self, query: str, *values: Any) -> list[Row]:
        with self._lock, database_errors(self.path):
            return [dict(row) for row in self._connection.execute(query, values)]

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite raises about the file into a RunError that names the remedy."""
    try:
        with disk_errors(path):
            yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise  # A mistake of the caller, not of the file.
    except sqlite3.DatabaseError as error:
        raise explained(path, error) from error


def explained(path: Path, error: sqlite3.DatabaseError) -> RunError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # The low byte is the primary code.
    if code == sqlite3.SQLITE_FULL:
        return full_disk(path)
    if code == sqlite3.SQLITE_BUSY:
        return RunError(f"another process has held {path} for {BUSY_SECONDS:.0f} s; end it and start again")
    if code in NO_DATABASE:
        return RunError(f"{path} is damaged or no database ({error}); restore it, or choose another folder")
    if code in NOT_WRITABLE:
        return RunError(f"cannot write {path}: {error}; choose a folder you may write to")
    return RunError(f"{path}: {error}; it must lie on a local disk and come from this version of adaptpo")
