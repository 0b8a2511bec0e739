"""Objects that a recipe names as `python:package.module:name`: reward functions and a method's own choices."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from adaptpo.errors import ConfigError

PREFIX = "python:"


def is_imported(spec: str) -> bool:
    return spec.startswith(PREFIX)


def import_object(spec: str, key: str) -> Any:
    """Returns what `python:package.module:name` names; the working directory is importable.

    Raises ConfigError if it cannot be found; `key` is the recipe's key that names it.
    """
    module_name, _, name = spec.removeprefix(PREFIX).partition(":")
    if not module_name or not name:
        raise ConfigError(f"{key} '{spec}' must have the form python:package.module:name")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # A module can raise anything when it is imported, and exit.
        problem = f"{type(error).__name__}: {error}"[:300]
        raise ConfigError(f"{key} '{spec}': cannot import '{module_name}' ({problem})") from error
    if not hasattr(module, name):
        raise ConfigError(f"{key} '{spec}': module '{module_name}' has no '{name}'")
    return getattr(module, name)
