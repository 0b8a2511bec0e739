"""Checkpoints inside a training phase: the newest complete one is kept, and only one without damage is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from adaptpo.errors import RunError
from adaptpo.run.files import flush_tree, write_text
from adaptpo.run.manifest import CHANGED, MISSING, checksum, files_of, sealed, unsealed
from adaptpo.run.state import log_digests, log_faults
from adaptpo.training.sharding import DEEPSPEED

COMPLETE = "complete.json"
COMPLETE_BEFORE = "complete"
"""The mark of versions that kept no checksums; it holds the layout alone."""
Tell = Callable[[Path, str], None]
"""Says that a file of a checkpoint, or a log, is damaged."""


@dataclass(frozen=True)
class Logs:
    """The logs of a training phase, which are cut back to the checkpoint's step where training resumes.

    `of_run` also holds other phases' records; `phase` is the name of this phase's. `own` has no others.
    """

    of_run: Path
    phase: str
    own: Path | None = None

    def state(self) -> dict[str, Any]:
        """What the logs hold, by file; logs without records are left out."""
        found = log_digests(self.of_run)
        state: dict[str, Any] = {"of_run": found[self.phase]} if self.phase in found else {}
        if self.own is not None and self.own.exists():
            state["own"] = [self.own.stat().st_size, checksum(self.own)]
        return state

    def fault(self, state: Mapping[str, Any]) -> tuple[Path, str] | None:
        """The log that no longer begins with what it held, and what is wrong with it."""
        if "of_run" in state and (faults := log_faults(self.of_run, {self.phase: tuple(state["of_run"])})):
            return self.of_run, faults[self.phase]
        if "own" not in state or self.own is None:
            return None
        size, digest = state["own"]
        if not self.own.exists() or checksum(self.own, size) != digest:
            return self.own, "does not begin with what was written before the checkpoint"
        return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def mark_complete(checkpoint: Path, logs: Logs, layout: str = "") -> None:
    """Marks a checkpoint as complete and removes older ones. Call it when everything is written.

    `layout` is that of the optimizer's state if it differs from that of a single process.
    """
    flush_tree(checkpoint)
    files = {file.relative_to(checkpoint).as_posix(): checksum(file) for file in written(checkpoint)}
    write_text(checkpoint / COMPLETE, json.dumps(sealed({"layout": layout, "files": files, "logs": logs.state()})))
    for other in checkpoint.parent.glob("checkpoint-*"):
        if step_of(other) < step_of(checkpoint):
            shutil.rmtree(other)


def written(checkpoint: Path) -> list[Path]:
    return [file for file in files_of(checkpoint) if file.name != COMPLETE]


def layout_of(accelerator: Accelerator) -> str:
    """Layout of the optimizer's state in a checkpoint: empty for that of one process, else accelerate's name."""
    kind = accelerator.distributed_type.value
    return kind if kind in ("FSDP", DEEPSPEED) else ""


def last_complete(folder: Path, logs: Logs, tell: Tell) -> Path | None:
    """The newest complete checkpoint in a training folder; incomplete ones are removed.

    A damaged one is removed as well, after `tell` was called: the phase then starts again, with the same result.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=step_of)
    newest = next((found for found in reversed(checkpoints) if is_complete(found)), None)
    if newest is not None and (damage := damage_of(newest, logs)) is not None:
        tell(*damage)
        newest = None
    for checkpoint in checkpoints:
        if checkpoint != newest:
            shutil.rmtree(checkpoint)
    return newest


def is_complete(checkpoint: Path) -> bool:
    return any((checkpoint / mark).exists() for mark in (COMPLETE, COMPLETE_BEFORE))


def damage_of(checkpoint: Path, logs: Logs) -> tuple[Path, str] | None:
    """A damaged file of a complete checkpoint or log, and what is wrong with it."""
    facts = read_complete(checkpoint)
    if facts is None:
        return checkpoint / COMPLETE, "is damaged"
    for name, digest in facts["files"].items():
        path = checkpoint / name
        if not path.exists():
            return path, MISSING
        if checksum(path) != digest:
            return path, CHANGED
    return logs.fault(facts["logs"])


def read_complete(checkpoint: Path) -> dict[str, Any] | None:
    """What a complete checkpoint was marked with; None if the mark is damaged."""
    if (checkpoint / COMPLETE).exists():
        return unsealed((checkpoint / COMPLETE).read_bytes())
    return {"layout": (checkpoint / COMPLETE_BEFORE).read_text(encoding="utf-8"), "files": {}, "logs": {}}


def refuse_other_layout(checkpoint: Path, layout: str) -> None:
    """Raises RunError for a checkpoint whose optimizer state this process cannot read."""
    found = (read_complete(checkpoint) or {}).get("layout", "")
    if found != layout:
        raise RunError(
            f"{checkpoint} was written by training with {found or 'whole models'}, and this is training with "
            f"{layout or 'whole models'}; resume as before (the number of processes may differ), or remove "
            f"{checkpoint.parent} to repeat this phase's training"
        )
