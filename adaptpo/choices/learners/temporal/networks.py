"""Networks from a pair's features to its weight: MetaPO's linear form (Eq. 10), and the alternatives of Table 12."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

Architecture = Literal["linear", "mlp", "deep_mlp", "attention"]

START = math.log(math.e - 1)
"""softplus(START) = 1."""
WIDTH, HEADS = 4, 2


class WeightNetwork(nn.Module):
    """`w = softplus(body(s))`, [n, features] to [n], on the CPU in float32.

    The last layer starts with zero weights and the bias `log(e - 1)`, so every pair counts exactly 1 and training
    starts as it would without MetaPO.
    """

    def __init__(self, body: nn.Module, last: nn.Linear) -> None:
        super().__init__()
        self.body, self.last = body, last
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, START)

    def forward(self, features: Tensor) -> Tensor:
        return softplus(self.last(self.body(features)))[:, 0]


class FeatureAttention(nn.Module):
    """Each feature is one token of width 4, `value * scale + offset`; two heads mix them and output their mean."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(features, WIDTH))
        self.offset = nn.Parameter(torch.randn(features, WIDTH))
        self.mix = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        tokens = features[..., None] * self.scale + self.offset
        return self.mix(tokens, tokens, tokens, need_weights=False)[0].mean(dim=1)


def linear(features: int) -> WeightNetwork:
    """Eq. 10: 7 parameters for 6 features."""
    return WeightNetwork(nn.Identity(), nn.Linear(features, 1))


def mlp(features: int) -> WeightNetwork:
    """6-32-1: 257 parameters with all biases; the paper's 225 lack those of the hidden layer."""
    return WeightNetwork(nn.Sequential(nn.Linear(features, 32), nn.Tanh()), nn.Linear(32, 1))


def deep_mlp(features: int) -> WeightNetwork:
    """6-64-32-1: 2561 parameters; the paper's 2145 lack the first layer's weights and its bias."""
    body = nn.Sequential(nn.Linear(features, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh())
    return WeightNetwork(body, nn.Linear(32, 1))


def attention(features: int) -> WeightNetwork:
    """Two heads over the features: 133 parameters; the paper does not explain its 156."""
    return WeightNetwork(FeatureAttention(features), nn.Linear(WIDTH, 1))


NETWORKS: dict[Architecture, Callable[[int], WeightNetwork]] = {
    "linear": linear,
    "mlp": mlp,
    "deep_mlp": deep_mlp,
    "attention": attention,
}


def new_network(architecture: Architecture, features: int, seed: int) -> WeightNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[architecture](features)
