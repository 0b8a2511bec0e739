"""The files of a run: listed when they are written, and compared with the list before they are read."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from adaptpo.distributed.ranks import Ranks
from adaptpo.errors import RunError
from adaptpo.run.files import JsonLines
from adaptpo.run.manifest import MISSING, Entry, Manifest
from adaptpo.run.progress import say
from adaptpo.run.state import State, damaged_state, read_state

RECORDS = "records"
"""The phase of files that are written between phases."""


class DamageError(RunError):
    """A file of the run is not what the run wrote."""


class CheckedFiles:
    """The files below a run's folder. Rank 0 lists what it writes, every rank its shards; all check what they read."""

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self.path, self.ranks = path, ranks
        self.manifest = Manifest(path)
        self.current = RECORDS
        """The phase that is running."""

    @property
    def state(self) -> State:
        """The content of `state.json`. Raises RunError if it is damaged, or lost while other files are there."""
        state = read_state(self.path)
        others = (self.path / "config.yaml", self.manifest.log.path)
        if not state["phases"] and "config" not in state and all(path.exists() for path in others):
            raise damaged_state(self.path / "state.json", MISSING)
        return state

    def done(self, phase: str) -> bool:
        return bool(self.state["phases"].get(phase, {}).get("done"))

    def keep(self, *paths: Path) -> None:
        """Lists what rank 0 has just written, files and whole folders, as artefacts of the running phase."""
        if self.ranks.is_first:
            self.manifest.add(self.current, *paths)

    def remove_folder(self, name: str) -> None:
        """Removes a folder that the run needs no more."""
        if self.ranks.is_first:
            shutil.rmtree(self.path / name, ignore_errors=True)
            self.manifest.remove([file for file in self.manifest.places if file.startswith(f"{name}/")])

    def keep_scratch(self, *paths: Path) -> None:
        """Like `keep`, for files that a phase makes for itself and makes again if they are damaged."""
        if self.ranks.is_first:
            self.manifest.add(RECORDS, *paths)

    def checked(self, path: Path) -> Path:
        """The path of a file or folder, compared with what the run wrote; a path elsewhere is returned as it is.

        Raises DamageError if it differs, or was never finished.
        """
        entries = self._entries(path)
        for entry in entries:
            if fault := self.manifest.fault(entry):
                raise self._damage(entry.file, fault)
        if not entries and self._should_be_listed(path):
            raise self._damage(self.manifest.name(path), "is not listed in manifest.jsonl: it was never finished")
        return path

    def _should_be_listed(self, path: Path) -> bool:
        """Inputs that are kept in the run are compared by the hashes in `config.yaml`."""
        inside = path.is_relative_to(self.path) and not path.is_relative_to(self.path / "inputs")
        return inside and path.exists() and not self.is_older_than_manifests

    def intact(self, path: Path) -> bool:
        """Whether the file or folder is listed, and all of it is as it was written."""
        entries = self._entries(path)
        return bool(entries) and all(self.manifest.fault(entry) is None for entry in entries)

    def _entries(self, path: Path) -> list[Entry]:
        if not path.is_relative_to(self.path):
            return []
        self.manifest.refresh()
        return self.manifest.below(self.manifest.name(path))

    @property
    def is_older_than_manifests(self) -> bool:
        """Whether a version without manifests has finished a phase of this run: what it wrote is not listed."""
        return any(facts["done"] and "artefacts" not in facts for facts in self.state["phases"].values())

    def _damage(self, file: str, fault: str) -> DamageError:
        return DamageError(
            f"{self.path / file} {fault}. Start the same command again: it checks the run and makes the file again "
            f"where that gives the same result. `adaptpo verify {self.path}` lists all damage"
        )

    def tell(self, file: str, fault: str, consequence: str) -> None:
        """Says and records that a file was damaged, and what follows."""
        say(f"{self.path / file} {fault}: {consequence}", self.ranks.is_first)
        if self.ranks.is_first:
            record = {"time": round(time.time(), 3), "file": file, "fault": fault, "consequence": consequence}
            JsonLines(self.path / "repairs.jsonl").append(record)
