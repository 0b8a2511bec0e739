"""The decorator of named methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from adaptpo.choices.method import Method


def named(build: Callable[..., Method]) -> Callable[..., Method]:
    """Returns the same function, whose methods carry its name."""

    @wraps(build)
    def build_named(*args: Any, **kwargs: Any) -> Method:
        return replace(build(*args, **kwargs), name=build.__name__)

    return build_named
