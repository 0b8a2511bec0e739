"""Turns values that users of Python pass into what a YAML file can hold, because a run stores its settings."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from os import PathLike, fspath
from typing import Any

from adaptpo.config.secrets import Secret
from adaptpo.errors import ConfigError

SCALARS = (str, int, float, bool, type(None))


def plain(value: Any, where: str) -> Any:
    """The value with enumerations, paths, dtypes, tuples, sets and configuration objects as YAML has them.

    Raises ConfigError for other objects, with `where` they were given.
    """
    if isinstance(value, Enum):
        return plain(value.value, where)
    if isinstance(value, Mapping):
        return {str(name): plain(inner, f"{where}.{name}") for name, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(inner, where) for inner in value)
    if isinstance(value, list | tuple):
        return [plain(inner, f"{where}.{number}") for number, inner in enumerate(value)]
    return value if type(value) in (*SCALARS, Secret) else plain_object(value, where)


def plain_object(value: Any, where: str) -> Any:
    if isinstance(value, PathLike):
        return fspath(value)
    if hasattr(value, "to_dict"):
        return plain(value.to_dict(), where)
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    if hasattr(value, "item"):  # A number of numpy or torch.
        return value.item()
    raise ConfigError(
        f"'{where}' is of type {type(value).__name__}, which a run cannot store; give text, numbers, lists or mappings"
    )
