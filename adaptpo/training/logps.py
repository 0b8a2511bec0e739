"""Log-probabilities of responses: the one path that policy and reference share."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from adaptpo.objectives import PairLogps
from adaptpo.training.collate import Batch


def accepted_arguments(model: nn.Module) -> frozenset[str]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(base.forward).parameters)


def unwrapped(model: Any) -> Any:
    return model.module if hasattr(model, "module") else model


def response_logps(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probs summed over response tokens (nats) and token counts, both [rows].

    The language-model head runs on response positions only where the model knows `logits_to_keep`. Log-softmax and
    sum are computed in float32 at least, whatever the model's dtype: in bfloat16 they are off by more than a nat.
    """
    mask = batch["response_mask"]
    width = mask.shape[1]
    arguments: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    accepted = accepted_arguments(unwrapped(model))
    if "position_ids" in accepted:
        arguments["position_ids"] = batch["position_ids"]
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = width + 1
    logits = model(**arguments, use_cache=False).logits[:, -width - 1 : -1]
    targets = batch["input_ids"][:, -width:]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    token_logps = log_softmax(wide, dim=-1).gather(-1, targets[..., None])[..., 0]
    return torch.where(mask.bool(), token_logps, 0.0).sum(dim=1), mask.sum(dim=1)


def pair_logps(model: nn.Module, batch: Batch) -> PairLogps:
    """`PairLogps` of a collated batch of groups, with the kept reference log-probs where the batch carries them."""
    sums, tokens = response_logps(model, batch)
    chosen, rejected = sums.chunk(2)
    chosen_tokens, rejected_tokens = tokens.chunk(2)
    return PairLogps(
        chosen=chosen,
        rejected=rejected,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
        reference_chosen=batch.get("reference_chosen"),
        reference_rejected=batch.get("reference_rejected"),
    )
