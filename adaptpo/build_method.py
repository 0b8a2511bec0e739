"""From a recipe's `method` entry to a `Method`."""

from __future__ import annotations

import inspect
from typing import Any

from adaptpo.config import Recipe, check_names, nearest
from adaptpo.errors import ConfigError
from adaptpo.method import Method
from adaptpo.methods import METHODS
from adaptpo.objectives import OBJECTIVES, Objective


def build_objective(entry: str | dict[str, Any]) -> Objective:
    """`simpo`, or `{name: simpo, beta: 2.5, gamma: 0.6}`."""
    values = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = values.pop("name", None)
    if name not in OBJECTIVES:
        raise ConfigError(f"unknown objective '{name}': {nearest(str(name), list(OBJECTIVES))}")
    check_names("method.objective", values, OBJECTIVES[name])
    return OBJECTIVES[name](**values)


def build_method(recipe: Recipe) -> Method:
    """The named method with the recipe's arguments, number of generations and meta-learner settings.

    Raises ConfigError for an unknown method or argument, with the nearest valid name.
    """
    arguments: dict[str, Any] = {"name": recipe.method} if isinstance(recipe.method, str) else dict(recipe.method)
    name = arguments.pop("name", None)
    if name not in METHODS:
        raise ConfigError(f"unknown method '{name}': {nearest(str(name), list(METHODS))}")
    check_names("method", arguments, METHODS[name])
    if "objective" in arguments:
        arguments["objective"] = build_objective(arguments["objective"])
    return METHODS[name](**(shared_settings(recipe, name) | arguments))


def shared_settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """What the recipe's other sections say, as far as this method takes it; the rest is for other methods."""
    settings = recipe.meta.model_dump() | {"num_generations": recipe.generation.num_generations}
    parameters = inspect.signature(METHODS[name]).parameters
    return {key: value for key, value in settings.items() if key in parameters}
