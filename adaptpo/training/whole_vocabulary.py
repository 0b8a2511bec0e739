"""Measurements of a training step that weights may need and that take the head's output for the whole vocabulary.

The policy's own forward pass provides the states that reach its head. Logits are recomputed from them without a graph,
for a few tokens at a time, because those of all tokens would fill the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adaptpo.choices.learners.base import Measure
from adaptpo.choices.learners.pair_features import HeadGradient, log_norm
from adaptpo.choices.objectives import Objective
from adaptpo.models.collate import Batch
from adaptpo.models.head import all_logps, tokens_at_once
from adaptpo.models.hidden_states import response_states
from adaptpo.models.logps import mean_of_pairs, pair_logps
from adaptpo.models.shared_prompt.attention import base_model
from adaptpo.training.modes import evaluating
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class HeadStates:
    """The last hidden states [tokens, hidden] that predict the response tokens of a batch, in their order, and the head
    that maps `at_once` of them at a time to logits."""

    head: nn.Module
    states: Tensor
    at_once: int

    def logps(self, tokens: Tensor) -> Tensor:
        """Log-probs of the whole vocabulary at these tokens of the batch, [n, vocabulary]."""
        return all_logps(self.head(self.states[tokens]))


@dataclass(frozen=True)
class LiveReference:
    """The reference in a training step: `model` inside the context that `as_reference` returns."""

    model: nn.Module
    as_reference: Callable[[], AbstractContextManager] = nullcontext

    @torch.no_grad()
    def states(self, batch: Batch) -> HeadStates:
        head = base_model(self.model).get_output_embeddings()
        with self.as_reference(), evaluating(self.model):
            return HeadStates(head, response_states(self.model, head, batch), tokens_at_once(self.model))


def watched_logps(model: nn.Module, batch: Batch, chunked_head: bool) -> tuple[PairLogps, HeadStates]:
    """Returns `pair_logps` and the states that it computes on the way, without their graph."""
    head = base_model(model).get_output_embeddings()
    with first_input(head) as inputs:
        logps = pair_logps(model, batch, chunked_head)
    return logps, HeadStates(head, inputs[0][batch["target_mask"]], tokens_at_once(model))


@contextmanager
def first_input(head: nn.Module) -> Iterator[list[Tensor]]:
    """Yields a list that collects the head's first input; a chunked head is called again for each chunk."""
    inputs: list[Tensor] = []

    def collect(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if not inputs:
            inputs.append(arguments[0].detach())

    handle = head.register_forward_pre_hook(collect)
    try:
        yield inputs
    finally:
        handle.remove()


@dataclass(frozen=True)
class VocabularyProbe:
    """Measures in each training step what a weighting has `asked` for, the exact divergence from `reference` among it.
    `precision` returns the precision context of training."""

    reference: LiveReference | None
    asked: frozenset[Measure]
    precision: Callable[[], AbstractContextManager]

    def logps(
        self, model: nn.Module, batch: Batch, chunked_head: bool, objective: Objective
    ) -> tuple[PairLogps, dict[str, Tensor]]:
        """Returns `pair_logps` and the measurements, as fields of `PairBatch`, [n] each."""
        # Before the policy's forward pass, whose activations stay in memory for the backward pass.
        with self.precision():
            theirs = None if self.reference is None else self.reference.states(batch)
        logps, ours = watched_logps(model, batch, chunked_head)
        found: dict[str, Tensor] = {}
        with torch.no_grad(), self.precision(), evaluating(ours.head):
            if theirs is not None:
                found["divergence"] = exact_divergence(ours, theirs, batch)
            if "on_policy" in self.asked:
                found["on_policy"] = on_policy_weights(ours, batch)
            if "head_gradient_norm" in self.asked:
                found["head_gradient_norm"] = head_gradient_norms(ours, batch, slopes(objective, logps))
        return logps, found


def pair_mask(batch: Batch) -> Tensor:
    """`response_mask` of the n chosen and the n rejected responses, [2n, longest]; samples come after them."""
    return batch["response_mask"][: 2 * len(batch["pairs"].prompt_id)]


# The divergence


def exact_divergence(policy: HeadStates, reference: HeadStates, batch: Batch) -> Tensor:
    """KL(policy | reference) of n pairs in nats per token, [n]: the sum over the vocabulary of
    `pi (log pi - log pi_ref)` (Eq. 7 of the MetaPO paper), averaged over the tokens of both responses."""
    mask = pair_mask(batch)
    pieces = torch.arange(int(mask.sum()), device=mask.device).split(policy.at_once)
    tokens = torch.cat([token_divergences(policy.logps(piece), reference.logps(piece)) for piece in pieces])
    sums = tokens.new_zeros(mask.shape).masked_scatter(mask, tokens).sum(dim=1)
    return mean_of_pairs(sums, mask.sum(dim=1))


def token_divergences(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL of distributions given by log-probs [n, vocabulary], [n]."""
    return (ours.exp() * (ours - theirs)).sum(dim=-1)


# How likely the policy is to write a pair


def on_policy_weights(policy: HeadStates, batch: Batch) -> Tensor:
    """The product of both responses' `exp(mean_t [log pi(y_t) - log sum_v pi(v)^2])` of n pairs, [n] (WPO, Eq. 2)."""
    mask = pair_mask(batch)
    targets = batch["targets"][batch["target_mask"]]
    pieces = torch.arange(int(mask.sum()), device=mask.device).split(policy.at_once)
    tokens = torch.cat([aligned_logps(policy.logps(piece), targets[piece]) for piece in pieces])
    means = tokens.new_zeros(mask.shape).masked_scatter(mask, tokens).sum(dim=1) / mask.sum(dim=1)
    return means.unflatten(0, (2, -1)).sum(dim=0).exp()


def aligned_logps(logps: Tensor, targets: Tensor) -> Tensor:
    """The log-probs of `targets` [n] under `logps` [n, vocabulary], minus the log of a sample's mean probability."""
    return logps.gather(-1, targets[:, None])[:, 0] - torch.logsumexp(2 * logps, dim=-1)


# The norm of the head's gradient


def slopes(objective: Objective, logps: PairLogps) -> Tensor:
    """Derivatives of each pair's loss with respect to the log-probs of its chosen and rejected response, [2, n]."""
    with torch.enable_grad():
        sides = torch.stack([logps.chosen, logps.rejected]).detach().requires_grad_()
        losses = objective.loss(replace(logps, chosen=sides[0], rejected=sides[1]))
        return torch.autograd.grad(losses.sum(), sides)[0]


def head_gradient_norms(policy: HeadStates, batch: Batch, slopes: Tensor) -> Tensor:
    """`log(1 + |dL/dW|)` of n pairs, [n]: L is the pair's loss, not multiplied by its weight, and W the head's weight.

    `slopes` [2, n] are derivatives of L with respect to the log-probs of the two responses. Uses `HeadGradient` instead
    of a backward pass.
    """
    lengths = pair_mask(batch).sum(dim=1)
    tokens, steep = batch["targets"][batch["target_mask"]], slopes.flatten().repeat_interleave(lengths)

    def gradient(where: Tensor) -> HeadGradient:
        return HeadGradient.of(policy.logps(where), tokens[where], policy.states[where], steep[where])

    sides = torch.arange(len(steep), device=steep.device).split(lengths.tolist())
    half = len(sides) // 2
    pairs = [torch.cat(both) for both in zip(sides[:half], sides[half:], strict=True)]
    return log_norm(torch.stack([squared_norm(where.split(policy.at_once), gradient) for where in pairs]))


def squared_norm(parts: Sequence[Tensor], gradient: Callable[[Tensor], HeadGradient]) -> Tensor:
    """The squared norm of the summed gradients of parts of a pair's tokens; holds at most two gradients at a time."""
    products: list[Tensor] = []
    for number, part in enumerate(parts):
        own = gradient(part)
        products.append(own.dot(own))
        products += [2 * own.dot(gradient(other)) for other in parts[:number]]
    return torch.stack(products).sum()
