"""Builds a `Method` from a recipe's `method` entry."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from adaptpo.choices.method import Method
from adaptpo.choices.objectives import OBJECTIVES, Objective, WeightedSum
from adaptpo.choices.pairing import PAIRINGS, Pairing
from adaptpo.choices.selection import SELECTIONS, Selection
from adaptpo.choices.weighting import WEIGHTINGS, Weighting
from adaptpo.config.base import nearest
from adaptpo.config.imported import import_object, is_imported
from adaptpo.config.numbers import Number, check_number
from adaptpo.config.recipe import Recipe
from adaptpo.config.sections import check_names, check_types
from adaptpo.errors import ConfigError
from adaptpo.methods import METHODS
from adaptpo.methods.named import default_objective, objective_fields

AXES: dict[str, tuple[type, Mapping[str, type]]] = {
    "selection": (Selection, SELECTIONS),
    "pairing": (Pairing, PAIRINGS),
    "objective": (Objective, OBJECTIVES),
    "weighting": (Weighting, WEIGHTINGS),
}


def named_entry(section: str, entry: Any) -> tuple[str, dict[str, Any]]:
    """Returns the name and the arguments of an entry: `name`, or `{name: name, argument: value}`."""
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ConfigError(f"'{section}' must be a name, or a mapping with `name` and arguments (found {entry!r})")
    return entry["name"], {key: value for key, value in entry.items() if key != "name"}


def build_choice(axis: str, entry: Any) -> Any:
    """Returns the choice of `simpo`, of `{name: simpo, beta: 2.5}`, or of `python:package.module:Class` in their place.

    Raises ConfigError for a name that does not exist, or arguments that it does not take.
    """
    key = f"method.{axis}"
    name, values = named_entry(key, entry)
    kind = kind_of(axis, name)
    try:
        check_names(key, values, kind)
        check_types(key, values, kind)
        return kind(**values)
    except ConfigError:
        raise
    except Exception as error:  # A user's class can raise anything.
        raise ConfigError(
            f"{key} '{name}' cannot be made of {values or 'no arguments'}: {error}. Give what it needs as arguments; a "
            "choice that holds a learner comes only with a method of its own (`adaptpo methods`)"
        ) from error


def kind_of(axis: str, name: str) -> type:
    """The class that a name stands for. Raises ConfigError if there is none, or if it is none of this axis."""
    base, table = AXES[axis]
    if not is_imported(name):
        if name not in table:
            raise ConfigError(f"unknown {axis} '{name}': {nearest(name, list(table))}")
        return table[name]
    kind = import_object(name, f"method.{axis}")
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ConfigError(f"method.{axis} '{name}' must be a class derived from {base.__module__}.{base.__qualname__}")
    return kind


def build_objective(entry: str | dict[str, Any] | list[Any]) -> Objective:
    """Returns the objective of an entry, or the weighted sum of a list of entries, each with its `weight` (1)."""
    if not isinstance(entry, list):
        return build_choice("objective", entry)
    named = [named_entry("method.objective", part) for part in entry]
    weights = [arguments.pop("weight", 1.0) for _, arguments in named]
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ConfigError(f"method.objective: the weight {weight!r} of an objective is not a number")
        check_number("method.objective.weight", weight, TypeAdapter(Number))
    parts = [build_choice("objective", {"name": name, **arguments}) for name, arguments in named]
    return WeightedSum(tuple(parts), tuple(map(float, weights)))


def build_method(recipe: Recipe) -> Method:
    """The named method with the recipe's arguments, number of generations and meta-learner settings, and with the
    choices that the recipe sets in place of the method's own.

    Raises ConfigError for an unknown method, choice or argument, with the nearest valid name.
    """
    name, arguments = named_entry("method", recipe.method)
    if name not in METHODS:
        raise ConfigError(f"unknown method '{name}': {nearest(name, list(METHODS))}")
    built = {"objective": build_objective(arguments.pop("objective"))} if "objective" in arguments else {}
    count = arguments.get("num_generations", recipe.generation.num_generations)
    if "pairing" in arguments and count is not None:
        arguments["pairing"] = counted(arguments["pairing"], count)
    own = {axis: build_choice(axis, arguments.pop(axis)) for axis in AXES if axis in arguments}
    objective = built.get("objective") or default_objective(METHODS[name])
    settings = {} if objective is None else taken_by(objective, name, arguments)
    arguments = {key: value for key, value in arguments.items() if key not in settings}
    check_names("method", arguments, METHODS[name])
    check_types("method", arguments, METHODS[name])
    method = METHODS[name](**(shared_settings(recipe, name) | arguments | built | settings))
    return replace(method, **own)


def counted(pairing: Any, count: Any) -> Any:
    """The entry of a pairing with the recipe's number of fresh responses, if it takes one and has none of its own."""
    name, values = named_entry("method.pairing", pairing)
    takes = "num_generations" in inspect.signature(kind_of("pairing", name)).parameters
    return {"name": name, "num_generations": count} | values if takes else pairing


def taken_by(objective: Objective, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are settings of the objective and not of the method, with types that it takes."""
    own = inspect.signature(METHODS[method]).parameters
    settings = {k: v for k, v in arguments.items() if k in objective_fields(objective) and k not in own}
    check_types("method", settings, type(objective))
    return settings


def shared_settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """The settings of the recipe's other sections that this method takes, but for those that leave it its own; the rest
    are for other methods."""
    settings = recipe.meta.model_dump() | {"num_generations": recipe.generation.num_generations}
    parameters = inspect.signature(METHODS[name]).parameters
    return {key: value for key, value in settings.items() if key in parameters and value is not None}
