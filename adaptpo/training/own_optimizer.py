"""An optimizer that a user built: its class and settings, which every training phase applies to its own policy."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import torch
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
        """That of an optimizer over any parameters. Raises ConfigError if these have several groups of settings, or if
        the optimizer does not keep its arguments, so that it cannot be made again."""
        (first, *others) = optimizer.param_groups
        settings = arguments_of(optimizer)
        known = optimizer.defaults.keys() & settings.keys()
        if others or any(first.get(name) != optimizer.defaults[name] for name in known):
            raise ConfigError(
                "optimizers: every phase trains a policy of its own, so parameter groups with settings of their own "
                "cannot be carried over; give one group, or set training.optim, learning_rate and weight_decay"
            )
        own = cls(type(optimizer), settings)
        try:
            again = own.over([nn.Parameter(torch.zeros(1, 1))]).defaults
        except (TypeError, ValueError) as error:
            raise not_made_again(optimizer, f"which arguments make it ({error})") from error
        if any(again.get(name) != optimizer.defaults[name] for name in known):
            raise not_made_again(optimizer, "its settings")
        return own

    def over(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return self.kind([parameter for parameter in parameters if parameter.requires_grad], **self.settings)

    @property
    def described(self) -> str:
        """Its name and settings as a run records them."""
        settings = ", ".join(f"{name}={shown(value)}" for name, value in sorted(self.settings.items()))
        return f"{self.kind.__module__}.{self.kind.__qualname__}({settings})"


def shown(value: Any) -> str:
    """The value in words that are the same in every process."""
    return getattr(value, "__qualname__", repr(value))


def arguments_of(optimizer: Optimizer) -> dict[str, Any]:
    """The arguments that the optimizer was made with, beside the parameters: it keeps them as its defaults, or as
    attributes of the same names. Raises ConfigError if it does neither."""
    found = {}
    for name in argument_names(type(optimizer)):
        if name not in optimizer.defaults and not hasattr(optimizer, name):
            raise not_made_again(optimizer, f"its argument {name}")
        found[name] = optimizer.defaults[name] if name in optimizer.defaults else getattr(optimizer, name)
    return found


def argument_names(kind: type) -> Iterator[str]:
    """The names of the arguments of a class beside the parameters; `**others` go to the class that it extends."""
    for own in (one for one in kind.__mro__ if "__init__" in vars(one)):
        _, _, *taken = inspect.signature(own.__init__).parameters.values()  # type: ignore[misc]
        yield from (each.name for each in taken if each.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL))
        if not any(each.kind is Parameter.VAR_KEYWORD for each in taken):
            return


def not_made_again(optimizer: Optimizer, lost: str) -> ConfigError:
    return ConfigError(
        f"optimizers: every phase makes the optimizer again for its own policy, and {type(optimizer).__name__} does "
        f"not say {lost}; let it keep its arguments in `defaults` or as attributes of their names, or set "
        "training.optim"
    )
