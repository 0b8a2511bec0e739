"""Log-probabilities of responses, computed the same way for policy and reference."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from adaptpo.models.collate import Batch
from adaptpo.models.shared_prompt.attention import base_model, forward_arguments
from adaptpo.types import PairLogps

LOGIT_BYTES = 2**27
"""Maximum bytes of float32 logits at once. Larger logits are computed in chunks, and again in the backward pass."""

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


def all_logps(logits: Tensor) -> Tensor:
    """Log-probs of every token under `logits` [..., vocabulary], in at least float32."""
    return log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def chosen_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probs of `targets` [...] under `logits` [..., vocabulary], in at least float32."""
    return all_logps(logits).gather(-1, targets[..., None])[..., 0]


def whole_logps(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probs of all response tokens [tokens], from the model's own logits."""
    arguments = model_arguments(model, batch)
    logits = model(**arguments).logits
    if "logits_to_keep" not in arguments:
        logits = logits[:, batch["columns"]]
    return chosen_logps(logits, batch["targets"])[batch["target_mask"]]


@dataclass(frozen=True)
class HeadInput:
    """The hidden `states` that reach the head, and the `autocast` that holds there, if any: accelerate's holds inside a
    model's forward alone."""

    states: Tensor
    autocast: torch.dtype | None

    @classmethod
    def of(cls, states: Tensor) -> HeadInput:
        device = states.device.type
        return cls(states, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)

    def precision(self) -> AbstractContextManager:
        return nullcontext() if self.autocast is None else torch.autocast(self.states.device.type, self.autocast)


@contextmanager
def head_inputs(head: nn.Module) -> Iterator[list[HeadInput]]:
    """Collects what reaches the language-model head; the head itself computes only one position."""
    inputs: list[HeadInput] = []

    def collect(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        inputs.append(HeadInput.of(arguments[0]))
        return (arguments[0][:, :1],)

    handle = head.register_forward_pre_hook(collect)
    try:
        yield inputs
    finally:
        handle.remove()


def chunked_logps(model: nn.Module, batch: Batch, size: int) -> Tensor:
    """Same as `whole_logps`, with logits of `size` tokens at a time; for models whose logits are the head's output."""
    head = base_model(model).get_output_embeddings()
    with head_inputs(head) as inputs:
        model(**model_arguments(model, batch))
    hidden, targets = inputs[0].states[batch["target_mask"]], batch["targets"][batch["target_mask"]]

    def logps(states: Tensor, tokens: Tensor) -> Tensor:
        return chosen_logps(head(states), tokens)

    pieces = zip(hidden.split(size), targets.split(size), strict=True)
    with inputs[0].precision():
        return torch.cat([checkpoint(logps, states, tokens, use_reentrant=False) for states, tokens in pieces])


def tokens_at_once(model: nn.Module) -> int:
    """Number of tokens per chunk of the head."""
    return max(1, LOGIT_BYTES // (4 * base_model(model).config.get_text_config().vocab_size))


def chunk_size(model: nn.Module, batch: Batch) -> int | None:
    """Number of tokens per chunk of the head, or None if all logits fit into the budget."""
    row = 4 * base_model(model).config.get_text_config().vocab_size
    return tokens_at_once(model) if batch["targets"].numel() * row > LOGIT_BYTES else None


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
    both = 2 * len(batch["prompt_id"])
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
