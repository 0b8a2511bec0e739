"""Writes a world to disk as ordinary Hugging Face folders and data files."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from adaptpo.distributed.quiet import turn_off_telemetry
from adaptpo.run.files import write_json, write_text
from adaptpo.sandbox.data import (
    Answered,
    compared,
    corrupted_half,
    offline_answers,
    preference_row,
    sft_rows,
    strong_responses,
)
from adaptpo.sandbox.fit import fit_policy, fit_reward_model
from adaptpo.sandbox.models import build_tokenizer
from adaptpo.sandbox.remember import remember
from adaptpo.sandbox.sampling import MAX_NEW_TOKENS, sample_responses
from adaptpo.sandbox.settings import WorldSettings
from adaptpo.sandbox.world import sample_prompts
from adaptpo.sandbox.writers import Writer, writers
from adaptpo.types import Row

POLICY_SAMPLES = 4


def build(
    out: Path,
    prompts: int = 3000,
    seed: int = 0,
    progress: bool = True,
    cache: Path | None = None,
    **settings: Any,
) -> None:
    """Writes a world to `out`: `policy/`, `reward_model/`, `train.jsonl`, `heldout.jsonl`, `recipe.yaml`, `world.json`.

    The same arguments give the same files, bit for bit on the same machine. `settings` are fields of `WorldSettings`.
    `world.json` is written last: a folder that has it is complete. `cache` is a folder of models shared by worlds
    that train them on the same rows, such as worlds that differ only in the labels of the offline data. Raises
    ConfigError for impossible settings.
    """
    world = WorldSettings(prompts=prompts, seed=seed, **settings)
    turn_off_telemetry()
    rng = random.Random(f"adaptpo sandbox {seed}")
    authors = writers(world.writer_qualities, rng)
    texts = sample_prompts(prompts + world.heldout, rng)
    training, heldout = (offline_answers(part, authors, world, rng) for part in (texts[:prompts], texts[prompts:]))
    rows = [preference_row(item, authors, world.flipped_of(n, item[0]), rng) for n, item in enumerate(training)]
    write_rows(out / "train.jsonl", rows)
    write_rows(out / "heldout.jsonl", [preference_row(item, authors, 0.0, rng) for item in heldout])

    tokenizer = build_tokenizer()
    answers = sft_rows(texts[:prompts], authors[0], world, rng)
    sft = (answers, seed, world.sft_epochs, world.sft_learning_rate)
    remember(cache, out / "policy", sft, partial(fit_policy, tokenizer, answers, world, progress))
    policy = AutoModelForCausalLM.from_pretrained(out / "policy")
    # Half of the offline groups, so that two thirds of the pairs come from policy samples and strong responses.
    groups = training[::2] + breadth(policy, tokenizer, texts[:prompts], authors, world, rng, progress)
    pairs = [pair for group in groups for pair in compared(group, world.reward_flipped, rng)]
    fit = partial(fit_reward_model, policy, tokenizer, pairs, world, progress)
    remember(cache, out / "reward_model", (sft, pairs, world.reward_epochs, world.reward_learning_rate), fit)
    write_recipe(out, world)
    write_json(out / "world.json", asdict(world))


def breadth(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    authors: Sequence[Writer],
    world: WorldSettings,
    rng: random.Random,
    progress: bool,
) -> list[Answered]:
    """Samples of the SFT policy for one half of the prompts, strong responses for the other; half of all are corrupted.

    They stand for what a general-purpose reward model has seen besides one offline data set. One that knows only the
    offline writers misjudges the policy at the start, and later wherever training takes it; online training then
    exploits its mistakes.
    """
    own = sample_responses(policy, tokenizer, prompts[::2], POLICY_SAMPLES, world.seed, progress=progress)
    groups = [*zip(prompts[::2], own, strict=True), *strong_responses(prompts[1::2], authors, rng)]
    return [corrupted_half(item, rng) for item in groups]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(out: Path, world: WorldSettings) -> None:
    comment = (
        "# Aligns the sandbox's policy with MetaAPO; paths are relative to this file, except output_dir.\n"
        f"# The true reward, to measure the result: {world.true_reward}\n"
    )
    write_text(out / "recipe.yaml", comment + yaml.safe_dump(recipe(out, world), sort_keys=False))


def recipe(out: Path, world: WorldSettings) -> dict[str, Any]:
    """The settings that align a sandbox policy; learning rate and beta suit a model of this size."""
    return {
        "model": "policy",
        "reward": "reward_model",
        "data": {"path": "train.jsonl", "split": "train"},
        "eval_data": {"path": "heldout.jsonl", "max_prompts": world.heldout},
        "method": {"name": "metaapo", "objective": {"name": "dpo", "beta": 0.3}},
        "num_iterations": 3,
        "warmup_epochs": 1,
        "max_prompt_length": 32,
        "generation": {
            "num_generations": 8,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_new_tokens": MAX_NEW_TOKENS,
        },
        "training": {
            "learning_rate": 2.0e-4,
            "per_device_train_batch_size": 16,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "warmup_steps": 10,
        },
        "meta": {"learning_rate": 5.0e-3, "update_interval": 8},
        "shard_size": 256,
        "seed": world.seed,
        "output_dir": str(out / "run"),
    }
