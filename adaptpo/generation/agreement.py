"""Checks that a server answers like the policy in training: greedy answers of both to the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adaptpo.generation.base import Sampling
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.types import Prompt, Response

PROBES, PROBE_TOKENS = 2, 16
"""Number of prompts asked before a server is trusted, and of tokens per answer."""
NEAR_TIE = {torch.float32: 0.05, torch.float64: 0.05}
LOW_PRECISION = 0.5
"""Nats by which the server's token may be less likely than the policy's best: another kernel rounds differently."""


@dataclass(frozen=True)
class Expected:
    """The policy's greedy answer to a prompt, and the log-probs of all tokens at each step, [tokens, vocabulary]."""

    prompt: Prompt
    response: Response
    logps: Tensor
    near_tie: float


def greedily(sampling: Sampling) -> Sampling:
    tokens = min(PROBE_TOKENS, sampling.max_new_tokens)
    return replace(sampling, temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=tokens)


@torch.inference_mode()
def expected_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    precision: Callable[[], AbstractContextManager],
    dtype: torch.dtype,
) -> list[Expected]:
    """Returns the policy's greedy answer to each prompt; `dtype` is that of the matrix products."""
    generator = TransformersGenerator(model, tokenizer, greedily(sampling), precision=precision)
    answers = [several[0] for several in generator.generate(prompts, 1, [0] * len(prompts))]
    near_tie = NEAR_TIE.get(dtype, LOW_PRECISION)
    with precision():
        return [
            Expected(prompt, answer, step_logps(model.eval(), prompt, answer), near_tie)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]


def step_logps(model: nn.Module, prompt: Prompt, answer: Response) -> Tensor:
    ids = torch.tensor([prompt.ids + answer.ids], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt.ids) - 1 : -1]
    return logits.float().log_softmax(dim=-1).cpu()


def disagreement(expected: Expected, answer: Response) -> str | None:
    """Describes the mismatch of a server's greedy answer, or returns None.

    Where the answers diverge, both tokens must be about equally likely under the policy; after that they may differ.
    """
    ours = expected.response
    if answer.text == ours.text:
        return None
    steps = enumerate(zip(ours.ids, answer.ids, strict=False))
    step, token = next(((step, theirs) for step, (own, theirs) in steps if own != theirs), (None, None))
    if step is not None:
        gap = (expected.logps[step].max() - expected.logps[step, token]).item()
        if gap <= expected.near_tie:
            return None
    return (
        f"for prompt {expected.prompt.id}, the policy's own most likely answer begins {ours.text!r}, but the server's "
        f"begins {answer.text!r}"
    )
