"""The arithmetic of a plan: pure functions of token counts, a model's shape and a machine's figures.

Matrix products count 2 operations per weight and token, backward twice the forward (Kaplan et al., 2020); attention
counts 4 operations per layer, attending pair of tokens and attention width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.float64]
"""Tokens of n prompts, or of one response to each of them, [n]; expected lengths need not be whole."""


@dataclass(frozen=True)
class Passes:
    """What forward passes compute: tokens through the layers, positions with logits, pairs of tokens that attend."""

    tokens: float = 0.0
    logits: float = 0.0
    attending: float = 0.0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.tokens + other.tokens, self.logits + other.logits, self.attending + other.attending)

    def __mul__(self, factor: float) -> Passes:
        return Passes(self.tokens * factor, self.logits * factor, self.attending * factor)


@dataclass(frozen=True)
class Shape:
    """Of a decoder: parameters of all, of the embedding and of the output head (the same ones where tied), layers,
    hidden size, width of all attention heads, width of keys and values together, and parameters that are trained."""

    parameters: int
    embedding: int
    head: int
    tied: bool
    layers: int
    hidden: int
    attention: int
    keys_values: int
    trained: int

    @property
    def body(self) -> int:
        """Weights that multiply every token."""
        return self.parameters - self.embedding - (0 if self.tied else self.head)


def shared_prompt(prompt: Lengths, responses: Sequence[Lengths]) -> Passes:
    """Groups whose prompt stands once: P + sum(R - 1) tokens, as no response's last token predicts anything. The sum
    over n prompts."""
    tokens = prompt.sum() + sum((r - 1).sum() for r in responses)
    within = prompt * (prompt + 1) / 2
    across = [(r - 1) * prompt + r * (r - 1) / 2 for r in responses]
    attending = (within.sum() + sum(a.sum() for a in across)) if responses else 0.0
    return Passes(float(tokens), float(sum(r.sum() for r in responses)), float(attending)) if responses else Passes()


def separate_rows(prompt: Lengths, responses: Sequence[Lengths]) -> Passes:
    """A row of prompt and response for each response, without logits: a reward model's passes."""
    rows = [prompt + r for r in responses]
    return Passes(float(sum(row.sum() for row in rows)), 0.0, float(sum((row * (row + 1) / 2).sum() for row in rows)))


def forward_operations(shape: Shape, passes: Passes) -> float:
    """FLOPs of these forward passes."""
    matrices = 2 * (shape.body * passes.tokens + shape.head * passes.logits)
    return matrices + 4 * shape.layers * shape.attention * passes.attending


def training_multiple(shape: Shape, recomputes: bool) -> float:
    """Forward passes' worth of one training step: 1, 2 more for the gradients of states and weights, 1 more where
    activations are recomputed. An adapter needs no gradients of the frozen weights: 1 less, but for its own share."""
    weights = shape.trained / shape.parameters if shape.trained < shape.parameters else 1.0
    return 2 + weights + (1 if recomputes else 0)


@dataclass(frozen=True)
class Decoding:
    """Responses to be drawn: how many, of which prompts' mean length, their mean length and the most they may have."""

    responses: float
    prompt: float
    length: float
    longest: float


def cache_bytes(shape: Shape, tokens: float, width: int) -> float:
    """Keys and values of one sequence; `width` bytes a number."""
    return shape.layers * shape.keys_values * width * tokens


def concurrent_sequences(memory: float, per_sequence: float, most: int | None, needed: float) -> int:
    """How many are decoded at once on an accelerator, at least one."""
    fit = int(memory // per_sequence)
    return max(1, min(fit, most or fit, ceil(needed)))


def decoding_steps(work: Decoding, concurrent: int, count: int, continuous: bool) -> float:
    """Steps of each of `count` accelerators: of full batches that last as long as the longest response allowed, or
    with every place taken again at once."""
    share = work.responses / count
    return share * work.length / concurrent if continuous else ceil(share / concurrent) * work.longest


def decoding_bytes(shape: Shape, work: Decoding, steps: float, count: int, weight: int, number: int) -> float:
    """Read by each accelerator: the weights once a step, and for each token the keys and values before it."""
    weights = shape.parameters * weight
    context = work.prompt + work.length / 2
    return steps * weights + work.responses / count * work.length * cache_bytes(shape, context, number)


def state_bytes(shape: Shape, weight: int) -> float:
    """Weights, and gradient and two moments of Adam of those that are trained, in the weights' precision; an adapter is
    float32."""
    if shape.trained == shape.parameters:
        return 4 * weight * shape.parameters
    return weight * shape.parameters + 12 * shape.trained


def activation_bytes(shape: Shape, tokens: float, number: int, recomputes: bool) -> float:
    """Of one forward pass with gradients: 17 numbers per token, layer and hidden unit (34 bytes in half precision;
    Korthikanti et al., 2022, without attention scores); recomputing keeps 1 of each layer and 17 of one."""
    kept = shape.layers + 17 if recomputes else 17 * shape.layers
    return kept * tokens * shape.hidden * number
