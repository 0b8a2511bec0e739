"""Builds a `Method` from a recipe's `method` entry."""

from __future__ import annotations

import inspect
from typing import Any

from adaptpo.choices.method import Method
from adaptpo.choices.objectives import OBJECTIVES, Objective
from adaptpo.config.base import nearest
from adaptpo.config.recipe import Recipe, check_names, check_types
from adaptpo.errors import ConfigError
from adaptpo.methods import METHODS
from adaptpo.methods.named import default_objective, objective_fields


def named_entry(section: str, entry: Any) -> tuple[str, dict[str, Any]]:
    """Returns the name and the arguments of an entry: `name`, or `{name: name, argument: value}`."""
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ConfigError(f"'{section}' must be a name, or a mapping with `name` and arguments (found {entry!r})")
    return entry["name"], {key: value for key, value in entry.items() if key != "name"}


def build_objective(entry: str | dict[str, Any]) -> Objective:
    """Returns the objective of `simpo`, or of `{name: simpo, beta: 2.5, gamma: 0.6}`."""
    name, values = named_entry("method.objective", entry)
    if name not in OBJECTIVES:
        raise ConfigError(f"unknown objective '{name}': {nearest(name, list(OBJECTIVES))}")
    check_names("method.objective", values, OBJECTIVES[name])
    check_types("method.objective", values, OBJECTIVES[name])
    return OBJECTIVES[name](**values)


def build_method(recipe: Recipe) -> Method:
    """The named method with the recipe's arguments, number of generations and meta-learner settings.

    Raises ConfigError for an unknown method or argument, with the nearest valid name.
    """
    name, arguments = named_entry("method", recipe.method)
    if name not in METHODS:
        raise ConfigError(f"unknown method '{name}': {nearest(name, list(METHODS))}")
    built = {"objective": build_objective(arguments.pop("objective"))} if "objective" in arguments else {}
    objective = built.get("objective") or default_objective(METHODS[name])
    settings = {} if objective is None else taken_by(objective, name, arguments)
    arguments = {key: value for key, value in arguments.items() if key not in settings}
    check_names("method", arguments, METHODS[name])
    check_types("method", arguments, METHODS[name])
    return METHODS[name](**(shared_settings(recipe, name) | arguments | built | settings))


def taken_by(objective: Objective, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are settings of the objective and not of the method, with types that it takes."""
    own = inspect.signature(METHODS[method]).parameters
    settings = {k: v for k, v in arguments.items() if k in objective_fields(objective) and k not in own}
    check_types("method", settings, type(objective))
    return settings


def shared_settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """The settings of the recipe's other sections that this method takes; the rest are for other methods."""
    settings = recipe.meta.model_dump() | {"num_generations": recipe.generation.num_generations}
    parameters = inspect.signature(METHODS[name]).parameters
    return {key: value for key, value in settings.items() if key in parameters}
