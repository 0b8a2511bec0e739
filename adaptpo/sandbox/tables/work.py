"""The work of a table's processes: building one world, or aligning one policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from adaptpo.config.recipe import load_recipe
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.errors import RunError
from adaptpo.sandbox.build import build
from adaptpo.sandbox.settings import WorldSettings
from adaptpo.trainer import AlignmentTrainer


def build_world(folder: Path, world: WorldSettings, cache: Path | None = None) -> None:
    """Builds a world unless it is complete; `cache` as in `build`.

    Raises RunError if `folder` holds a world with other settings.
    """
    quiet_libraries()
    torch.set_num_threads(1)
    finished = folder / "world.json"
    if not finished.exists():
        build(folder, progress=False, cache=cache, **asdict(world))
    elif plain(WorldSettings()) | json.loads(finished.read_text(encoding="utf-8")) != plain(world):
        raise RunError(f"{folder} holds a world with other settings; choose another --out, or remove it")


def plain(world: WorldSettings) -> dict[str, Any]:
    """The settings as JSON returns them."""
    return json.loads(json.dumps(asdict(world)))


def align_policy(recipe: Path, assignments: Sequence[str]) -> None:
    """Starts or resumes an ordinary run; does nothing if it is finished."""
    trainer(recipe, assignments).train()


def open_policy(recipe: Path, assignments: Sequence[str]) -> None:
    """Runs everything before the first iteration, for the runs that share it."""
    trainer(recipe, assignments).prepare()


def trainer(recipe: Path, assignments: Sequence[str]) -> AlignmentTrainer:
    quiet_libraries()
    torch.set_num_threads(1)
    return AlignmentTrainer.from_recipe(load_recipe(recipe, tuple(assignments)))
