"""Trains one phase on preference pairs; the step itself does not depend on the method."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from adaptpo.choices.hold_out import Validation
from adaptpo.choices.method import Method
from adaptpo.distributed.ranks import ALONE, Ranks
from adaptpo.models.collate import Batch, GroupCollator, count_prompts
from adaptpo.models.inference import autocast, to_device
from adaptpo.models.logps import token_logps
from adaptpo.models.packing import PADDED, RowPacking
from adaptpo.run.files import JsonLines
from adaptpo.seeds import seed_for
from adaptpo.training.following_reference import FollowingReference
from adaptpo.training.look_ahead import LookAhead, PairLosses, Trained
from adaptpo.training.own_optimizer import OwnOptimizer
from adaptpo.training.prompt_group_trainer import BatchLoss, GroupTrainer, Log
from adaptpo.training.replicas import Replicas
from adaptpo.training.step import Step, preference_step
from adaptpo.training.whole_vocabulary import VocabularyProbe
from adaptpo.types import SOURCES, PromptGroup


class PreferenceTrainer(GroupTrainer):
    """Trains on prompt groups with a `Method`.

    Prompts that together exceed `rows.max_tokens` are computed in several passes. The divisor of the loss is the number
    of prompts of the optimizer step. With `rows.shared_prompts`, `share_prompts` must have been applied to the model.
    `stretch` is the start and end of this training as shares of the run's training: the first and the last progress
    that the objective sees. `validation` holds the prompts held out for learners that look ahead; the method says how
    many of them a step is measured on. `probe` measures what the method's weighting needs. `reference` computes the
    reference's log-probs in each step, in place of stored ones.
    """

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
        rows: RowPacking = PADDED,
        stretch: tuple[float, float] = (0.0, 1.0),
        validation: Sequence[PromptGroup] = (),
        ranks: Ranks = ALONE,
        probe: VocabularyProbe | None = None,
        optimizer: OwnOptimizer | None = None,
        reference: FollowingReference | None = None,
        costs: NDArray[np.int64] | None = None,
    ) -> None:
        self.pair_log, self.rows, self.stretch, self.validation = pair_log, rows, stretch, validation
        self.probe, self.reference = probe, reference
        self.pair_records = list[list[dict[str, Any]]]()
        self.trained = list[Trained]()
        self.taken: LookAhead | None = None
        self.collator = GroupCollator(tokenizer.pad_token_id, rows)
        super().__init__(
            model, args, groups, self.collator.batches, tokenizer, method, log, callbacks, ranks, optimizer, costs
        )

    def training_step(self, model: nn.Module, inputs: list[Batch], num_items_in_batch: int | None = None) -> Tensor:
        self.pair_records.append([])
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.method.look_ahead() and num_items_in_batch is not None and self.accelerator.sync_gradients:
            self.taken = self.look_ahead(num_items_in_batch)
        return loss

    @property
    def progress(self) -> float:
        """The share of the run's training that is done before the current optimizer step."""
        start, end = self.stretch
        return start + (end - start) * self.state.global_step / max(self.state.max_steps, 1)

    def count(self, batch: Batch) -> int:
        return count_prompts(batch)

    def no_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return 0.0 * token_logps(model, batch, self.rows.chunked_head).sum()

    def batch_loss(self, model: nn.Module, batch: Batch, divisor: int) -> BatchLoss:
        chunked_head, batch = self.rows.chunked_head, self.with_reference(batch)
        step = preference_step(model, batch, self.method, divisor, chunked_head, self.progress, self.probe)
        if step.is_finite:
            self.pair_records[-1] += pair_records(step, self.method)
            self.method.observe(step.pairs)
            if self.method.look_ahead():
                self.trained.append((batch, step.pairs, step.weights))
        return BatchLoss(step.loss, step.is_finite, step.metrics, step.pairs.prompt_id)

    def with_reference(self, batch: Batch) -> Batch:
        if self.reference is None:
            return batch
        with autocast(self.args):  # Training's own is only in the prepared policy's forward pass.
            return self.reference.added_to(batch)

    def save_beside(self, folder: Path) -> None:
        super().save_beside(folder)
        if self.reference is not None:
            self.reference.save(folder)

    def load_beside(self, folder: Path) -> None:
        super().load_beside(folder)
        if self.reference is not None:
            self.reference.load(folder)

    def look_ahead(self, prompts: int) -> LookAhead:
        """The look-ahead of the step that the optimizer is about to take, whose gradient is complete."""
        estimator = self.method.look_ahead()
        assert estimator is not None
        chunked_head = self.rows.chunked_head and estimator == "central"
        return LookAhead(
            losses=PairLosses(self.model, self.method.objective.at(self.progress), chunked_head),
            optimizer=self.optimizer.optimizer,
            trained=self.trained,
            prompts=prompts,
            max_norm=self.args.max_grad_norm or 0.0,
            validation=self.validation_batches(prompts),
            estimator=estimator,
            precision=self.compute_loss_context_manager,
            replicas=Replicas(self.ranks, sharded=self.layout == "FSDP"),
            fillers=self.fillers(len(self.trained)),
        )

    def validation_batches(self, prompts: int) -> list[Batch]:
        """This rank's batches of held-out prompts, drawn for this step, which trains on `prompts` prompts. They are a
        quarter the size of training batches, because the copy of the weights takes the rest of the memory."""
        drawn = random.Random(seed_for(self.args.seed, "validation", self.state.global_step))
        rule = self.method.validation or Validation()
        groups = self.ranks.share(drawn.sample(self.validation, rule.per_update(len(self.validation), prompts)))
        size = max(1, self.args.per_device_train_batch_size // 4)
        pieces = [groups[start : start + size] for start in range(0, len(groups), size)]
        batches = [to_device(batch, self.args.device) for piece in pieces for batch in self.collator.batches(piece)]
        return self.with_references(batches) + self.fillers(len(batches))

    def fillers(self, passes: int) -> list[Batch]:
        """As many fillers as another rank makes passes beyond the `passes` of this one."""
        missing = max(self.ranks.gather(passes)) - passes
        return self.with_references([to_device(self.filler, self.args.device) for _ in range(missing)])

    def with_references(self, batches: Sequence[Batch]) -> list[Batch]:
        with self.compute_loss_context_manager():
            return [self.with_reference(batch) for batch in batches]

    def finish_step(self) -> None:
        """Updates the learners and logs how much each pair counted."""
        if self.taken is not None:
            self.method.learn_ahead(self.taken, self.gather_rows)
        self.trained, self.taken = [], None
        self.method.update(self.gather_rows)
        if self.reference is not None:
            self.reference.follow(self.accelerator.unwrap_model(self.model))
        records = self.gather_records()
        if self.pair_log is not None and self.ranks.is_first:
            self.pair_log.append(*({"step": self.state.global_step, **record} for record in records))

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in rank order; ranks may hold different numbers of rows."""
        return torch.cat(self.ranks.gather(rows))

    def gather_records(self) -> list[dict[str, Any]]:
        """The records of the step over all ranks, one micro-batch after the other."""
        own, self.pair_records = self.pair_records, []
        together = zip(*self.ranks.gather(own), strict=True)
        return [record for micro_batch in together for records in micro_batch for record in records]

    def forget_after(self, step: int) -> None:
        if self.pair_log is None or not self.ranks.is_first:
            return
        if step:
            self.pair_log.discard(lambda record: record["step"] > step)
        else:
            self.pair_log.path.unlink(missing_ok=True)  # Unread, because it may be what is damaged.


def pair_records(step: Step, method: Method) -> list[dict[str, Any]]:
    pairs = step.pairs
    columns: dict[str, list[float]] = {"margin": pairs.margin.tolist(), "weight": step.weights.tolist()}
    columns |= method.weighting.facts(pairs)
    records: list[dict[str, Any]] = [
        {"prompt_id": prompt, "source": SOURCES[source]}
        for prompt, source in zip(pairs.prompt_id.tolist(), pairs.source.tolist(), strict=True)
    ]
    for name, values in columns.items():
        for record, value in zip(records, values, strict=True):
            record[name] = round(value, 6)
    return records
