"""Looks through an optimizer step of the policy: how each pair's weight affected held-out pairs.

With `theta' = theta - U(sum_i weight_i * g_i / N)`, g_i the gradient of pair i's loss and U the optimizer's update of
the clipped gradient, and with J the derivative of U there,

    d goal(theta') / d weight_i = -<g_i, d> / N,   d = J^T grad goal(theta').

`<g_i, d>` is the derivative of pair i's loss along d, which two forward passes give for all pairs. The step is the one
that training takes anyway, and `theta` is reconstructed from the state after it. Besides the policy, its gradient and
the optimizer's state, this takes only one copy of the weights, which are moved in place and put back bit for bit.

Over several ranks, each holds some of the held-out pairs and some of the step's. The gradient of the goal is summed
over the ranks; the derivatives stay with the rank that has the pair.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from adaptpo.choices.learners.base import Estimator, Goal, Influence
from adaptpo.choices.objectives import Objective
from adaptpo.errors import ConfigError
from adaptpo.models.collate import FILLER, Batch
from adaptpo.models.logps import pair_logps
from adaptpo.training.modes import differentiable_attention, evaluating, own_forward
from adaptpo.training.optimizer_rules import UpdateRule, update_rule
from adaptpo.training.replicas import Replicas, exchanged, own, own_state
from adaptpo.types import PairBatch

REACH = 1e-3
"""The central difference moves the weights by this share of their norm to either side: a smaller step drowns in float32
rounding, a larger one in the curvature."""

Trained = tuple[Batch, PairBatch, Tensor]
"""A micro-batch, its pairs, and their weights [n]."""


class PairLosses(nn.Module):
    """Losses and margins [n] of the pairs of a batch, as a module, so that they can be computed with other weights.
    A filler has no pairs, but a pass and a graph."""

    def __init__(self, model: nn.Module, objective: Objective, chunked_head: bool = False) -> None:
        super().__init__()
        self.model, self.objective, self.chunked_head = model, objective, chunked_head

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logps = pair_logps(self.model, batch, self.chunked_head)
        counted = slice(0 if FILLER in batch else None)
        return self.objective.loss(logps)[counted], self.objective.margin(logps)[counted]


@dataclass(frozen=True)
class Weight:
    """One trainable tensor of the policy and, if needed, a copy of its optimizer `state` before the step."""

    name: str
    tensor: nn.Parameter
    rule: UpdateRule
    state: dict[str, Any]

    @property
    def own(self) -> Tensor:
        """What this rank holds of it."""
        return own(self.tensor.detach())

    @property
    def own_gradient(self) -> Tensor:
        return torch.zeros_like(self.own) if self.tensor.grad is None else own(self.tensor.grad)


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """On the device of the tensors where it has room, else on the host, which takes seconds for a billion weights."""
    size = sum(tensor.nbytes for tensor in tensors)
    device = tensors[0].device if tensors and has_room(tensors[0].device, size) else torch.device("cpu")
    return [tensor.detach().to(device, copy=True) for tensor in tensors]


def has_room(device: torch.device, size: int) -> bool:
    """Whether the device holds `size` bytes more beside the passes over held-out pairs, for which twice as much is left
    free."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) > 3 * size


class LookAhead:
    """A `TakenStep`: created when the gradient of the step is complete, queried once the step is taken.

    Args:
        losses: the policy's pairs under the objective of this step.
        optimizer: torch's own optimizer, before the step.
        trained: the micro-batches of the step.
        prompts: the divisor N of the training loss.
        max_norm: the norm that the gradient is clipped to; 0 means no clipping.
        validation: batches of held-out pairs.
        precision: returns the precision context of training, for the gradient on the held-out pairs.
        replicas: the policy's copies on the ranks. `trained` and `validation` are this rank's, `prompts` those of all.
        fillers: one for each batch that another rank trained on beyond this one's, as `validation` has them as well.
    """

    def __init__(
        self,
        losses: PairLosses,
        optimizer: torch.optim.Optimizer,
        trained: Sequence[Trained],
        prompts: int,
        max_norm: float,
        validation: Sequence[Batch],
        estimator: Estimator,
        precision: Callable[[], AbstractContextManager],
        replicas: Replicas = Replicas(),  # noqa: B008 (frozen)
        fillers: Sequence[Batch] = (),
    ) -> None:
        self.losses, self.optimizer, self.trained = losses, optimizer, trained
        self.replicas, self.passes = replicas, [*(batch for batch, _, _ in trained), *fillers]
        self.prompts, self.max_norm, self.validation = prompts, max_norm, validation
        self.estimator, self.precision = estimator, precision
        self.weights = kept_weights(losses, optimizer, with_state=estimator == "exact")
        # Of the training loss, before clipping.
        self.gradients = copies([weight.own_gradient for weight in self.weights])

    @property
    def batches(self) -> list[tuple[PairBatch, Tensor]]:
        return [(pairs, weights) for _, pairs, weights in self.trained]

    def influence(self, goal: Goal) -> Influence | None:
        if not self.validation:
            return None
        norm = self._clip()
        if self.estimator == "exact":
            return self._exact(goal)
        value = self._backward(goal)
        gradients = [weight.own_gradient for weight in self.weights]
        self.replicas.sum_gradients(gradients)
        # Also for weights that the step did not touch, such as experts: their gradients would count in the next step.
        self.losses.zero_grad()
        self._pull_back(gradients, norm)
        estimate = self._central if self.estimator == "central" else self._forward_mode
        return Influence(value, -estimate(self._before(), gradients).cpu() / self.prompts)

    @torch.no_grad()
    def _clip(self) -> float:
        """Clips the gradient of the training loss as the optimizer received it; returns the norm before clipping."""
        norm = self.replicas.norm(self.gradients)
        share = clipped_share(norm, self.max_norm)
        for gradient in self.gradients:
            gradient *= share
        return norm

    # The gradient of the goal after the step, pulled back to the gradient of the step

    def _backward(self, goal: Goal) -> float:
        """Returns the goal after the step, and leaves its gradient in `.grad` in place of that of the step."""
        self.losses.zero_grad()
        positives, pairs = self._count()
        total = 0.0
        # Dropout must not advance the generator that training uses.
        with torch.random.fork_rng():
            for batch in self.validation:
                with self.precision():
                    losses, margins = self.losses(batch)
                part = goal(losses, margins, pairs, positives)
                self.replicas.backward(part)
                total += part.item()
        return self.replicas.sum(total)[0]

    @torch.no_grad()
    def _count(self) -> tuple[int, int]:
        """Number of held-out pairs with a positive margin, and of all held-out pairs."""
        with evaluating(self.losses), self.precision():
            margins = torch.cat([self.losses(batch)[1] for batch in self.validation])
        positives, pairs = self.replicas.sum(int((margins > 0).sum()), len(margins))
        return int(positives), int(pairs)

    @torch.no_grad()
    def _pull_back(self, gradients: list[Tensor], norm: float) -> None:
        """Turns the gradient v of the goal into `J^T v`, in place: through the optimizer, then through the clipping."""
        for weight, step, gradient in zip(self.weights, self.gradients, gradients, strict=True):
            step = step.to(gradient.device)
            gradient *= weight.rule.slope(own_state(self.optimizer.state[weight.tensor]), step)
            # Where the step's gradient is 0, so is that of every pair, as in embeddings of tokens that do not occur.
            # Adam's slope is largest there, and would take up most of the direction's length.
            gradient[step == 0] = 0
        share = clipped_share(norm, self.max_norm)
        if share < 1:
            self._pull_back_clipping(gradients, norm, share)

    def _pull_back_clipping(self, gradients: list[Tensor], norm: float, share: float) -> None:
        """Pulls gradients back through `g * max_norm / (|g| + 1e-6)`, in place; changes along g nearly vanish."""
        pairs = list(zip(self.gradients, gradients, strict=True))
        along = self.replicas.over_weights(sum(float((step.to(v.device) * v).sum()) for step, v in pairs))
        for step, gradient in pairs:
            gradient.add_(step.to(gradient.device), alpha=-along / (share**2 * norm * (norm + 1e-6))).mul_(share)

    @torch.no_grad()
    def _before(self) -> list[Tensor]:
        """The weights before the step, up to rounding. They replace its gradient, which is no longer needed."""
        gradients, self.gradients = self.gradients, []
        for index, weight in enumerate(self.weights):
            gradients[index] = gradients[index].to(weight.tensor.device)
            weight.rule.undo(weight.own, gradients[index], own_state(self.optimizer.state[weight.tensor]))
        return gradients

    # The derivatives of the pairs' losses along a direction, before the step

    @torch.no_grad()
    def _central(self, before: list[Tensor], direction: list[Tensor]) -> Tensor:
        length = self.replicas.norm(direction)
        if length == 0:
            return torch.zeros(sum(len(weights) for _, _, weights in self.trained))
        reach = REACH * self.replicas.norm(before) / length
        weights, device = [weight.own for weight in self.weights], before[0].device.type
        with exchanged(weights, before), own_forward(self.losses.model), torch.autocast(device, enabled=False):
            ahead = self._losses_at(moved(weights, direction, reach))
            behind = self._losses_at(moved(weights, direction, -2 * reach))
        self.replicas.gather_again(self.losses)
        return (ahead - behind) / (2 * reach)

    def _losses_at(self, weights: list[Tensor]) -> Tensor:
        """The losses of this rank's pairs; `weights` are the policy's own, which were moved."""
        self.replicas.gather_again(self.losses)
        with evaluating(self.losses):
            return torch.cat([self.losses(batch)[0] for batch in self.passes])

    def _forward_mode(self, weights: list[Tensor], direction: list[Tensor]) -> Tensor:
        with differentiable_attention(), evaluating(self.losses), own_forward(self.losses.model):
            derivatives = [
                jvp(self._functional(batch), tuple(weights), tuple(direction))[1] for batch, _, _ in self.trained
            ]
        return torch.cat(derivatives)

    def _functional(self, batch: Batch) -> Callable[..., Tensor]:
        return lambda *tensors: self._call(tensors, batch)[0]

    def _call(self, tensors: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        named = {weight.name: tensor for weight, tensor in zip(self.weights, tensors, strict=True)}
        return functional_call(self.losses, named, (batch,))

    # The same by differentiating through the step

    def _exact(self, goal: Goal) -> Influence:
        """Double backward through the whole step: the reference that the estimators are tested against."""
        positives, pairs = self._count()
        device = self.weights[0].tensor.device
        weights = torch.cat([weights for _, _, weights in self.trained]).detach().to(device).requires_grad_()
        with differentiable_attention(), evaluating(self.losses):
            after = self._differentiable_step(self._before(), weights)
            parts = [goal(*self._call(after, batch), pairs, positives) for batch in self.validation]
            value = torch.stack(parts).sum()
            return Influence(value.item(), torch.autograd.grad(value, weights)[0].cpu())

    def _differentiable_step(self, before: list[Tensor], weights: Tensor) -> list[Tensor]:
        for tensor in before:
            tensor.requires_grad_()
        losses = torch.cat([self._call(before, batch)[0] for batch, _, _ in self.trained])
        gradients = torch.autograd.grad((weights * losses).sum() / self.prompts, before, create_graph=True)
        norm = torch.stack([(gradient**2).sum() for gradient in gradients]).sum().sqrt()
        share = (self.max_norm / (norm + 1e-6)).clamp(max=1) if self.max_norm else 1.0
        steps = zip(self.weights, before, gradients, strict=True)
        return [weight.rule.step(tensor, share * gradient, weight.state) for weight, tensor, gradient in steps]


def moved(weights: list[Tensor], direction: list[Tensor], reach: float) -> list[Tensor]:
    """Moves the weights along the direction, in place, and returns them."""
    for weight, along in zip(weights, direction, strict=True):
        weight.add_(along, alpha=reach)
    return weights


def kept_weights(losses: nn.Module, optimizer: torch.optim.Optimizer, with_state: bool) -> list[Weight]:
    """The trained weights. Raises ConfigError if they have a precision in which small changes would be lost."""
    rules = {tensor: update_rule(optimizer, group) for group in optimizer.param_groups for tensor in group["params"]}
    kept = []
    for name, tensor in losses.named_parameters():
        if tensor not in rules or tensor.grad is None:
            continue
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"this method learns from small changes of the policy's weights, but these are {tensor.dtype}; "
                "load the model in float32 (model_init_kwargs.dtype) with training.bf16, or train an adapter (peft)"
            )
        state = copy.deepcopy(dict(optimizer.state.get(tensor, {}))) if with_state else {}
        kept.append(Weight(name, tensor, rules[tensor], state))
    return kept


def clipped_share(norm: float, max_norm: float) -> float:
    """The factor by which `torch.nn.utils.clip_grad_norm_` multiplies gradients of this norm."""
    return min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
