"""The work of a table's processes: building one world, or aligning one policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptpo.config.recipe import load_recipe
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.errors import RunError
from adaptpo.run.files import write_json
from adaptpo.sandbox.build import build
from adaptpo.sandbox.candidates import write_candidates
from adaptpo.sandbox.check import heldout_prompts
from adaptpo.sandbox.sampling import sample_responses
from adaptpo.sandbox.settings import WorldSettings
from adaptpo.trainer import AlignmentTrainer

RESPONSES, SAMPLING_SEED = 4, 1


def build_world(
    folder: Path, world: WorldSettings, cache: Path | None, responses: Path, candidates: Sequence[str] = ()
) -> None:
    """Builds a world unless it is complete, samples from its policy, and adds files of other pairs; `cache` as in
    `build`.

    Raises RunError if `folder` holds a world with other settings.
    """
    quiet_libraries()
    torch.set_num_threads(1)
    finished = folder / "world.json"
    if not finished.exists():
        build(folder, progress=False, cache=cache, **asdict(world))
    elif plain(WorldSettings()) | json.loads(finished.read_text(encoding="utf-8")) != plain(world):
        raise RunError(f"{folder} holds a world with other settings; choose another --out, or remove it")

    respond(folder / "policy", folder, responses)
    for name in candidates:
        write_candidates(folder, name)


def respond(policy: Path, world: Path, responses: Path) -> None:
    """Samples four responses of a policy to each held-out prompt of a world, unless the file is there."""
    if not responses.exists():
        model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
        prompts = heldout_prompts(world)
        found = sample_responses(model, tokenizer, prompts, RESPONSES, SAMPLING_SEED)
        responses.parent.mkdir(parents=True, exist_ok=True)
        write_json(responses, {"prompts": prompts, "responses": found})


def plain(world: WorldSettings) -> dict[str, Any]:
    """The settings as JSON returns them."""
    return json.loads(json.dumps(asdict(world)))


def align_policy(recipe: Path, assignments: Sequence[str], responses: Path) -> None:
    """Starts or resumes an ordinary run and samples from its policy; does nothing if both are done."""
    run = trainer(recipe, assignments)
    run.train()
    respond(run.folder, recipe.parent, responses)


def open_policy(recipe: Path, assignments: Sequence[str]) -> None:
    """Runs everything before the first iteration, for the runs that share it."""
    trainer(recipe, assignments).prepare()


def trainer(recipe: Path, assignments: Sequence[str]) -> AlignmentTrainer:
    quiet_libraries()
    torch.set_num_threads(1)
    return AlignmentTrainer.from_recipe(load_recipe(recipe, tuple(assignments)))
