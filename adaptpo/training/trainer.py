"""The training of one phase: transformers' `Trainer` around the method-blind step.

`Trainer` brings schedulers, optimizers, mixed precision, accumulation, checkpointing and trackers; the loss, the
weights, the division by prompts and the learners are ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from adaptpo.errors import TrainingError
from adaptpo.files import JsonLines, disk_errors
from adaptpo.learner import SOURCES
from adaptpo.method import Method
from adaptpo.run import RunDirectory
from adaptpo.training.checkpoints import last_complete, mark_complete, step_of
from adaptpo.training.collate import Batch, GroupCollator, count_prompts
from adaptpo.training.rows import PADDED, Rows
from adaptpo.training.step import Step, preference_step
from adaptpo.types import PromptGroup

METHOD_STATE = "method.pt"
Log = Callable[[int, dict[str, float]], None]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, in rank order; ranks may hold different numbers of rows."""
    return torch.cat(gather_object([rows]))


def save_method(method: Method, folder: Path) -> None:
    torch.save(method.state_dict(), folder / METHOD_STATE)


def load_method(method: Method, folder: Path) -> None:
    method.load_state_dict(torch.load(folder / METHOD_STATE, weights_only=True))


class MeanMetrics:
    """Means of the metrics of micro-batches, weighted by their prompts, since the last log."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.prompts: dict[str, float] = defaultdict(float)

    def add(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.sums[name] += value * metrics["prompts"]
            self.prompts[name] += metrics["prompts"]

    def drain(self) -> dict[str, float]:
        means = {name: total / self.prompts[name] for name, total in self.sums.items() if name != "prompts"}
        self.sums.clear()
        self.prompts.clear()
        return means


class PreferenceTrainer(Trainer):
    """Trains on prompt groups with a `Method`.

    `per_device_train_batch_size` counts prompts; more of them than fit into `rows.max_tokens` are computed in several
    passes. The divisor of the loss is the number of prompts of the whole optimizer step over passes, accumulation and
    ranks, so that 1 x 8 and 8 x 1 are the same step. With `rows.shared_prompts`, the model must have been through
    `share_prompts`. `stretch` is the part of the run's training that this is, as shares of the whole: the first and
    the last progress that the objective sees.

    Raises TrainingError before the optimizer would write weights from a loss or gradient that is not finite.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        groups: Sequence[PromptGroup],
        tokenizer: PreTrainedTokenizerBase,
        method: Method,
        log: Log,
        pair_log: JsonLines | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        rows: Rows = PADDED,
        stretch: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.method, self.write_log, self.pair_log, self.rows = method, log, pair_log, rows
        self.stretch = stretch
        self.means, self.pair_records = MeanMetrics(), list[dict[str, Any]]()
        super().__init__(
            model=model,
            args=args,
            train_dataset=groups,
            data_collator=GroupCollator(tokenizer.pad_token_id, rows).batches,
            processing_class=tokenizer,
            callbacks=[StepHooks(self), *callbacks],
        )
        self.remove_callback(PrinterCallback)

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Batch]], num_batches: int, device: torch.device
    ) -> tuple[list[list[Batch]], int]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        prompts = sum(count_prompts(batch) for passes in batches for batch in passes)
        return batches, sum(gather_object([prompts]))

    def training_step(self, model: nn.Module, inputs: list[Batch], num_items_in_batch: int | None = None) -> Tensor:
        """Forward and backward of the passes that make a batch, one after the other."""
        losses = [super(PreferenceTrainer, self).training_step(model, batch, num_items_in_batch) for batch in inputs]
        return torch.stack(losses).sum()

    @property
    def progress(self) -> float:
        """The share of the run's training before the current optimizer step."""
        start, end = self.stretch
        return start + (end - start) * self.state.global_step / max(self.state.max_steps, 1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        if num_items_in_batch is None:
            raise ValueError("compute_loss needs the number of prompts of the optimizer step")
        step = preference_step(model, inputs, self.method, num_items_in_batch, self.rows.chunked_head, self.progress)
        if not torch.isfinite(step.loss):
            raise not_finite("loss", self.state.global_step, step)
        self.method.observe(step.pairs)
        self.means.add(step.metrics)
        self.pair_records += pair_records(step)
        # Ranks average their gradients, but the divisor is global already.
        return step.loss * self.accelerator.num_processes

    def floating_point_ops(self, inputs: Batch) -> int:
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | self.means.drain() | self.method.metrics()
            self.write_log(self.state.global_step, logs)
        super().log(logs, start_time)

    def finish_step(self) -> None:
        """After an optimizer step: let the learners learn, and write how each pair counted."""
        self.method.update(gather_rows)
        records, self.pair_records = self.pair_records, []
        if self.pair_log is not None:
            self.pair_log.append(*({"step": self.state.global_step, **record} for record in records))

    def check_gradients(self) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        # With loss scaling, infinite gradients are the scaler's business: it skips the step.
        if not self.args.fp16 and not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            raise not_finite("gradient", self.state.global_step)


class StepHooks(TrainerCallback):
    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer.check_gradients()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer.finish_step()

    def on_save(self, args: TrainingArguments, state: Any, *_: Any, **__: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        save_method(self.trainer.method, checkpoint)
        mark_complete(checkpoint)


def not_finite(what: str, step: int, where: Step | None = None) -> TrainingError:
    prompts = f" (prompts {where.pairs.prompt_id.unique().tolist()[:8]})" if where is not None else ""
    return TrainingError(
        f"the {what} is not finite after step {step}{prompts}; the weights of that step were not written, and the last "
        "checkpoint of the run is good. Lower training.learning_rate, check the rewards and the data of these "
        "prompts, or train in bfloat16 or float32 instead of float16."
    )


def pair_records(step: Step) -> list[dict[str, Any]]:
    pairs = step.pairs
    columns = (pairs.prompt_id.tolist(), pairs.source.tolist(), pairs.margin.tolist(), step.weights.tolist())
    return [
        {"prompt_id": prompt, "source": SOURCES[source], "margin": round(margin, 6), "weight": round(weight, 6)}
        for prompt, source, margin, weight in zip(*columns, strict=True)
    ]


def train_phase(trainer: PreferenceTrainer, run: RunDirectory, phase: str) -> None:
    """Train to the end, from the phase's last complete checkpoint if it has one."""
    checkpoint = last_complete(Path(trainer.args.output_dir))
    step = 0
    if checkpoint is not None:
        load_method(trainer.method, checkpoint)
        step = step_of(checkpoint)
    run.forget_after(phase, step)
    if trainer.pair_log is not None:
        trainer.pair_log.discard(lambda record: record["step"] > step)
    with disk_errors(Path(trainer.args.output_dir)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
