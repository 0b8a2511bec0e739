"""The decorator of named methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import Any

from adaptpo.choices.method import Method
from adaptpo.choices.objectives import KTO, Objective
from adaptpo.config.base import nearest
from adaptpo.config.numbers import ranged
from adaptpo.errors import ConfigError


def named(function: Callable[..., Method]) -> Callable[..., Method]:
    """The same function, whose methods carry its name, and which takes its objective's fields as arguments as well:
    `dpo(beta=0.05)` is `dpo(DPO(beta=0.05))`.

    The function raises ConfigError for an argument that neither it nor its objective has.
    """
    build = ranged(function)
    signature = inspect.signature(build)

    @wraps(build)
    def build_named(*args: Any, **kwargs: Any) -> Method:
        known = {name: value for name, value in kwargs.items() if name in signature.parameters}
        others = {name: value for name, value in kwargs.items() if name not in signature.parameters}
        given = signature.bind(*args, **known).arguments
        if others:
            given["objective"] = adjusted(build.__name__, given.get("objective") or default_objective(build), others)
        usual = default_objective(build)
        return replace(build(**given), name=build.__name__, usual_objective=None if usual is None else type(usual))

    return build_named


def default_objective(build: Callable[..., Method]) -> Objective | None:
    """The objective of a method function that is given none; None for a function that takes none."""
    parameter = inspect.signature(build).parameters.get("objective")
    # KTO's reference point is state, so its method makes a new one each time.
    return None if parameter is None else parameter.default or KTO()


def adjusted(name: str, objective: Objective | None, settings: dict[str, Any]) -> Objective:
    """The objective with these fields. Raises ConfigError if it has no such field."""
    valid = [] if objective is None else objective_fields(objective)
    for key in settings:
        if objective is None or key not in valid:
            raise ConfigError(f"method '{name}' takes no argument '{key}': {nearest(key, valid)}")
    assert objective is not None
    return replace(objective, **settings)  # type: ignore[type-var]


def objective_fields(objective: Objective) -> list[str]:
    """The names of an objective's settings."""
    return [field.name for field in fields(objective) if field.init] if is_dataclass(objective) else []
