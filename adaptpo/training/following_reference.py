"""A reference model that follows the policy in training, beside it in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from adaptpo.choices.reference import Synced
from adaptpo.models.collate import Batch
from adaptpo.models.logps import sum_pairs, token_logps

FOLLOWING = "reference.pt"
"""The file of the reference's weights and steps in a checkpoint's folder."""


class FollowingReference:
    """Computes the reference's log-probs of each batch as it is trained on, and moves toward the policy by `rule`.

    `model` is frozen, and of the policy's architecture. With `by_token`, batches get the log-probs of every token too.
    """

    def __init__(self, model: nn.Module, rule: Synced, chunked_head: bool = False, by_token: bool = False) -> None:
        self.model, self.rule = model.eval().requires_grad_(False), rule
        self.chunked_head, self.by_token = chunked_head, by_token
        self.steps = 0

    @torch.no_grad()
    def added_to(self, batch: Batch) -> Batch:
        """The batch with the reference's log-probs of its pairs, in place of stored ones."""
        tokens = token_logps(self.model, batch, self.chunked_head)
        logps = sum_pairs(tokens, {name: value for name, value in batch.items() if name != "reference_tokens"})
        found = {"reference_chosen": logps.chosen, "reference_rejected": logps.rejected}
        found |= {"reference_shared": logps.shared}
        found |= {"reference_tokens": tokens[: 2 * len(batch["pairs"].prompt_id)]} if self.by_token else {}
        return {**batch, **found}

    @torch.no_grad()
    def follow(self, policy: nn.Module) -> None:
        """Counts an optimizer step of the policy, and moves if one is due."""
        self.steps += 1
        if self.steps % self.rule.ref_model_sync_steps == 0:
            share = self.rule.ref_model_mixup_alpha
            for own, other in zip(self.model.parameters(), policy.parameters(), strict=True):
                own.mul_(1 - share).add_(other, alpha=share)

    def save(self, folder: Path) -> None:
        torch.save({"steps": self.steps, "weights": self.model.state_dict()}, folder / FOLLOWING)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / FOLLOWING, weights_only=True, mmap=True, map_location="cpu")
        self.steps = state["steps"]
        self.model.load_state_dict(state["weights"])
