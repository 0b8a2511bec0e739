"""transformers' `Trainer` on whole prompt groups, for any loss.

`Trainer` provides schedulers, optimizers, mixed precision, accumulation, checkpointing and trackers; the loss, its
divisor and the learners are ours.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import ConcatDataset, Sampler
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from adaptpo.choices.learners.base import METHOD_STATE
from adaptpo.choices.method import Method
from adaptpo.distributed.ranks import ALONE, Ranks
from adaptpo.errors import ConfigError, TrainingError
from adaptpo.models.collate import FILLER, Batch
from adaptpo.models.inference import autocast, to_device
from adaptpo.training.checkpoints import Logs, layout_of, mark_complete
from adaptpo.training.dealing import Dealing
from adaptpo.training.mean_metrics import MeanMetrics
from adaptpo.training.own_optimizer import OwnOptimizer
from adaptpo.training.sampler import EvenOrder
from adaptpo.training.sharding import (
    DEEPSPEED,
    compute_by_autocast,
    has_finite_gradients,
    reduce_in_float32,
    without_step,
)

Log = Callable[[int, dict[str, float]], None]
Collate = Callable[[Sequence[Any]], list[Batch]]


def save_method(method: Method, folder: Path) -> None:
    torch.save(method.state_dict(), folder / METHOD_STATE)


def load_method(method: Method, folder: Path) -> None:
    # Memory-mapped, because a history of all pairs is copied from file to file.
    method.load_state_dict(torch.load(folder / METHOD_STATE, weights_only=True, mmap=True))


@dataclass(frozen=True)
class BatchLoss:
    """`loss`: scalar with graph, divided by the optimizer step's divisor. `is_finite`: whether the loss is. `metrics`:
    means, each with the number of values that it is of. `prompt_id`: prompts of the batch, [any]."""

    loss: Tensor
    is_finite: bool
    metrics: dict[str, tuple[float, int]]
    prompt_id: Tensor


class GroupTrainer(Trainer):
    """Trains on prompt groups. `collate` turns those of a micro-batch into batches, each computed in one pass.

    `per_device_train_batch_size` counts prompts. `costs`: tokens of each prompt with its responses [prompts], by which
    the ranks share out an optimizer step; without them, prompts go out as they come. The divisor of the loss is that of
    the whole optimizer step over passes, accumulation and ranks, so 1 x 8 and 8 x 1 are the same step. All ranks
    make the same number of passes, because their collective operations must match; a rank with fewer batches adds
    passes that count for nothing.

    Raises TrainingError before the optimizer would update weights from a loss or gradient that is not finite.
    """

    loss_is_scaled_for_ga = True
    optimizer: Any
    deepspeed: Any

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        groups: Sequence[Any],
        collate: Collate,
        tokenizer: PreTrainedTokenizerBase,
        method: Method,
        log: Log,
        callbacks: Sequence[TrainerCallback] = (),
        ranks: Ranks = ALONE,
        optimizer: OwnOptimizer | None = None,
        costs: NDArray[np.int64] | None = None,
    ) -> None:
        self.own_optimizer, self.costs = optimizer, costs
        self.method, self.write_log, self.means = method, log, MeanMetrics()
        self.groups, self.collate, self.ranks = groups, collate, ranks
        self.order: EvenOrder | None = None
        self.logs: Logs | None = None
        """The logs that a checkpoint vouches for; `adaptpo.pipeline.phases.train` sets them."""
        super().__init__(
            model=model,
            args=args,
            train_dataset=groups if ranks.count == 1 else ConcatDataset([groups, [None]]),
            data_collator=self.passes,
            processing_class=tokenizer,
            callbacks=[StepHooks(self), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        if self.layout == "FSDP":
            reduce_in_float32(self.accelerator.state.fsdp_plugin)
        compute_by_autocast(self.accelerator, args)

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """What the batch adds to the divisor."""

    def count_tokens(self, batch: Batch) -> int:
        """The tokens that the batch trains on, each response with its prompt, as TRL counts them."""
        return batch["num_tokens"]

    @abstractmethod
    def batch_loss(self, model: nn.Module, batch: Batch, divisor: int) -> BatchLoss:
        """The batch's share of the loss of the optimizer step."""

    def no_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """0, with a graph through the same modules as `batch_loss`."""
        return 0.0 * self.batch_loss(model, batch, 1).loss

    def finish_step(self) -> None:
        """Called after every optimizer step."""

    def save_beside(self, folder: Path) -> None:
        """Writes the state that training needs beside the policy, its optimizer and the learners to a checkpoint."""
        save_method(self.method, folder)

    def load_beside(self, folder: Path) -> None:
        """Restores what `save_beside` wrote."""
        load_method(self.method, folder)

    def forget_after(self, step: int) -> None:
        """Discards what was written after this step, because it is about to be repeated."""

    def passes(self, groups: Sequence[Any | None]) -> list[Batch]:
        """The batches of a micro-batch's groups; None is padding."""
        real = [group for group in groups if group is not None]
        return self.collate(real) if real else [self.filler]

    @cached_property
    def filler(self) -> Batch:
        return {**self.collate(self.groups[:1])[0], FILLER: torch.tensor(True)}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        order = super()._get_train_sampler(self.groups)
        if order is None:
            return None
        together = 1 if self.ranks.count == 1 else self._train_batch_size * self.ranks.count
        self.order = EvenOrder.of(order, len(self.groups), together, self.args.data_seed, self.dealing)
        return self.order

    @property
    def dealing(self) -> Dealing | None:
        if self.ranks.count == 1 or self.costs is None:
            return None
        return Dealing(self.costs, self.ranks.count, self._train_batch_size, self.args.gradient_accumulation_steps)

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Batch]], num_batches: int, device: torch.device
    ) -> tuple[list[list[Batch]], int]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counted = [batch for passes in batches for batch in passes if FILLER not in batch]
        total, tokens = sum(map(self.count, counted)), sum(map(self.count_tokens, counted))
        told = self.ranks.gather((total, [len(passes) for passes in batches], tokens))
        self.state.num_input_tokens_seen += sum(own for _, _, own in told)
        for number, passes in enumerate(batches):
            missing = max(lengths[number] for _, lengths, _ in told) - len(passes)
            # Trainer moves the tensors of a batch, but not a row's `SharedPrompts`.
            passes += [to_device(self.filler, device) for _ in range(missing)]
        return batches, sum(own for own, _, _ in told)

    def training_step(self, model: nn.Module, inputs: list[Batch], num_items_in_batch: int | None = None) -> Tensor:
        """Runs forward and backward for the passes of a micro-batch, one after the other.

        DDP sums gradients over the ranks after the last one; FSDP2 and DeepSpeed after each, because they would keep
        them whole. DeepSpeed takes the optimizer step in the last one's backward pass.
        """
        step = partial(super().training_step, model, num_items_in_batch=num_items_in_batch)
        with self.before_the_last_pass(model):
            losses = [step(batch) for batch in inputs[:-1]]
        return torch.stack([*losses, step(inputs[-1])]).sum()

    def before_the_last_pass(self, model: nn.Module) -> AbstractContextManager[None]:
        if isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return without_step(self.accelerator.gradient_state) if self.layout == DEEPSPEED else nullcontext()

    def compute_loss_context_manager(self) -> AbstractContextManager:
        # DeepSpeed's engine has the forward pass in autocast, but not the loss; accelerate has none for it.
        return autocast(self.args) if self.layout == DEEPSPEED else super().compute_loss_context_manager()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        if num_items_in_batch is None:
            raise ValueError("compute_loss needs the divisor of the optimizer step")
        if FILLER in inputs:
            return self.no_loss(model, inputs)
        outcome = self.batch_loss(model, inputs, num_items_in_batch)
        if not outcome.is_finite:
            raise not_finite("loss", self.state.global_step, outcome.prompt_id)
        self.means.add(outcome.metrics)
        # Ranks average their gradients, but the divisor is global already.
        return outcome.loss * self.accelerator.num_processes

    def floating_point_ops(self, inputs: Batch) -> int:
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            counts = {"epoch": self.state.epoch, "num_tokens": self.state.num_input_tokens_seen}
            logs = logs | self.means.drain(self.ranks) | self.method.metrics() | counts
            self.write_log(self.state.global_step, logs)
        super().log(logs, start_time)
        # The log is in metrics.jsonl; keeping all steps here would cost memory and enlarge every checkpoint.
        del self.state.log_history[:-1]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.own_optimizer is None or self.optimizer is not None:
            return super().create_optimizer(model)
        self.optimizer = self.own_optimizer.over(self.model.parameters())
        return self.optimizer

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        raise ConfigError(
            "a callback set control.should_evaluate; a run evaluates after every iteration, on eval_dataset (eval_data)"
        )

    @property
    def layout(self) -> str:
        return layout_of(self.accelerator)

    def check_gradients(self) -> None:
        # With loss scaling, the scaler handles infinite gradients: it skips the step.
        if not self.args.fp16 and not self.gradients_are_finite:
            raise not_finite("gradient", self.state.global_step)

    @property
    def gradients_are_finite(self) -> bool:
        """Whether the gradients of the step are finite, on all ranks alike. DeepSpeed has taken or skipped the step."""
        if self.layout == DEEPSPEED:
            return has_finite_gradients(self.deepspeed)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return bool(torch.isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm))


class StepHooks(TrainerCallback):
    def __init__(self, trainer: GroupTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: Any, *_: Any, **__: Any) -> None:
        self.trainer.method.start_training(state.max_steps)

    def on_epoch_begin(self, args: TrainingArguments, state: Any, *_: Any, **__: Any) -> None:
        if self.trainer.order is not None:
            # When a resumed epoch skips batches, the order is nested too deep for transformers to find.
            self.trainer.order.set_epoch(int(state.epoch))

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer.check_gradients()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer.finish_step()

    def on_save(self, args: TrainingArguments, state: Any, *_: Any, **__: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.trainer.ranks.wait()
        if self.trainer.ranks.is_first:
            self.trainer.save_beside(checkpoint)
            assert self.trainer.logs is not None
            mark_complete(checkpoint, self.trainer.logs, self.trainer.layout)
        self.trainer.ranks.wait()  # Flushing many gigabytes may take longer than the training's collectives wait.


def not_finite(what: str, step: int, prompt_id: Tensor | None = None) -> TrainingError:
    prompts = f" (prompts {prompt_id.unique().tolist()[:8]})" if prompt_id is not None else ""
    return TrainingError(
        f"the {what} is not finite after step {step}{prompts}; the weights of that step were not written, and the last "
        "checkpoint of the run is intact. Lower training.learning_rate, check the rewards and the data of these "
        "prompts, or train in bfloat16 or float32 instead of float16."
    )
