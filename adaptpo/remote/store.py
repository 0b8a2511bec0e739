"""A store of paid answers, keyed by the content of the question."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adaptpo.config.secrets import without_known
from adaptpo.errors import RunError
from adaptpo.run.database import IN_MEMORY, Database
from adaptpo.run.lazy_sequence import batched

Json = Any
"""A value as `json.loads` returns it."""
FILE, OLD_FILE, OLD_LOCK = "answers.sqlite", "answers.jsonl", "lock"
SCHEMA = "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL, seal BLOB NOT NULL)"
KEEP = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)"
TOGETHER = 500
"""Keys of one query, and records of one piece of a migration."""


def content_key(*parts: Json) -> str:
    """A hash of the content that is the same in every process."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerStore:
    """Answers by key in `FOLDER/answers.sqlite`, or only in memory without a folder.

    Keys are hexadecimal, as `content_key` makes them. Any number of processes may share the folder. An answer that was
    added is on disk; memory does not grow with their number. A record whose bits have changed counts as none. Answers
    of the older format, `answers.jsonl`, move into the database when it is opened.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        return IN_MEMORY if self.folder is None else self.folder / FILE

    @cached_property
    def database(self) -> Database:
        try:
            database = Database(self.path, SCHEMA)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error}; choose another folder for annotation_cache") from error
        if self.folder is not None and (self.folder / OLD_FILE).exists():
            migrate(self.folder, database)
        return database

    def find(self, keys: Iterable[str]) -> dict[str, Json]:
        """The stored answers to these keys."""
        return {key: answer for piece in batched(dict.fromkeys(keys), TOGETHER) for key, answer in self._stored(piece)}

    def _stored(self, keys: list[str]) -> Iterator[tuple[str, Json]]:
        query = f"SELECT * FROM answers WHERE key IN ({', '.join('?' * len(keys))})"
        for row in self.database.rows(query, *map(bytes.fromhex, keys)):
            with suppress(ValueError):  # No JSON: it counts as none.
                if row["seal"] == seal(row["key"], row["answer"]):
                    yield row["key"].hex(), json.loads(row["answer"])

    def add(self, answers: Mapping[str, Json]) -> None:
        """Keeps answers by key, all or none of them; new ones replace old ones."""
        records = [record(key, answer) for key, answer in answers.items()]
        with self.database.transaction() as connection:
            connection.executemany(KEEP, records)


def record(key: str, answer: Json) -> tuple[bytes, str, bytes]:
    text = without_known(json.dumps(answer, ensure_ascii=True))  # Half of a surrogate pair stays an escape.
    return bytes.fromhex(key), text, seal(bytes.fromhex(key), text)


def seal(key: bytes, answer: str) -> bytes:
    """A checksum of a record."""
    return hashlib.blake2b(key + answer.encode(errors="surrogatepass"), digest_size=8).digest()


def migrate(folder: Path, database: Database) -> None:
    """Moves the answers of an older version into the database, and says so. A later line counts more than an earlier
    one with its key; a line that cannot be read is left out and counted."""
    old = folder / OLD_FILE
    unread, moved = [0], 0
    with (folder / OLD_LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not old.exists():
            return  # Another process was faster.
        with old.open("rb") as lines, database.transaction() as connection:
            for piece in batched(old_records(lines, unread), TOGETHER):
                connection.executemany(KEEP, piece)
                moved += len(piece)
        old.replace(old.with_name(f"{OLD_FILE}.moved"))
    left_out = f"; {unread[0]} lines could not be read and will be asked again" if unread[0] else ""
    tqdm.write(f"moved {moved} paid answers from {old} to {FILE} beside it{left_out}. {OLD_FILE}.moved can be deleted")


def old_records(lines: Iterable[bytes], unread: list[int]) -> Iterator[tuple[bytes, str, bytes]]:
    for line in lines:
        try:
            found = json.loads(line)
            yield record(found["key"], found["answer"])
        except (ValueError, TypeError, KeyError, RecursionError):
            unread[0] += 1
