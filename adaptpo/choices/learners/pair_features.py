"""Features of an offline pair that a learner can use beside its score and its log-ratios.

A run computes the features that a method's learners request, stores them, and passes them to selection and to the
training step. To add one, write its class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from adaptpo.config.numbers import Count, Ranged
from adaptpo.seeds import seed_for
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class Predictions:
    """How a policy's states of a pair become its loss: the tokens [t] that the states of each side predict, the head
    from states to logits, the objective's loss of `PairLogps`, and the stored reference log-probs."""

    chosen: Tensor
    rejected: Tensor
    head: nn.Module
    pair_losses: Callable[[PairLogps], Tensor]
    reference: tuple[float, float] | None = None

    def loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The objective's loss of the pair as a function of its two log-probs, all scalars."""
        counts = [torch.tensor([len(tokens)], device=chosen.device) for tokens in (self.chosen, self.rejected)]
        logps = PairLogps(chosen[None], rejected[None], *counts)
        if self.reference is not None:
            kept = [chosen.new_tensor([logp]) for logp in self.reference]
            logps = PairLogps(chosen[None], rejected[None], *counts, *kept)
        return self.pair_losses(logps)[0]


@dataclass(frozen=True)
class PairStates:
    """A model's last hidden states of both responses of a pair, [tokens, hidden] each.

    For a policy, they are the states that predict the response's tokens, after the prompt; for an encoder, those of the
    response's own tokens, and `predictions` is None. `truncated`: whether a response exceeded the encoder's length.
    """

    chosen: Tensor
    rejected: Tensor
    predictions: Predictions | None = None
    truncated: bool = False


class PairFeature(Ranged, ABC):
    """A feature: `width` numbers about each offline pair.

    `follows_policy`: computed in every iteration, with the policy that starts it, and fixed within it; otherwise
    computed once with the initial model, or with `encoder`, a model's path or hub id. `standardized`: passed to
    learners with mean 0 and standard deviation 1 over the iteration's prompts. `needs_head`: logits must be the head's
    output.
    """

    name: ClassVar[str]
    follows_policy: ClassVar[bool] = False
    standardized: ClassVar[bool] = False
    needs_head: ClassVar[bool] = False
    width: Count = 1
    encoder: str | None = None

    @abstractmethod
    def values(self, pair: PairStates) -> Tensor:
        """The numbers for a pair, [width]."""


@dataclass(frozen=True)
class Similarity(PairFeature):
    """Cosine of the mean-pooled last hidden states of the chosen and the rejected response.

    With `encoder`, any model that `transformers.AutoModel` loads, the states are those of the responses alone;
    otherwise those of the initial policy for the responses after their prompt (MetaAPO, Table 2 and C.5, "w/ Semantic
    Similarity").

    >>> same = torch.ones(3, 4)
    >>> Similarity().values(PairStates(chosen=same, rejected=-same))
    tensor([-1.])
    """

    name: ClassVar[str] = "similarity"
    encoder: str | None = field(default=None, repr=False)

    def values(self, pair: PairStates) -> Tensor:
        return cosine_similarity(pair.chosen.float().mean(dim=0), pair.rejected.float().mean(dim=0), dim=0)[None]


@dataclass(frozen=True)
class HiddenState(PairFeature):
    """The difference of the mean-pooled last hidden states, chosen minus rejected, along a few random directions.

    The directions are normally distributed, scaled by 1 / sqrt(hidden size), and the same in every run.
    """

    name: ClassVar[str] = "hidden_state"
    follows_policy: ClassVar[bool] = True
    standardized: ClassVar[bool] = True
    width: Count = 4

    def values(self, pair: PairStates) -> Tensor:
        difference = pair.chosen.float().mean(dim=0) - pair.rejected.float().mean(dim=0)
        return difference @ self.directions(len(difference)).to(difference.device)

    def directions(self, hidden: int) -> Tensor:
        """The random directions, [hidden, width]."""
        generator = torch.Generator().manual_seed(seed_for("directions of the hidden state", hidden))
        return torch.randn(hidden, self.width, generator=generator) / hidden**0.5


@dataclass(frozen=True)
class HeadGradient:
    """The contribution of some tokens of a pair to dL/dW, with L the pair's loss and W the weight of the language-model
    head, as factors that are far smaller than W.

    With logits `W h_t`, probabilities p_t and tokens y_t, dL/dW is `sum_t a_t (e_{y_t} - p_t) h_t^T`, with a_t the
    derivative of L with respect to the log-prob of the response that t belongs to. `residuals` [tokens, vocabulary] are
    the `e_{y_t} - p_t`, `states` [tokens, hidden] the h_t, `slopes` [tokens] the a_t. The states h are constants, and
    an embedding tied to the head counts as the head alone.
    """

    residuals: Tensor
    states: Tensor
    slopes: Tensor

    @classmethod
    def of(cls, logps: Tensor, tokens: Tensor, states: Tensor, slopes: Tensor) -> HeadGradient:
        """Builds it from log-probs [tokens, vocabulary] of which `tokens` [tokens] were chosen."""
        residuals = -logps.exp()
        residuals[torch.arange(len(tokens)), tokens] += 1
        return cls(residuals, states.to(logps.dtype), slopes)

    def dot(self, other: HeadGradient) -> Tensor:
        """`sum_{s,t} a_s a_t <e_{y_s} - p_s, e_{y_t} - p_t> <h_s, h_t>`, s the tokens of this and t of the other."""
        with torch.autocast(self.states.device.type, enabled=False):
            products = (self.residuals @ other.residuals.T) * (self.states @ other.states.T)
            return self.slopes @ products @ other.slopes


def log_norm(squared: Tensor) -> Tensor:
    """`log(1 + norm)`; rounding may have made the square slightly negative."""
    return squared.clamp(min=0).sqrt().log1p()


@dataclass(frozen=True)
class GradientNorm(PairFeature):
    """`log(1 + |dL/dW|)`, with L the objective's loss of the pair and W the weight of the language-model head.

    It is computed in closed form, without a backward pass; see `HeadGradient`.
    """

    name: ClassVar[str] = "gradient_norm"
    follows_policy: ClassVar[bool] = True
    standardized: ClassVar[bool] = True
    needs_head: ClassVar[bool] = True

    def values(self, pair: PairStates) -> Tensor:
        assert pair.predictions is not None
        made = pair.predictions
        states, tokens = torch.cat([pair.chosen, pair.rejected]), torch.cat([made.chosen, made.rejected])
        logps = made.head(states.to(next(made.head.parameters()).dtype)).float().log_softmax(dim=-1)
        sides = logps.gather(1, tokens[:, None])[:, 0].split([len(made.chosen), len(made.rejected)])
        slopes = slopes_of(made, *(side.sum() for side in sides))
        scale = torch.cat([slope.expand(len(side)) for slope, side in zip(slopes, sides, strict=True)])
        gradient = HeadGradient.of(logps, tokens, states, scale)
        return log_norm(gradient.dot(gradient))[None]


def slopes_of(predictions: Predictions, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of the pair's loss with respect to its two log-probs."""
    with torch.enable_grad():
        leaves = [logp.detach().requires_grad_() for logp in (chosen, rejected)]
        return torch.autograd.grad(predictions.loss(*leaves), leaves, materialize_grads=True)


def standardize(values: Tensor) -> Tensor:
    """The values [n, width] with mean 0 and standard deviation 1 in every column; 0 if all n are equal.

    >>> standardize(torch.tensor([[1.0], [3.0]]))
    tensor([[-1.],
            [ 1.]])
    """
    centred = values - values.mean(dim=0)
    return centred / centred.square().mean(dim=0).sqrt().clamp(min=1e-8)
