"""The training of one phase on preference pairs, around the method-blind step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from adaptpo.files import JsonLines
from adaptpo.learner import SOURCES
from adaptpo.method import Method
from adaptpo.training.collate import Batch, GroupCollator, count_prompts
from adaptpo.training.group_trainer import BatchLoss, GroupTrainer, Log
from adaptpo.training.rows import PADDED, Rows
from adaptpo.training.step import Step, preference_step
from adaptpo.types import PromptGroup


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, in rank order; ranks may hold different numbers of rows."""
    return torch.cat(gather_object([rows]))


class PreferenceTrainer(GroupTrainer):
    """Trains on prompt groups with a `Method`.

    More prompts than fit into `rows.max_tokens` are computed in several passes. The divisor of the loss is the number
    of prompts of the optimizer step. With `rows.shared_prompts`, the model must have been through `share_prompts`.
    `stretch` is the part of the run's training that this is, as shares of the whole: the first and the last progress
    that the objective sees.
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
        rows: Rows = PADDED,
        stretch: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.pair_log, self.rows, self.stretch = pair_log, rows, stretch
        self.pair_records = list[dict[str, Any]]()
        collate = GroupCollator(tokenizer.pad_token_id, rows).batches
        super().__init__(model, args, groups, collate, tokenizer, method, log, callbacks)

    @property
    def progress(self) -> float:
        """The share of the run's training before the current optimizer step."""
        start, end = self.stretch
        return start + (end - start) * self.state.global_step / max(self.state.max_steps, 1)

    def count(self, batch: Batch) -> int:
        return count_prompts(batch)

    def batch_loss(self, model: nn.Module, batch: Batch, divisor: int) -> BatchLoss:
        step = preference_step(model, batch, self.method, divisor, self.rows.chunked_head, self.progress)
        if torch.isfinite(step.loss):
            self.method.observe(step.pairs)
            self.pair_records += pair_records(step)
        return BatchLoss(step.loss, step.metrics, step.pairs.prompt_id)

    def finish_step(self) -> None:
        """Let the learners learn, and write how each pair counted."""
        self.method.update(gather_rows)
        records, self.pair_records = self.pair_records, []
        if self.pair_log is not None:
            self.pair_log.append(*({"step": self.state.global_step, **record} for record in records))

    def forget_after(self, step: int) -> None:
        if self.pair_log is not None:
            self.pair_log.discard(lambda record: record["step"] > step)


def pair_records(step: Step) -> list[dict[str, Any]]:
    pairs = step.pairs
    columns = (pairs.prompt_id.tolist(), pairs.source.tolist(), pairs.margin.tolist(), step.weights.tolist())
    return [
        {"prompt_id": prompt, "source": SOURCES[source], "margin": round(margin, 6), "weight": round(weight, 6)}
        for prompt, source, margin, weight in zip(*columns, strict=True)
    ]
