"""Optimizer steps as functions of the gradient: their derivative, their inverse, and a differentiable form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptpo.errors import ConfigError

State = dict[str, Any]
"""An optimizer's state of one parameter; empty before its first step."""


class UpdateRule(ABC):
    """The elementwise step of one parameter, with the settings in force at that step."""

    @abstractmethod
    def slope(self, after: State, gradient: Tensor) -> Tensor:
        """Minus the derivative of the new weight with respect to the gradient, from the state after the step."""

    @abstractmethod
    def undo(self, parameter: Tensor, gradient: Tensor, after: State) -> None:
        """Overwrites the gradient, up to rounding, with the weight before the step. `parameter` and `after` are the
        weight and the state after it."""

    @abstractmethod
    def step(self, parameter: Tensor, gradient: Tensor, before: State) -> Tensor:
        """The new weight as a differentiable function of the gradient, from the state before the step."""


@dataclass(frozen=True)
class AdamWRule(UpdateRule):
    """`theta - lr * (decay * theta + mhat / (sqrt(vhat) + eps))`, where the moments include the gradient g."""

    learning_rate: float
    betas: tuple[float, float]
    eps: float
    decay: float

    def slope(self, after: State, gradient: Tensor) -> Tensor:
        """With s = sqrt(vhat): `lr * [(1 - b1) / c1 / (s + eps) - mhat * (1 - b2) * g / (c2 * s * (s + eps)^2)]`."""
        (b1, b2), count = self.betas, float(after["step"])
        c1, c2 = 1 - b1**count, 1 - b2**count
        root = (after["exp_avg_sq"] / c2).sqrt_()
        # Where the root is 0, so are this gradient and all earlier ones. In place, because the largest weight is a
        # large part of a model. Ratios first, because the square of the last divisor underflows.
        slope = (gradient / root).masked_fill_(root == 0, 0.0).mul_((1 - b2) / c2)
        below = root.add_(self.eps)
        slope.mul_(after["exp_avg"]).div_(below).mul_(-1 / c1).add_((1 - b1) / c1)
        return slope.div_(below).mul_(self.learning_rate)

    def undo(self, parameter: Tensor, gradient: Tensor, after: State) -> None:
        (b1, b2), count = self.betas, float(after["step"])
        below = torch.div(after["exp_avg_sq"], 1 - b2**count, out=gradient).sqrt_().add_(self.eps)
        move = torch.div(after["exp_avg"], below, out=gradient).mul_(self.learning_rate / (1 - b1**count))
        move.add_(parameter).div_(1 - self.learning_rate * self.decay)

    def step(self, parameter: Tensor, gradient: Tensor, before: State) -> Tensor:
        (b1, b2), count = self.betas, float(before.get("step", 0)) + 1
        mean = b1 * before.get("exp_avg", 0.0) + (1 - b1) * gradient
        square = b2 * before.get("exp_avg_sq", 0.0) + (1 - b2) * gradient**2
        # The root has no derivative at 0. At the smallest number it has one, which times a gradient of 0 is 0.
        root = (square / (1 - b2**count) + torch.finfo(square.dtype).tiny).sqrt()
        move = mean / (1 - b1**count) / (root + self.eps)
        return parameter * (1 - self.learning_rate * self.decay) - self.learning_rate * move


@dataclass(frozen=True)
class SGDRule(UpdateRule):
    """`theta - lr * (momentum * buffer + g + decay * theta)`."""

    learning_rate: float
    momentum: float
    decay: float

    def slope(self, after: State, gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, self.learning_rate)

    def undo(self, parameter: Tensor, gradient: Tensor, after: State) -> None:
        buffer = after.get("momentum_buffer")
        if buffer is None:
            gradient.mul_(self.learning_rate).add_(parameter).div_(1 - self.learning_rate * self.decay)
        else:
            torch.add(parameter, buffer, alpha=self.learning_rate, out=gradient)

    def step(self, parameter: Tensor, gradient: Tensor, before: State) -> Tensor:
        buffer = before.get("momentum_buffer")
        move = gradient + self.decay * parameter
        return parameter - self.learning_rate * (move if buffer is None else self.momentum * buffer + move)


KNOWN = (torch.optim.AdamW, torch.optim.SGD)
UNKNOWN_SETTINGS = ("amsgrad", "maximize", "nesterov", "dampening")


def update_rule(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> UpdateRule:
    """The rule of one of the optimizer's parameter groups with its current settings.

    Raises ConfigError for an optimizer whose step is not supported.
    """
    check_optimizer(type(optimizer), group)
    if isinstance(optimizer, torch.optim.SGD):
        return SGDRule(float(group["lr"]), group["momentum"], group["weight_decay"])
    return AdamWRule(float(group["lr"]), tuple(group["betas"]), group["eps"], group["weight_decay"])


def check_optimizer(kind: type, settings: dict[str, Any]) -> None:
    unknown = [name for name in UNKNOWN_SETTINGS if settings.get(name)]
    if not issubclass(kind, KNOWN) or unknown:
        raise ConfigError(
            f"this method differentiates the optimizer's step, but that of {kind.__name__}"
            f"{' with ' + ', '.join(unknown) if unknown else ''} is not supported; set training.optim to adamw_torch, "
            "adamw_torch_fused or sgd without these settings"
        )
