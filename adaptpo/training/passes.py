"""Forward passes without training: log-probs of pairs for scoring and for the kept reference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from adaptpo.objectives import PairLogps
from adaptpo.training.collate import Batch, GroupCollator
from adaptpo.training.logps import pair_logps
from adaptpo.training.rows import PADDED, Rows, token_batches
from adaptpo.types import PreferencePair, Prompt, PromptGroup

PromptedPair = tuple[Prompt, PreferencePair]


def autocast(args: TrainingArguments) -> AbstractContextManager:
    """The precision of training: the reference must be computed as the policy is, or the first margin is not 0."""
    if args.bf16 or args.fp16:
        return torch.autocast(args.device.type, torch.bfloat16 if args.bf16 else torch.float16)
    return nullcontext()


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) for name, value in batch.items()}


@torch.inference_mode()
def evaluate_pairs(
    model: nn.Module, pad_id: int, items: Sequence[PromptedPair], args: TrainingArguments, rows: Rows = PADDED
) -> PairLogps:
    """`PairLogps` of n pairs under a model, float32 on the CPU, in the order of `items`.

    Computed in batches of similar length within `rows.max_tokens`.
    """
    model.eval()
    collate = GroupCollator(pad_id, rows)
    groups = [PromptGroup(prompt=prompt, pairs=(replace(pair, sample=None),)) for prompt, pair in items]
    columns: list[Tensor] = []
    order: list[int] = []
    for indices in token_batches(groups, rows):
        with autocast(args):
            logps = pair_logps(model, to_device(collate([groups[i] for i in indices]), args.device), rows.chunked_head)
        columns.append(as_matrix(logps))
        order += indices
    matrix = torch.cat(columns) if columns else torch.zeros(0, 6)
    return from_matrix(matrix[torch.tensor(order, dtype=torch.long).argsort()])


def as_matrix(logps: PairLogps) -> Tensor:
    """[n, 6] on the CPU; NaN for a missing reference."""
    nan = torch.full_like(logps.chosen, float("nan"))
    references = [nan if r is None else r for r in (logps.reference_chosen, logps.reference_rejected)]
    fields = [logps.chosen, logps.rejected, logps.chosen_tokens, logps.rejected_tokens, *references]
    return torch.stack([field.float() for field in fields], dim=1).cpu()


def from_matrix(matrix: Tensor) -> PairLogps:
    chosen, rejected, chosen_tokens, rejected_tokens, reference_chosen, reference_rejected = matrix.unbind(dim=1)
    known = not bool(torch.isnan(reference_chosen).any())
    return PairLogps(
        chosen=chosen,
        rejected=rejected,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
        reference_chosen=reference_chosen if known else None,
        reference_rejected=reference_rejected if known else None,
    )
