"""Log-probabilities of responses, computed the same way for policy and reference."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from adaptpo.models.collate import Batch
from adaptpo.models.head import chosen_logps, head_inputs, head_logps, tokens_at_once
from adaptpo.models.shared_prompt.attention import base_model, forward_arguments
from adaptpo.types import PairLogps

MOST = 10.0
"""Maximum nats that one token adds to the divergence."""


def accepted_arguments(model: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(base_model(model).forward).parameters)


def model_arguments(model: nn.Module, batch: Batch) -> dict[str, Any]:
    arguments = {"input_ids": batch["input_ids"], "use_cache": False}
    if "shared_prompts" in batch:
        arguments |= forward_arguments(batch["shared_prompts"], batch["position_ids"])
    if "logits_to_keep" in accepted_arguments(model):
        arguments["logits_to_keep"] = batch["columns"]
    return arguments


def at_targets(values: Tensor, batch: Batch) -> Tensor:
    """The values [rows, columns, ...] that belong to trained tokens, [tokens, ...]."""
    return values.flatten(0, 1).index_select(0, batch["target_places"])


def whole_logps(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probs of all response tokens [tokens], from the model's own logits."""
    arguments = model_arguments(model, batch)
    logits = model(**arguments).logits
    if "logits_to_keep" not in arguments:
        logits = logits[:, batch["columns"]]
    return at_targets(chosen_logps(logits, batch["targets"]), batch)


def chunked_logps(model: nn.Module, batch: Batch, size: int) -> Tensor:
    """Same as `whole_logps`, with logits of `size` tokens at a time; for models whose logits are the head's output."""
    head = base_model(model).get_output_embeddings()
    with head_inputs(head) as inputs:
        model(**model_arguments(model, batch))
    hidden, targets = at_targets(inputs[0].states, batch), at_targets(batch["targets"], batch)
    with inputs[0].precision():
        return head_logps(head, hidden, targets, size)


def chunk_size(model: nn.Module, batch: Batch) -> int | None:
    """Number of tokens per chunk of the head, or None if all logits fit into the budget."""
    size = tokens_at_once(model)
    return size if batch["targets"].numel() > size else None


def token_logps(model: nn.Module, batch: Batch, chunked_head: bool = False) -> Tensor:
    """Returns log pi(token | prompt, preceding tokens), [n, longest] in nats, 0 after the end of a response.

    If the model accepts `logits_to_keep`, the language-model head runs on response positions only. Log-softmax and
    sum are computed in at least float32, whatever the model's dtype: in bfloat16 they are off by more than a nat.
    """
    size = chunk_size(model, batch) if chunked_head else None
    logps = whole_logps(model, batch) if size is None else chunked_logps(model, batch, size)
    mask = batch["response_mask"]
    return logps.new_zeros(mask.shape).masked_scatter(mask, logps)


def response_logps(model: nn.Module, batch: Batch, chunked_head: bool = False) -> tuple[Tensor, Tensor]:
    """Returns log-probs summed over response tokens (nats) and token counts, both [n]."""
    return token_logps(model, batch, chunked_head).sum(dim=1), batch["response_mask"].sum(dim=1)


def pair_logps(model: nn.Module, batch: Batch, chunked_head: bool = False) -> PairLogps:
    """`PairLogps` of a collated batch of groups, with the stored reference log-probs if the batch carries them."""
    return sum_pairs(token_logps(model, batch, chunked_head), batch)


def sum_pairs(tokens: Tensor, batch: Batch) -> PairLogps:
    """Sums the output of `token_logps` for this batch: rows of the n chosen, the n rejected, then the samples."""
    both = 2 * len(batch["pairs"].prompt_id)
    sums, counts = tokens.sum(dim=1), batch["response_mask"].sum(dim=1)
    chosen, rejected = sums[:both].chunk(2)
    chosen_tokens, rejected_tokens = counts[:both].chunk(2)
    return PairLogps(
        chosen=chosen,
        rejected=rejected,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
        reference_chosen=batch.get("reference_chosen"),
        reference_rejected=batch.get("reference_rejected"),
        sample=sample_logps(batch, sums[both:]),
        divergence=divergence(tokens[:both].detach(), batch),
        shared=shared_sums(tokens[:both], counts[:both]),
        reference_shared=batch.get("reference_shared"),
    )


def shared_sums(tokens: Tensor, counts: Tensor) -> Tensor:
    """Sums of n pairs [n, 2] over as many tokens as the shorter response has, from `tokens` [2n, longest] of the n
    chosen and the n rejected responses and their `counts` [2n]."""
    shorter, longer = (bound(*counts.chunk(2)) for bound in (torch.minimum, torch.maximum))
    shorter = torch.where(shorter > 0, shorter, longer).repeat(2)  # A response alone is as long as itself.
    inside = torch.arange(tokens.shape[1], device=tokens.device) < shorter[:, None]
    return torch.stack((tokens * inside).sum(dim=1).chunk(2), dim=1)


def sample_logps(batch: Batch, logps: Tensor) -> Tensor | None:
    """The log-prob of each pair's sample [n], 0 for a pair without one; None if no pair has one."""
    present = batch.get("has_sample")
    return None if present is None else logps.new_zeros(present.shape).masked_scatter(present, logps)


def divergence(tokens: Tensor, batch: Batch) -> Tensor | None:
    """KL(policy | reference) of n pairs in nats per token, [n], by the k3 estimator (Schulman, 2020) `exp(g) - 1 - g`.

    g is log pi_ref - log pi; the mean is over the tokens of both responses. None if the batch carries no
    `reference_tokens`. The estimate is 0 if the two models agree, and never negative. Its tokens come from the data,
    not from samples of the policy. Each token counts at most `MOST`: otherwise a single token that the policy has ruled
    out would dominate.
    """
    if "reference_tokens" not in batch:
        return None
    reference = batch["reference_tokens"]
    rows, longest = reference.shape  # Samples, which have no reference, may be longer.
    gaps = (reference - tokens[:, :longest]).clamp(max=MOST)
    sums = (gaps.exp() - 1 - gaps).clamp(max=MOST).sum(dim=1)
    return mean_of_pairs(sums, batch["response_mask"][:rows].sum(dim=1)).float()


def mean_of_pairs(sums: Tensor, counts: Tensor) -> Tensor:
    """Turns sums over the tokens of n chosen and n rejected responses [2n] into means over both of each pair, [n]."""
    sides = torch.stack([sums, counts]).unflatten(1, (2, -1)).sum(dim=1)
    return sides[0] / sides[1]
