"""Trains the policy on prompt groups: the warm-up and the iterations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from adaptpo.distributed.launch import is_sharded
from adaptpo.errors import ModelError
from adaptpo.models.inference import PromptedPair, autocast
from adaptpo.models.packing import RowPacking, row_tokens
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.kept_reference import with_ordered_reference, with_reference
from adaptpo.pipeline.phases.features import Features, features_of_prompts
from adaptpo.pipeline.phases.pair import iteration_pairs
from adaptpo.run.arrow_rows import MappedRows, write_rows
from adaptpo.run.directory import RunDirectory, Summary
from adaptpo.run.files import JsonLines, disk_errors, whole_folder
from adaptpo.run.history import policy_phases
from adaptpo.run.lazy_sequence import Lazy
from adaptpo.run.schemas import TRAINING_SCHEMA, group_row, read_group
from adaptpo.run.training_bar import TrainingBar
from adaptpo.training.checkpoints import Logs, last_complete, refuse_other_layout, step_of
from adaptpo.training.following_reference import FollowingReference
from adaptpo.training.preference_trainer import PreferenceTrainer
from adaptpo.training.prompt_group_trainer import GroupTrainer, save_method
from adaptpo.training.whole_vocabulary import LiveReference, VocabularyProbe
from adaptpo.types import PromptGroup

TRACKERS = tuple(INTEGRATION_TO_CALLBACK.values())


def warm_up(context: Context) -> Summary:
    """Trains offline with the method's objective before the first iteration (B.4)."""
    items = with_reference(context, "reference", context.offline())
    return train(context, "warmup", items, context.initial, warmup=True)


def train_iteration(context: Context, iteration: int) -> Summary:
    folder = context.folder(iteration)
    items: Iterable[PromptedPair] = iteration_pairs(context, iteration)
    if context.keeps_reference:
        known = with_reference(context, "reference", iteration_pairs(context, iteration))
        items = with_ordered_reference(context, f"{folder}/reference", known)
    features = features_of_prompts(context, iteration)
    return train(context, folder, items, context.start_policy(iteration), features, iteration=iteration)


def validation_groups(context: Context, iteration: int | None) -> Sequence[PromptGroup]:
    """The held-out pairs with the reference of an iteration; none for a warm-up, which trains no learner."""
    if iteration is None or context.method.validation is None:
        return []
    folder, trained = context.folder(iteration), len(iteration_pairs(context, iteration))
    items: Iterable[PromptedPair] = context.validation()
    if context.keeps_reference:
        known = with_reference(context, "reference", context.validation())
        items = with_ordered_reference(context, f"{folder}/reference", known, first=trained)
    return kept_groups(context, folder, "validation", items)


def kept_groups(
    context: Context, phase: str, name: str, items: Iterable[PromptedPair], features: Iterable[Features] = ()
) -> Lazy[PromptGroup]:
    """The pairs grouped by prompt, in a file for random access; pairs of one prompt must be adjacent in `items`."""
    path = context.scratch(phase, name)

    def write() -> None:
        if not context.run.intact(path):
            groups = grouped(items, features)
            rows = (group_row(group, row_tokens([group], context.rows)) for group in groups)
            write_rows(path, rows, TRAINING_SCHEMA)
            context.run.keep_scratch(path)

    context.ranks.on_first(write)
    rows = MappedRows(context.run.checked(path))
    return Lazy(len(rows), lambda indices: [read_group(row) for row in rows.read(indices)], block=1)


def grouped(items: Iterable[PromptedPair], features: Iterable[Features] = ()) -> Iterator[PromptGroup]:
    rest = iter(features)
    for id_, some in groupby(items, key=lambda item: item[0].id):
        prompts, pairs = zip(*some, strict=True)
        known = next((values for prompt_id, values in rest if prompt_id == id_), {})
        yield PromptGroup(prompts[0], pairs, known)


def tokens_of_groups(path: Path) -> NDArray[np.int64]:
    """Tokens that a pass over each group of a file computes, [groups]."""
    pieces = [batch["tokens"].to_numpy() for batch in MappedRows(path).batches()]
    return np.concatenate([np.zeros(0, np.int64), *pieces])


def pair_count(path: Path) -> int:
    """Number of pairs in a file of groups."""
    return sum(len(batch["pairs"].flatten()) for batch in MappedRows(path).batches())


def train(
    context: Context,
    phase: str,
    items: Iterable[PromptedPair],
    policy: str,
    features: Iterable[Features] = (),
    iteration: int | None = None,
    warmup: bool = False,
    proxy: bool = False,
) -> Summary:
    """Trains the policy on these pairs and writes the checkpoint: an ordinary model folder with the learners' state.

    `warmup` trains offline with the method's objective for the warm-up's epochs; `proxy` does so for one epoch.
    """
    groups = kept_groups(context, phase, "training", items, features)
    offline = warmup or proxy
    if offline:  # What a filter's training taught is not known to a process that resumes after it.
        context.method.reset(context.config.seed)
    log_phase = phase if offline else f"{phase}/train"
    overrides: dict[str, Any] = {"num_train_epochs": context.num_train_epochs}
    if offline:  # `training.max_steps` is the length of an iteration.
        overrides = {"num_train_epochs": context.warmup_epochs if warmup else 1, "max_steps": -1}
    if context.method.filter.orders and not proxy:
        overrides["train_sampling_strategy"] = "sequential"
    args = context.arguments(phase, **{**context.config.training, **overrides})
    method = context.method if iteration is None else context.method_in(iteration)
    model = context.take_policy(policy)
    before = method.updates()
    reference = None if iteration is None else context.following_reference(iteration)
    trainer = PreferenceTrainer(
        model=prepared(context, model, recomputes_activations(args)),
        args=args,
        groups=groups,
        tokenizer=context.tokenizer,
        method=method.warmup() if offline else method,
        log=partial(log_step, context, log_phase, iteration, tokens_before(context, iteration)),
        pair_log=None if offline else JsonLines(context.run.path / phase / "pair_weights.jsonl"),
        callbacks=[TrainingBar(log_phase, context.shows), *([] if proxy else phase_callbacks(context))],
        optimizer=context.optimizer,
        rows=training_rows(context),
        ranks=context.ranks,
        probe=None if iteration is None else vocabulary_probe(context, iteration, model, reference),
        reference=reference,
        stretch=stretch(iteration, context.config.num_iterations),
        validation=validation_groups(context, iteration),
        costs=tokens_of_groups(context.scratch(phase, "training")),
    )
    if groups:
        train_phase(trainer, context.run, log_phase, None if trainer.pair_log is None else trainer.pair_log.path)
    with own_folder(context, f"{phase}/checkpoint") as folder:
        trainer.save_model(str(folder))
        save_method(method, folder)
        if reference is not None:
            reference.save(folder)
    if trainer.pair_log is not None and trainer.pair_log.path.exists():
        context.run.keep(trainer.pair_log.path)
    context.ranks.wait()  # A filter evaluates the checkpoint next.
    pairs = pair_count(context.scratch(phase, "training"))
    summary = {"prompts": len(groups), "pairs": pairs, "steps": trainer.state.global_step}
    summary["epochs"] = round(trainer.state.epoch or 0.0, 4)
    summary["num_tokens"] = trainer.state.num_input_tokens_seen
    learned = {title: count - before[title] for title, count in method.updates().items()}
    return summary if offline else summary | {"learner_updates": learned}


def tokens_before(context: Context, iteration: int | None) -> int:
    """The tokens that earlier phases trained on: of a phase that is made again, not those of later ones."""
    if iteration is None:
        return 0
    earlier = {"warmup", *(f"{context.folder(number)}/train" for number in range(iteration))}
    return sum(facts.get("num_tokens", 0) for name, facts in policy_phases(context.run.path).items() if name in earlier)


def log_step(
    context: Context, phase: str, iteration: int | None, before: int, step: int, values: dict[str, float]
) -> None:
    """Writes a training log; `num_tokens` counts over the run, as TRL counts over its training."""
    tokens = {"num_tokens": before + values["num_tokens"]}
    context.run.log(phase, values | tokens, iteration, step)


def phase_callbacks(context: Context) -> list[TrainerCallback]:
    """The user's callbacks; trackers among them follow the whole run instead (`adaptpo.pipeline.trackers`)."""
    return [callback for callback in context.callbacks if not isinstance(callback, TRACKERS)]


def vocabulary_probe(
    context: Context, iteration: int, policy: nn.Module, following: FollowingReference | None
) -> VocabularyProbe | None:
    """The probe for what an iteration's weights need, with the reference beside the policy if they need it."""
    asked = context.method.weighting.measures
    if not asked:
        return None
    live = None
    if "divergence" in asked:
        kept = LiveReference(following.model) if following else None
        live = kept or context.live_reference(context.reference_path(iteration), policy)
    return VocabularyProbe(live, asked, lambda: autocast(context.inference_arguments))


def refuse_unreachable_head(context: Context) -> None:
    """Raises ModelError if weights need all logits of a training step and the head alone cannot compute them."""
    if context.method.weighting.measures and not training_rows(context).chunked_head:
        raise ModelError(
            f"method '{context.method.name}' computes logits from the head's input, but the logits of "
            f"{context.initial} are not the head's output alone, or its weights are sharded (FSDP, DeepSpeed); use a "
            "weighting that does not need them: for MetaPO, set method.divergence to k3 and leave head_gradient_norm "
            "out of method.features"
        )


@contextmanager
def own_folder(context: Context, name: str) -> Iterator[Path]:
    """Yields the run's folder `name` on rank 0, which writes it whole and lists it. The other ranks get a temporary
    folder, because all ranks of a sharded model save together."""
    if context.ranks.is_first:
        with whole_folder(context.run.path / name) as folder:
            yield folder
        context.run.keep(context.run.path / name)
    else:
        with TemporaryDirectory() as scratch:
            yield Path(scratch)


def training_rows(context: Context) -> RowPacking:
    """How log-probs are computed in training; the head of a sharded model cannot run alone, in chunks."""
    return replace(context.rows, chunked_head=context.rows.chunked_head and not is_sharded())


def stretch(iteration: int | None, num_iterations: int) -> tuple[float, float]:
    """The start and end of an iteration as shares of the run's training; a warm-up comes before its start."""
    if iteration is None:
        return 0.0, 0.0
    return iteration / num_iterations, (iteration + 1) / num_iterations


def recomputes_activations(args: TrainingArguments) -> bool:
    # transformers renames the field; both names work until its next major version.
    return bool(getattr(args, "activation_checkpointing", False) or getattr(args, "gradient_checkpointing", False))


def prepared(context: Context, model: Any, gradient_checkpointing: bool) -> nn.Module:
    """The model, ready for training."""
    if gradient_checkpointing and context.config.peft is not None:
        # Frozen embeddings would cut the graph of recomputed layers.
        model.enable_input_require_grads()
    return model


def train_phase(trainer: GroupTrainer, run: RunDirectory, phase: str, pair_log: Path | None = None) -> None:
    """Trains to the end, from the phase's last complete checkpoint if there is one."""
    logs = trainer.logs = Logs(run.metrics.path, phase, pair_log)
    checkpoint = resumed(run, Path(trainer.args.output_dir), logs)
    step = 0
    if checkpoint is not None:
        refuse_other_layout(checkpoint, trainer.layout)
        trainer.load_beside(checkpoint)
        step = step_of(checkpoint)
    run.forget_after(phase, step)
    trainer.forget_after(step)
    with disk_errors(Path(trainer.args.output_dir)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    take_average(trainer.optimizer)


def take_average(optimizer: Any) -> None:
    """Sets the weights to those that the optimizer means to be used: a schedule-free one trains others."""
    if callable(getattr(optimizer, "eval", None)):
        optimizer.eval()


def resumed(run: RunDirectory, folder: Path, logs: Logs) -> Path | None:
    """The checkpoint from which a training phase resumes; None if it starts from the beginning."""

    def tell(path: Path, fault: str) -> None:
        run.tell(path.relative_to(run.path).as_posix(), fault, f"the training of {logs.phase} starts again")

    return run.ranks.on_first(lambda: last_complete(folder, logs, tell))
