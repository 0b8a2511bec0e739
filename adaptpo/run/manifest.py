"""What a run has written: size, rows and checksum of every file that a later phase reads.

`manifest.jsonl` only grows: a file is listed after it has its name, and the last line about a file counts. A file that
is not listed was never finished. `state.json` keeps one checksum over the list of each artefact of a finished phase, so
that a damaged manifest is found as well.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from adaptpo.run.files import REPLACED, TEMPORARY, JsonLines, whole_file

BLOCK = 2**22
"""Bytes that are hashed at a time."""
NEVER_READ = frozenset({"training_args.bin", "README.md"})
"""Files of model folders that no phase reads."""
MISSING = "is missing"
CHANGED = "does not have the checksum of what was written"


@dataclass(frozen=True)
class Entry:
    """A file as it was written. `file` and `artefact` are paths below the run's folder: a file is an artefact itself,
    or one of the files of a folder that is read as a whole. `rows`: None if it is no table."""

    file: str
    artefact: str
    phase: str
    size: int
    rows: int | None
    xxh3: str


@dataclass(frozen=True)
class Digest:
    """Everything listed of an artefact, in one checksum."""

    files: int
    size: int
    rows: int | None
    xxh3: str

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Digest:
        listed = sorted(entries, key=lambda entry: entry.file)
        lines = "".join(f"{entry.file}\0{entry.size}\0{entry.xxh3}\n" for entry in listed)
        rows = [entry.rows for entry in listed if entry.rows is not None]
        return cls(len(listed), sum(e.size for e in listed), sum(rows) if rows else None, checksum_of(lines))


class Manifest:
    """The list of what a run has written; any number of processes may add to it at the same time."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, JsonLines(root / "manifest.jsonl")
        self.forget_what_was_read()

    def forget_what_was_read(self) -> None:
        self.artefacts: dict[str, dict[str, Entry]] = defaultdict(dict)
        self.places: dict[str, str] = {}
        self.damaged_lines: list[int] = []
        self.sound: dict[str, tuple[int, ...]] = {}
        self.position = self.lines = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]

    def refresh(self) -> None:
        """Reads what any process has added since the last time."""
        if not self.log.path.exists():
            return
        with self.log.path.open("rb") as file:
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.position += len(line)
                self.lines += 1
                self._take(line)

    def _take(self, line: bytes) -> None:
        fields = unsealed(line)
        if fields is None:
            self.damaged_lines.append(self.lines)
        elif fields.get("size") is None:
            self.artefacts[self.places.pop(fields["file"], "")].pop(fields["file"], None)
        else:
            entry = Entry(**fields)
            self.artefacts[entry.artefact][entry.file] = entry
            self.places[entry.file] = entry.artefact

    def entry(self, file: str) -> Entry | None:
        return self.artefacts[self.places[file]].get(file) if file in self.places else None

    def below(self, name: str) -> list[Entry]:
        """The entries of a file, of an artefact, or of a folder inside one."""
        if name in self.artefacts:
            return list(self.artefacts[name].values())
        if (entry := self.entry(name)) is not None:
            return [entry]
        above = (self.artefacts.get(str(parent), {}) for parent in PurePosixPath(name).parents)
        return [entry for files in above for entry in files.values() if entry.file.startswith(f"{name}/")]

    def of_phase(self, phase: str) -> dict[str, Digest]:
        """The artefacts that a phase wrote."""
        found = {name: [e for e in files.values() if e.phase == phase] for name, files in self.artefacts.items()}
        return {name: Digest.of(entries) for name, entries in found.items() if entries}

    def add(self, phase: str, *paths: Path, artefact: str | None = None) -> None:
        """Lists files, and folders with all their files, that have just been written."""
        entries = [
            entry_of(self.root, file, artefact or self.name(path), phase) for path in paths for file in files_of(path)
        ]
        self.append(entries)

    def append(self, entries: Sequence[Entry]) -> None:
        self.log.append(*(sealed(asdict(entry)) for entry in entries))
        self.refresh()

    def remove(self, files: Iterable[str]) -> None:
        """Takes files off the list."""
        if lines := [sealed({"file": file, "size": None}) for file in files]:
            self.log.append(*lines)
            self.refresh()

    def rewrite(self) -> None:
        """Leaves out damaged and superseded lines."""
        entries = [entry for files in self.artefacts.values() for entry in files.values()]
        with whole_file(self.log.path) as temporary:
            JsonLines(temporary).append(*(sealed(asdict(entry)) for entry in entries))
        self.forget_what_was_read()
        self.refresh()

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    # Reading

    def fault(self, entry: Entry) -> str | None:
        """What is wrong with a file; None if it is as it was written.

        A file is hashed once per process, unless its size, its times or its place on the disk have changed.
        """
        path = self.root / entry.file
        try:
            found = path.stat()
            if found.st_size != entry.size:
                return f"has {found.st_size} bytes, and {entry.size} were written"
            now = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
            if self.sound.get(entry.file) == now:
                return None
            if checksum(path) != entry.xxh3:
                return CHANGED
        except (FileNotFoundError, NotADirectoryError):
            return MISSING
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        self.sound[entry.file] = now
        return None

    def faults(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, str]]:
        """Yields the damaged files; several are read at a time."""
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            found = pool.map(self.fault, entries)
            yield from ((entry, fault) for entry, fault in zip(entries, found, strict=True) if fault is not None)

    def on_disk(self, artefact: str, phase: str) -> list[Entry]:
        """The entries of an artefact as its files are now."""
        path = self.root / artefact
        return [entry_of(self.root, file, artefact, phase) for file in files_of(path)] if path.exists() else []


def sealed(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a line with a checksum over them."""
    return fields | {"line": xxhash.xxh3_64_hexdigest(json.dumps(fields).encode())}


def unsealed(line: bytes) -> dict[str, Any] | None:
    """The fields of a line; None if it is damaged."""
    try:
        fields = json.loads(line)
        found = fields.pop("line")
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    return fields if sealed(fields)["line"] == found else None


def files_of(path: Path) -> list[Path]:
    """The file itself, or the files of a folder that count."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and counts(file.relative_to(path)))


def counts(file: Path) -> bool:
    unfinished = any(part.startswith((TEMPORARY, REPLACED)) for part in file.parts)
    return not unfinished and file.name not in NEVER_READ


def entry_of(root: Path, file: Path, artefact: str, phase: str) -> Entry:
    name = file.relative_to(root).as_posix()
    return Entry(name, artefact, phase, file.stat().st_size, rows_of(file), checksum(file))


def rows_of(file: Path) -> int | None:
    if file.suffix != ".parquet":
        return None
    try:
        return pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError):
        return None


def checksum_of(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def checksum(path: Path, size: int | None = None) -> str:
    """XXH3 of a file's content, or of its first `size` bytes."""
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(BLOCK))
    left = path.stat().st_size if size is None else size
    with path.open("rb", buffering=0) as file:
        while left > 0 and (read := file.readinto(buffer[: min(left, BLOCK)])):
            digest.update(buffer[:read])
            left -= read
    return digest.hexdigest()
