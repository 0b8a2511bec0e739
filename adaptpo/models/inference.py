"""Forward passes without training: log-probs of pairs for scoring and for the stored reference."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from adaptpo.distributed.launch import converts_weights
from adaptpo.models.collate import Batch, GroupCollator
from adaptpo.models.logps import sum_pairs, token_logps
from adaptpo.models.packing import PADDED, RowPacking, token_batches
from adaptpo.types import PairLogps, PreferencePair, Prompt, PromptGroup

PromptedPair = tuple[Prompt, PreferencePair]


def autocast(args: TrainingArguments) -> AbstractContextManager:
    """The autocast context of training. The reference must be computed in it too, or the first margin is not 0.

    FSDP2 has none, because it converts the weights."""
    if (args.bf16 or args.fp16) and not converts_weights():
        return torch.autocast(args.device.type, torch.bfloat16 if args.bf16 else torch.float16)
    return nullcontext()


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}


def evaluate_pairs(
    model: nn.Module, pad_id: int, items: Sequence[PromptedPair], args: TrainingArguments, rows: RowPacking = PADDED
) -> PairLogps:
    """`PairLogps` of n pairs under a model, float32 on the CPU, in the order of `items`."""
    return evaluate_tokens(model, pad_id, items, args, rows, keep=False)[0]


TokenLogps = tuple[array, array]
"""log pi of every token of the chosen and of the rejected response, float32."""


@torch.inference_mode()
def evaluate_tokens(
    model: nn.Module,
    pad_id: int,
    items: Sequence[PromptedPair],
    args: TrainingArguments,
    rows: RowPacking = PADDED,
    keep: bool = True,
) -> tuple[PairLogps, list[TokenLogps]]:
    """Returns the `PairLogps` of n pairs and, with `keep`, the log-probs of their tokens, in the order of `items`.

    Pairs of similar length are batched together, within `rows.max_tokens`.
    """
    columns: list[Tensor] = []
    kept: list[TokenLogps] = []
    order: list[int] = []
    for indices, batch, tokens in token_passes(model, pad_id, items, args, rows):
        columns.append(as_matrix(sum_pairs(tokens, batch)))
        kept += by_pair(tokens, batch) if keep else []
        order += indices
    matrix = torch.cat(columns) if columns else torch.zeros(0, 10)
    places = torch.tensor(order, dtype=torch.long).argsort()
    return from_matrix(matrix[places]), [kept[i] for i in places.tolist()] if keep else []


def token_passes(
    model: nn.Module, pad_id: int, items: Sequence[PromptedPair], args: TrainingArguments, rows: RowPacking
) -> Iterator[tuple[list[int], Batch, Tensor]]:
    """Yields, per batch, the indices of its items, the batch itself, and its `token_logps`."""
    model.eval()
    collate = GroupCollator(pad_id, rows)
    groups = [PromptGroup(prompt=prompt, pairs=(replace(pair, sample=None),)) for prompt, pair in items]
    for indices in token_batches(groups, rows):
        batch = to_device(collate([groups[i] for i in indices]), args.device)
        with autocast(args):
            yield indices, batch, token_logps(model, batch, rows.chunked_head)


def by_pair(tokens: Tensor, batch: Batch) -> list[TokenLogps]:
    lengths = batch["response_mask"].sum(dim=1).tolist()
    sides = [array("f", row[:length]) for row, length in zip(tokens.float().tolist(), lengths, strict=True)]
    half = len(sides) // 2
    return list(zip(sides[:half], sides[half:], strict=True))


def as_matrix(logps: PairLogps) -> Tensor:
    """The fields as columns of a matrix [n, 10] on the CPU; NaN for a missing reference."""
    nan = torch.full_like(logps.chosen, float("nan"))
    references = [nan if r is None else r for r in (logps.reference_chosen, logps.reference_rejected)]
    parts = [(nan, nan) if part is None else part.unbind(dim=1) for part in (logps.shared, logps.reference_shared)]
    fields = [logps.chosen, logps.rejected, logps.chosen_tokens, logps.rejected_tokens, *references]
    return torch.stack([field.float() for field in (*fields, *parts[0], *parts[1])], dim=1).cpu()


def from_matrix(matrix: Tensor) -> PairLogps:
    chosen, rejected, chosen_tokens, rejected_tokens, reference_chosen, reference_rejected = matrix[:, :6].unbind(dim=1)
    known = not bool(torch.isnan(reference_chosen).any())
    shared, reference_shared = matrix[:, 6:8], matrix[:, 8:]
    return PairLogps(
        chosen=chosen,
        rejected=rejected,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
        reference_chosen=reference_chosen if known else None,
        reference_rejected=reference_rejected if known else None,
        shared=shared,
        reference_shared=None if torch.isnan(reference_shared).any() else reference_shared,
    )
