"""Checkpoints inside a training phase: the newest complete one is kept, and only a complete one is resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

from adaptpo.errors import RunError
from adaptpo.run.files import flush_tree, write_text

COMPLETE = "complete"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def mark_complete(checkpoint: Path, layout: str = "") -> None:
    """Marks a checkpoint as complete and removes older ones. Call it when everything is written.

    `layout` is that of the optimizer's state if it differs from that of a single process.
    """
    flush_tree(checkpoint)
    write_text(checkpoint / COMPLETE, layout)
    for other in checkpoint.parent.glob("checkpoint-*"):
        if step_of(other) < step_of(checkpoint):
            shutil.rmtree(other)


def last_complete(folder: Path) -> Path | None:
    """The newest complete checkpoint in a training folder; incomplete ones are removed."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=step_of)
    complete = [checkpoint for checkpoint in checkpoints if (checkpoint / COMPLETE).exists()]
    for checkpoint in checkpoints:
        if checkpoint not in complete[-1:]:
            shutil.rmtree(checkpoint)
    return complete[-1] if complete else None


def refuse_other_layout(checkpoint: Path, layout: str) -> None:
    """Raises RunError for a checkpoint whose optimizer state this process cannot read."""
    found = (checkpoint / COMPLETE).read_text(encoding="utf-8")
    if found != layout:
        raise RunError(
            f"{checkpoint} was written by training with {found or 'whole models'}, and this is training with "
            f"{layout or 'whole models'}; resume as before (the number of processes may differ), or remove "
            f"{checkpoint.parent} to repeat this phase's training"
        )
