"""From the hidden states that reach a model's head to log-probs of tokens, without all logits at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from adaptpo.models.precision import autocast_dtype
from adaptpo.models.shared_prompt.attention import base_model

try:
    from trl.kernels import ChunkedLogProbFunction
except ImportError:  # Another TRL than 1.16 may keep it elsewhere.
    ChunkedLogProbFunction = None

LOGIT_BYTES = 2**27
"""Maximum bytes of float32 logits at once. Larger logits are computed in chunks, and again in the backward pass."""

VOCABULARY_TILE = 8192
"""Columns of the vocabulary that the fused head computes at once, for TRL's 4,096 tokens: 64 MiB in half precision."""


def all_logps(logits: Tensor) -> Tensor:
    """Log-probs of every token under `logits` [..., vocabulary], in at least float32."""
    return log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def chosen_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probs of `targets` [...] under `logits` [..., vocabulary], in at least float32."""
    return all_logps(logits).gather(-1, targets[..., None])[..., 0]


@dataclass(frozen=True)
class HeadInput:
    """The hidden `states` that reach the head, and the `autocast` that holds there, if any: accelerate's holds inside a
    model's forward alone."""

    states: Tensor
    autocast: torch.dtype | None

    @classmethod
    def of(cls, states: Tensor) -> HeadInput:
        return cls(states, autocast_dtype(states.device))

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


def head_logps(head: nn.Module, states: Tensor, targets: Tensor, size: int) -> Tensor:
    """Log-probs of `targets` [tokens] after `states` [tokens, hidden], under the autocast that is active."""
    if fused_head_fits(head, states):
        return fused_logps(head, states, targets)

    def logps(some: Tensor, tokens: Tensor) -> Tensor:
        return chosen_logps(head(some), tokens)

    pieces = zip(states.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(logps, some, tokens, use_reentrant=False) for some, tokens in pieces])


def fused_head_fits(head: nn.Module, states: Tensor) -> bool:
    """Whether TRL's kernel computes this head: a plain linear layer, whole on this GPU."""
    return (
        ChunkedLogProbFunction is not None
        and states.device.type == "cuda"
        and type(head) is nn.Linear
        and not isinstance(head.weight, DTensor)
        and not hasattr(head.weight, "ds_id")  # DeepSpeed's mark of a weight that may lie elsewhere.
    )


def fused_logps(head: nn.Linear, states: Tensor, targets: Tensor) -> Tensor:
    """`head_logps` by TRL's kernel: tiles of logits are folded into log-probs as they are computed, computed again in
    the backward pass, and their products with states and weights are summed in float32."""
    return ChunkedLogProbFunction.apply(states, head.weight, head.bias, targets, 1.0, VOCABULARY_TILE, None, 1.0, ())[0]


def tokens_at_once(model: nn.Module) -> int:
    """Number of tokens whose logits fit into the budget."""
    return max(1, LOGIT_BYTES // (4 * base_model(model).config.get_text_config().vocab_size))
