"""Trains a world's SFT policy and its reward model with TRL's trainers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast, PrinterCallback, Trainer
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from adaptpo.run.files import whole_folder
from adaptpo.run.training_bar import TrainingBar
from adaptpo.sandbox.data import Answered
from adaptpo.sandbox.models import build_policy, build_reward_model, copy_word_embeddings
from adaptpo.sandbox.settings import WorldSettings
from adaptpo.sandbox.world import assistant, user

BATCH_SIZE = 64


def fit_policy(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Answered],
    world: WorldSettings,
    progress: bool,
    folder: Path,
    untrained: Callable[[PreTrainedTokenizerFast, int], PreTrainedModel] = build_policy,
) -> None:
    """Trains a policy on `rows` by supervised fine-tuning and saves it in `folder`."""
    model = untrained(tokenizer, world.seed)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            **common_arguments(scratch, world.seed, world.sft_epochs, world.sft_learning_rate),
            completion_only_loss=True,
        )
        data = sft_dataset(tokenizer, rows)
        train(SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer), "SFT policy", progress)
    model.config.use_cache = True  # TRL turns it off for training.
    save(model, tokenizer, folder)


def fit_reward_model(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str, str]],
    world: WorldSettings,
    progress: bool,
    folder: Path,
) -> None:
    """Trains a Bradley-Terry reward model on `(prompt, better, worse)` and saves it in `folder`.

    It starts from `policy`'s word embeddings, in which the words of a topic are close together.
    """
    model = build_reward_model(tokenizer, world.seed)
    copy_word_embeddings(policy, model)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = RewardConfig(
            **common_arguments(scratch, world.seed, world.reward_epochs, world.reward_learning_rate)
        )
        data = pair_dataset(tokenizer, pairs)
        train(RewardTrainer(model, arguments, train_dataset=data, processing_class=tokenizer), "reward model", progress)
    save(model, tokenizer, folder)


def common_arguments(folder: str, seed: int, epochs: float, learning_rate: float) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "seed": seed,
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": BATCH_SIZE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "save_strategy": "no",
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def train(trainer: Trainer, name: str, progress: bool) -> None:
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingBar(f"sandbox: {name}", visible=progress))
    trainer.train()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


# The data sets are tokenized here in batches: TRL tokenizes row by row, which takes longer than training a small
# world.


def sft_dataset(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Answered]) -> Dataset:
    prompts = [prompt for prompt, responses in rows for _ in responses]
    whole = tokenize(tokenizer, prompts, [response for _, responses in rows for response in responses])
    starts = chat_ids(tokenizer, [user(prompt) for prompt in prompts], add_generation_prompt=True)
    masks = [[0] * len(start) + [1] * (len(ids) - len(start)) for start, ids in zip(starts, whole, strict=True)]
    return Dataset.from_dict({"input_ids": whole, "completion_mask": masks})


def pair_dataset(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str, str]]) -> Dataset:
    prompts, better, worse = ([pair[i] for pair in pairs] for i in range(3))
    chosen, rejected = tokenize(tokenizer, prompts, better), tokenize(tokenizer, prompts, worse)
    return Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected})


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
    turns = zip(prompts, responses, strict=True)
    return chat_ids(tokenizer, [user(prompt) + assistant(response) for prompt, response in turns])


def chat_ids(tokenizer: PreTrainedTokenizerBase, conversations: list[Any], **options: Any) -> list[list[int]]:
    return tokenizer.apply_chat_template(conversations, tokenize=True, return_dict=True, **options)["input_ids"]
