"""A store of paid answers, keyed by the content of the question."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adaptpo.errors import RunError
from adaptpo.run.files import JsonLines

Json = Any
"""A value as `json.loads` returns it."""


def content_key(*parts: Json) -> str:
    """A hash of the content that is the same in every process."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerStore:
    """Answers by key in `FOLDER/answers.jsonl`, or only in memory without a folder.

    The file only grows. Several processes may share it: a lock orders their writes, the next write cuts off a line left
    incomplete by a kill, and `refresh` reads the answers that others have added.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.answers: dict[str, Json] = {}
        self.read_until = 0

    def __contains__(self, key: str) -> bool:
        return key in self.answers

    def get(self, key: str) -> Json:
        """Returns the answer, or None if there is none."""
        return self.answers.get(key)

    def add(self, key: str, answer: Json) -> None:
        self.answers[key] = answer
        if self.folder is not None:
            with self._locked() as lines:
                lines.append({"key": key, "answer": answer})

    def refresh(self) -> None:
        if self.folder is None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.read_until)
            whole, line_break, _ = file.read().rpartition(b"\n")
        records = [json.loads(line) for line in whole.split(b"\n") if line]
        self.answers |= {record["key"]: record["answer"] for record in records}
        self.read_until += len(whole) + len(line_break)

    @property
    def path(self) -> Path:
        assert self.folder is not None
        return self.folder / "answers.jsonl"

    @contextmanager
    def _locked(self) -> Iterator[JsonLines]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = (self.path.parent / "lock").open("a")
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror}; choose another folder for annotation_cache"
            ) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield JsonLines(self.path)
