"""`reward: train`: a reward model trained from the initial policy on the offline pairs (appendix B.1)."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)

from adaptpo.annotation.reward_model import scored_ids
from adaptpo.data.pair_numbers import data_margin
from adaptpo.data.templates import TemplateOptions
from adaptpo.distributed.quiet import turn_off_telemetry
from adaptpo.errors import ConfigError, TrainingError
from adaptpo.models.dropout import turn_off_dropout
from adaptpo.models.loading import (
    LOAD_ERRORS,
    cannot_load,
    first_line,
    load_tokenizer,
    load_whole_models,
    onto,
    reading_dtype,
    shared_options,
)
from adaptpo.pipeline.context import Context, on_one_device, training_fault
from adaptpo.pipeline.phases.train import own_folder, recomputes_activations, resumed, take_average
from adaptpo.run.arrow_rows import BATCH
from adaptpo.run.directory import Summary
from adaptpo.run.files import disk_errors, whole_file
from adaptpo.run.lazy_sequence import batched
from adaptpo.run.schemas import IDS
from adaptpo.run.training_bar import TrainingBar
from adaptpo.seeds import seed_for
from adaptpo.training.checkpoints import Logs, layout_of, mark_complete, refuse_other_layout, step_of
from adaptpo.training.sharding import compute_by_autocast
from adaptpo.types import PreferencePair, Prompt

PHASE = "reward"


TOKENS = pa.schema({"chosen_ids": IDS, "rejected_ids": IDS, "margin": pa.float64()})
"""The columns that TRL's `RewardTrainer` makes of a data set."""


def reward_rows(context: Context, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The offline pairs in the tokens by which the reward model will read responses, memory-mapped; TRL's caches lie
    beside the file."""
    path = context.scratch(PHASE, "pairs")
    context.ranks.on_first(partial(write_tokens, context, tokenizer, path))
    return Dataset.from_file(str(path))


def write_tokens(context: Context, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    shutil.rmtree(path.parent, ignore_errors=True)  # The caches of an earlier attempt are not checked.
    rows = (scored_row(tokenizer, *item, context.config.chat_template_kwargs) for item in context.offline())
    with whole_file(path) as temporary, pa.ipc.new_stream(str(temporary), TOKENS) as writer:
        for piece in batched(rows, BATCH):
            writer.write_table(pa.Table.from_pylist(piece, schema=TOKENS))


def scored_row(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, pair: PreferencePair, options: TemplateOptions
) -> dict[str, Any]:
    sides = {"chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
    ids = {name: scored_ids(tokenizer, prompt, response, options) for name, response in sides.items()}
    return {**ids, "margin": data_margin(prompt.columns) or 0.0}


def train_reward_model(context: Context) -> Summary:
    """Trains the reward model with TRL's `RewardTrainer` for one epoch and saves it in `reward/model` of the run."""
    context.slot.clear()
    trainer = reward_trainer(context)
    checkpoint = resumed(context.run, Path(trainer.args.output_dir), logs_of(context))
    if checkpoint:
        refuse_other_layout(checkpoint, layout_of(trainer.accelerator))
    context.run.forget_after(PHASE, step_of(checkpoint) if checkpoint else 0)
    with disk_errors(context.reward_folder):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    take_average(trainer.optimizer)
    with own_folder(context, f"{PHASE}/model") as folder:
        trainer.save_model(str(folder))
    pairs = len(trainer.train_dataset)
    return {"pairs": pairs, "too_long": len(context.offline_ids()) - pairs, "steps": trainer.state.global_step}


def reward_trainer(context: Context) -> Any:
    from trl import RewardTrainer

    turn_off_telemetry()
    model = load_with_head(context)
    tokenizer = own_tokenizer(context)
    model.config.pad_token_id = tokenizer.pad_token_id
    args = reward_arguments(context)
    if args.disable_dropout:
        turn_off_dropout(model)  # TRL's own misses the rates that are numbers.
    hooks = RewardHooks(context)
    trainer = RewardTrainer(
        model=model,
        args=args,
        train_dataset=reward_rows(context, tokenizer),
        processing_class=tokenizer,
        callbacks=[hooks, TrainingBar(PHASE, context.shows)],
    )
    trainer.remove_callback(PrinterCallback)
    hooks.layout = layout_of(trainer.accelerator)
    compute_by_autocast(trainer.accelerator, args)
    return trainer


def own_tokenizer(context: Context) -> PreTrainedTokenizerBase:
    """The policy's tokenizer, loaded anew because TRL may change it."""
    folder = context.tokenizer_folder or context.initial
    return load_tokenizer(folder, context.config.options_of(folder))


def load_with_head(context: Context) -> nn.Module:
    """The initial policy with a random head for one reward, whole on every rank and in float32, like a policy that is
    to be trained."""
    device = context.inference_arguments.device
    options = shared_options(context.config.options_of(context.initial))
    load_whole_models()
    try:
        with torch.random.fork_rng():  # The random head must not depend on earlier draws.
            torch.manual_seed(seed_for(context.config.seed, PHASE, "head") % 2**63)
            return AutoModelForSequenceClassification.from_pretrained(
                context.initial, num_labels=1, dtype=torch.float32, **onto(device, options)
            )
    except LOAD_ERRORS as error:
        remedy = "Set `reward` to a reward model or to a Python function instead."
        raise cannot_load("a reward model to train (reward: train)", context.initial, error, remedy) from error


def reward_arguments(context: Context) -> Any:
    from trl import RewardConfig

    limit = context.reader.max_length
    settings = {
        "num_train_epochs": 1,
        "learning_rate": 1e-5,
        "logging_steps": 1,
        "report_to": "none",
        "gradient_checkpointing": recomputes_activations(context.inference_arguments),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": context.config.training.get("use_cpu", False),
        "bf16": reading_dtype(context.inference_arguments.device) is torch.bfloat16,
        "disable_dropout": context.config.disable_dropout,
        "max_length": None if limit is None else limit + 64,  # Room for what the chat template adds after a response.
    }
    own = context.config.reward_training
    if "activation_checkpointing" in own:  # The newer of two names, of which one is given.
        del settings["gradient_checkpointing"]
    owned = {
        "output_dir": str(context.run.path / PHASE / "training"),
        "seed": seed_for(context.config.seed, PHASE) % 2**31,
        "disable_tqdm": True,
    }
    try:
        return on_one_device(RewardConfig(**settings | own | owned))
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(training_fault(first_line(error))) from error


class RewardHooks(TrainerCallback):
    def __init__(self, context: Context) -> None:
        self.context, self.layout = context, ""

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" not in logs:
            return
        if not torch.isfinite(torch.tensor(float(logs["loss"]))):
            raise TrainingError("the reward model's loss is not finite; lower reward_training.learning_rate")
        # TRL's token count restarts at 0 in a resumed process.
        values = {f"reward_model/{name}": value for name, value in logs.items() if name != "num_tokens"}
        self.context.run.log(PHASE, values, step=state.global_step)

    def on_save(self, args: TrainingArguments, state: Any, *_: Any, **__: Any) -> None:
        self.context.ranks.wait()
        if self.context.ranks.is_first:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            mark_complete(checkpoint, logs_of(self.context), self.layout)
        self.context.ranks.wait()  # As in `StepHooks`.


def logs_of(context: Context) -> Logs:
    return Logs(context.run.metrics.path, PHASE)
