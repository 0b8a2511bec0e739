"""An optimizer that a user built: its class and settings, which every training phase applies to its own policy."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from adaptpo.errors import ConfigError


@dataclass(frozen=True)
class OwnOptimizer:
    """`settings`: the arguments of `kind` beside the parameters."""

    kind: type[Optimizer]
    settings: dict[str, Any]

    @classmethod
    def like(cls, optimizer: Optimizer) -> OwnOptimizer:
        """That of an optimizer over any parameters. Raises ConfigError if these have several groups of settings."""
        (first, *others) = optimizer.param_groups
        taken = inspect.signature(type(optimizer).__init__).parameters
        settings = {name: value for name, value in optimizer.defaults.items() if name in taken}
        if others or any(first.get(name) != value for name, value in settings.items()):
            raise ConfigError(
                "optimizers: every phase trains a policy of its own, so parameter groups with settings of their own "
                "cannot be carried over; give one group, or set training.optim, learning_rate and weight_decay"
            )
        return cls(type(optimizer), settings)

    def over(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return self.kind([parameter for parameter in parameters if parameter.requires_grad], **self.settings)

    @property
    def described(self) -> str:
        """Its name and settings as a run records them."""
        settings = ", ".join(f"{name}={value!r}" for name, value in sorted(self.settings.items()))
        return f"{self.kind.__module__}.{self.kind.__qualname__}({settings})"
