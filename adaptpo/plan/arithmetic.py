"""The arithmetic of a plan: pure functions of token counts, a model's shape and a machine's figures.

Matrix products count 2 operations per weight and token, backward twice the forward (Kaplan et al., 2020); attention
counts 4 operations per layer, attending pair of tokens and attention width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.float64]
"""Tokens of n prompts, or of one response to each of them, [n]; expected lengths need not be integers."""


@dataclass(frozen=True)
class Passes:
    """The work of forward passes: tokens through the layers, positions with logits, pairs of tokens that attend."""

    tokens: float = 0.0
    logits: float = 0.0
    attending: float = 0.0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.tokens + other.tokens, self.logits + other.logits, self.attending + other.attending)

    def __mul__(self, factor: float) -> Passes:
        return Passes(self.tokens * factor, self.logits * factor, self.attending * factor)


@dataclass(frozen=True)
class Shape:
    """The size of a decoder: parameters in total, in the embedding and in the output head (the same ones if tied),
    layers, hidden size, width of all attention heads, width of keys and values together, and trained parameters."""

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
    """Passes over n groups that compute each prompt once: P + sum(R - 1) tokens per group, because a response's last
    token predicts nothing."""
    tokens = prompt.sum() + sum((r - 1).sum() for r in responses)
    within = prompt * (prompt + 1) / 2
    across = [(r - 1) * prompt + r * (r - 1) / 2 for r in responses]
    attending = (within.sum() + sum(a.sum() for a in across)) if responses else 0.0
    return Passes(float(tokens), float(sum(r.sum() for r in responses)), float(attending)) if responses else Passes()


def separate_rows(prompt: Lengths, responses: Sequence[Lengths]) -> Passes:
    """Passes over a row of prompt and response for each response, without logits, as in a reward model."""
    rows = [prompt + r for r in responses]
    return Passes(float(sum(row.sum() for row in rows)), 0.0, float(sum((row * (row + 1) / 2).sum() for row in rows)))


def forward_operations(shape: Shape, passes: Passes) -> float:
    """FLOPs of these forward passes."""
    matrices = 2 * (shape.body * passes.tokens + shape.head * passes.logits)
    return matrices + 4 * shape.layers * shape.attention * passes.attending


def training_multiple(shape: Shape, recomputes: bool) -> float:
    """The cost of a training step in forward passes: 1, plus 2 for the gradients of states and weights, plus 1 if
    activations are recomputed. An adapter needs no gradients of frozen weights: 1 less, except for its own share."""
    weights = shape.trained / shape.parameters if shape.trained < shape.parameters else 1.0
    return 2 + weights + (1 if recomputes else 0)


def cache_bytes(shape: Shape, tokens: float, width: int) -> float:
    """Bytes of the keys and values of one sequence, at `width` bytes per number."""
    return shape.layers * shape.keys_values * width * tokens


def activation_bytes(shape: Shape, tokens: float, number: int, recomputes: bool) -> float:
    """Bytes of one forward pass with gradients: 17 numbers per token, layer and hidden unit (34 bytes in half
    precision; Korthikanti et al., 2022, without attention scores); recomputing stores 1 per layer and 17 for one."""
    kept = shape.layers + 17 if recomputes else 17 * shape.layers
    return kept * tokens * shape.hidden * number
