"""Writes a world to disk, as ordinary Hugging Face folders and data files."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from adaptpo.errors import ConfigError
from adaptpo.files import write_json, write_text
from adaptpo.progress import TrainingBar
from adaptpo.sandbox.models import build_policy, build_reward_model, build_tokenizer
from adaptpo.sandbox.sampling import MAX_NEW_TOKENS, sample_responses
from adaptpo.sandbox.world import assistant, sample_prompts, true_reward, user
from adaptpo.sandbox.writers import Writer, corrupt, writers
from adaptpo.telemetry import turn_off_telemetry

QUALITIES = (0.2, 0.4, 0.6, 0.8)
TRUE_REWARD = "python:adaptpo.sandbox.world:true_reward"


@dataclass(frozen=True)
class WorldSettings:
    """What a world is made of; kept in its `world.json`.

    `flipped`: share of offline pairs whose label is wrong. `sft_qualities`: range of quality of the responses that the
    policy is first trained on. `reward_pairs`: pairs per prompt that the reward model learns from, once of offline
    responses and once of the policy's own; `reward_flipped` of them are wrong.
    """

    prompts: int = 3000
    heldout: int = 256
    seed: int = 0
    flipped: float = 0.1
    sft_responses_per_prompt: int = 3
    sft_qualities: tuple[float, float] = (0.3, 0.7)
    sft_epochs: float = 2
    reward_flipped: float = 0.05
    reward_pairs: int = 4
    reward_epochs: float = 1
    true_reward: str = TRUE_REWARD


def build(out: Path, prompts: int = 3000, seed: int = 0, **settings: Any) -> None:
    """Write a world to `out`: `policy/`, `reward_model/`, `train.jsonl`, `heldout.jsonl`, `recipe.yaml`, `world.json`.

    The same arguments give the same files. `settings` are fields of `WorldSettings`. `world.json` is written last: a
    folder that has it is complete. Raises ConfigError where `prompts` is too small or larger than the world.
    """
    world = WorldSettings(prompts=prompts, seed=seed, **settings)
    if prompts < 16:
        raise ConfigError(f"a sandbox needs at least 16 prompts to train on, {prompts} were asked for")
    turn_off_telemetry()
    rng = random.Random(f"adaptpo sandbox {seed}")
    texts = sample_prompts(prompts + world.heldout, rng)
    authors = writers(QUALITIES, rng)
    training, heldout = answered(texts[:prompts], authors, rng), answered(texts[prompts:], authors, rng)
    write_rows(out / "train.jsonl", [preference_row(a, authors, world.flipped, rng) for a in training])
    write_rows(out / "heldout.jsonl", [preference_row(a, authors, 0.0, rng) for a in heldout])

    tokenizer = build_tokenizer()
    policy = train_policy(out / "policy", tokenizer, sft_rows(texts[:prompts], authors[0], world, rng), world)
    rows = reward_rows(training, policy, tokenizer, world, rng)
    train_reward_model(out / "reward_model", tokenizer, rows, world)
    write_recipe(out, world)
    write_json(out / "world.json", asdict(world))


# Offline data

Answered = tuple[str, list[str]]
"""A prompt with one response of each writer."""


def answered(prompts: Sequence[str], authors: Sequence[Writer], rng: random.Random) -> list[Answered]:
    return [(prompt, [author.respond(prompt, rng) for author in authors]) for prompt in prompts]


def preference_row(item: Answered, authors: Sequence[Writer], flipped: float, rng: random.Random) -> dict[str, Any]:
    """The best response by the true reward against a random other one; with probability `flipped` the wrong way."""
    prompt, responses = item
    rewards = true_rewards(prompt, responses)
    best = max(range(len(responses)), key=rewards.__getitem__)
    other = rng.choice([i for i in range(len(responses)) if i != best])
    is_flipped = rng.random() < flipped
    chosen, rejected = (other, best) if is_flipped else (best, other)
    return {
        "prompt": user(prompt),
        "chosen": assistant(responses[chosen]),
        "rejected": assistant(responses[rejected]),
        "flipped": is_flipped,
        "writer_chosen": authors[chosen].name,
        "writer_rejected": authors[rejected].name,
    }


def true_rewards(prompt: str, responses: Sequence[str]) -> list[float]:
    return true_reward([prompt] * len(responses), list(responses))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


# Policy


def sft_rows(prompts: Sequence[str], author: Writer, world: WorldSettings, rng: random.Random) -> list[dict[str, Any]]:
    """Responses of low to middling quality, all in one writer's habits."""
    worst, best = world.sft_qualities
    return [
        {
            "prompt": user(prompt),
            "completion": assistant(Writer(**{**vars(author), "quality": quality}).respond(prompt, rng)),
        }
        for prompt in prompts
        for quality in [rng.uniform(worst, best) for _ in range(world.sft_responses_per_prompt)]
    ]


def common_arguments(
    world: WorldSettings, folder: str, epochs: float, learning_rate: float, batch: int
) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "seed": world.seed,
        "save_strategy": "no",
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }


def quiet_training(trainer: Any, name: str) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingBar(name, visible=True))
    trainer.train()


def train_policy(
    folder: Path, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], world: WorldSettings
) -> PreTrainedModel:
    model = build_policy(tokenizer, world.seed)
    with tempfile.TemporaryDirectory() as scratch:
        common = common_arguments(world, scratch, world.sft_epochs, learning_rate=1e-3, batch=16)
        arguments = SFTConfig(**common, train_sampling_strategy="group_by_length")
        trainer = SFTTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        quiet_training(trainer, "sandbox: SFT policy")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


# Reward model


def reward_rows(
    training: Sequence[Answered],
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: WorldSettings,
    rng: random.Random,
) -> list[dict[str, Any]]:
    """Pairs of offline responses, and pairs of samples of the policy, half of them corrupted: what a general reward
    model has seen besides one offline data set. Labels are the true reward's, but for a share of wrong ones."""
    samples = sample_responses(policy, tokenizer, [prompt for prompt, _ in training], 4, world.seed)
    rows = []
    for (prompt, responses), sampled in zip(training, samples, strict=True):
        varied = [response if i % 2 else corrupt(response, rng) for i, response in enumerate(sampled)]
        for group in (responses, varied):
            rows += compared(prompt, group, world, rng)
    rng.shuffle(rows)
    return rows


def compared(prompt: str, responses: Sequence[str], world: WorldSettings, rng: random.Random) -> list[dict[str, Any]]:
    """Random pairs of responses whose true rewards differ, in the format of TRL's reward trainer."""
    rewards = true_rewards(prompt, responses)
    different = [(i, j) for i, j in combinations(range(len(responses)), 2) if rewards[i] != rewards[j]]
    rows = []
    for i, j in rng.sample(different, min(world.reward_pairs, len(different))):
        better, worse = (i, j) if (rewards[i] > rewards[j]) != (rng.random() < world.reward_flipped) else (j, i)
        sides = {"chosen": assistant(responses[better]), "rejected": assistant(responses[worse])}
        rows.append({"prompt": user(prompt), **sides})
    return rows


def train_reward_model(
    folder: Path, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], world: WorldSettings
) -> None:
    model = build_reward_model(tokenizer, world.seed)
    with tempfile.TemporaryDirectory() as scratch:
        common = common_arguments(world, scratch, world.reward_epochs, learning_rate=2e-3, batch=64)
        arguments = RewardConfig(**common, max_length=None)
        trainer = RewardTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        quiet_training(trainer, "sandbox: reward model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Recipe


def write_recipe(out: Path, world: WorldSettings) -> None:
    recipe = {
        "model": "policy",
        "reward": "reward_model",
        "data": {"path": "train.jsonl", "split": "train"},
        "eval_data": {"path": "heldout.jsonl", "max_prompts": world.heldout},
        "method": {"name": "metaapo", "objective": {"name": "dpo", "beta": 0.3}},
        "num_iterations": 3,
        "warmup_epochs": 1,
        "reference": "initial",
        "max_prompt_length": 32,
        "generation": {
            "num_generations": 8,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_new_tokens": MAX_NEW_TOKENS,
            "batch_size": 64,
        },
        "training": {
            "learning_rate": 2.0e-4,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 64,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "warmup_steps": 10,
        },
        "meta": {"learning_rate": 5.0e-3, "update_interval": 8},
        "shard_size": 256,
        "seed": world.seed,
        "output_dir": str(out / "run"),
    }
    comment = (
        f"# Aligns the sandbox's policy with MetaAPO. The true reward, to measure what came out: {world.true_reward}\n"
    )
    write_text(out / "recipe.yaml", comment + yaml.safe_dump(recipe, sort_keys=False))
