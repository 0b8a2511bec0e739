"""From prompt groups to padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptpo.learner import SOURCES, PairBatch
from adaptpo.types import PreferencePair, PromptGroup, Response

Batch = dict[str, Tensor]


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """[rows, longest] int64."""
    width = max(len(row) for row in rows)
    padded = torch.full((len(rows), width), value, dtype=torch.long)
    for target, row in zip(padded, rows, strict=True):
        start = width - len(row) if left else 0
        target[start : start + len(row)] = torch.tensor(row, dtype=torch.long)
    return padded


def collate_rows(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Prompts padded on the left and responses on the right, so that all responses start in the same column.

    Returns `input_ids`, `attention_mask` and `position_ids` [rows, P + R], and `response_mask` [rows, R].
    """
    ones = [[[1] * len(row) for row in side] for side in (prompts, responses)]
    response_mask = pad(ones[1], 0)
    attention_mask = torch.cat([pad(ones[0], 0, left=True), response_mask], dim=1)
    return {
        "input_ids": torch.cat([pad(prompts, pad_id, left=True), pad(responses, pad_id)], dim=1),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        "response_mask": response_mask,
    }


def reference_tensors(pairs: Sequence[PreferencePair]) -> Batch:
    """`reference_chosen` and `reference_rejected` [n] float32, or nothing where the objective needs none."""
    logps = [pair.reference_logps for pair in pairs if pair.reference_logps is not None]
    if len(logps) < len(pairs):
        return {}
    chosen, rejected = torch.tensor(logps, dtype=torch.float32).unbind(dim=1)
    return {"reference_chosen": chosen, "reference_rejected": rejected}


@dataclass(frozen=True)
class GroupCollator:
    """Turns whole prompt groups into one batch: rows are all chosen responses, then all rejected ones."""

    pad_id: int

    def __call__(self, groups: Sequence[PromptGroup]) -> Batch:
        members = [(index, group, pair) for index, group in enumerate(groups) for pair in group.pairs]
        pairs = [pair for _, _, pair in members]
        prompts = [group.prompt.ids for _, group, _ in members]
        responses: list[Response] = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        nan = float("nan")
        return {
            **collate_rows(prompts * 2, [response.ids for response in responses], self.pad_id),
            **reference_tensors(pairs),
            "prompt_id": torch.tensor([pair.prompt_id for pair in pairs]),
            "group": torch.tensor([index for index, _, _ in members]),
            "group_size": torch.tensor([len(group.pairs) for _, group, _ in members]),
            "source": torch.tensor([SOURCES.index(pair.source) for pair in pairs]),
            "reward_gap": torch.tensor([nan if p.reward_gap is None else p.reward_gap for p in pairs]),
        }


def pair_batch(batch: Batch, margin: Tensor) -> PairBatch:
    names = ("prompt_id", "group", "group_size", "source", "reward_gap")
    return PairBatch(**{name: batch[name] for name in names}, margin=margin.detach().float())


def count_prompts(batch: Batch) -> int:
    return int(batch["group"].max()) + 1
