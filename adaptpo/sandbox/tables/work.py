"""The work of a table's processes: building one world, or aligning one policy."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from adaptpo.config.recipe import load_recipe
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.errors import OtherRunError
from adaptpo.run.state import read_state
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.world import World
from adaptpo.trainer import AlignmentTrainer


def build_world(world: World, out: Path, rows: Sequence[Row]) -> None:
    quietly_on_one_thread()
    world.build(out, rows)


def align_policy(recipe: Path, assignments: Sequence[str], world: World, out: Path, run: Path) -> None:
    """Starts or resumes an ordinary run and samples from its policy; does nothing if both are done."""
    trainer(recipe, assignments).train()
    world.respond(out, run)


def open_policy(recipe: Path, assignments: Sequence[str]) -> None:
    """Runs everything before the first iteration, for the runs that share it. What another of them has begun, and did
    not finish, begins again."""
    try:
        trainer(recipe, assignments).prepare()
    except OtherRunError:
        again = trainer(recipe, assignments)
        if read_state(Path(again.args.output_dir)).get("opened"):
            return  # Another table has finished it meanwhile.
        shutil.rmtree(again.args.output_dir)
        again.prepare()


def trainer(recipe: Path, assignments: Sequence[str]) -> AlignmentTrainer:
    quietly_on_one_thread()
    return AlignmentTrainer.from_recipe(load_recipe(recipe, tuple(assignments)))


def quietly_on_one_thread() -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    gc.freeze()  # Otherwise the collection after each model walks through all libraries, 0.3 s each time.
