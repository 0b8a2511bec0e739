"""The numbers that settings take, each with its range: for recipes, `--set`, Python and the command line alike.

A setting's type is one of these names. `Settings` checks the keys of a recipe, `Ranged` the fields of a dataclass, and
`ranged` the arguments of a function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache, wraps
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator, TypeAdapter, ValidationError
from pydantic.types import AllowInfNan

from adaptpo.errors import ConfigError

LARGEST = 2**31 - 1
"""Larger counts overflow somewhere below; none is meant."""
DEEPEST = 16
"""Lists and mappings within one another in a free-form setting."""


def no_flag(value: Any) -> Any:
    """Python counts true and false as 1 and 0; no setting does."""
    if isinstance(value, bool):
        raise ValueError("Input should be a valid number")
    return value


Whole = Annotated[int, BeforeValidator(no_flag), Ge(-LARGEST), Le(LARGEST)]
Count = Annotated[Whole, Gt(0)]
CountOrZero = Annotated[Whole, Ge(0)]
Responses = Annotated[Whole, Gt(0), Le(2**16)]
SeveralResponses = Annotated[Responses, Gt(1)]
Seed = Annotated[int, BeforeValidator(no_flag), Ge(0), Lt(2**63)]
Concurrency = Annotated[Count, Le(4096)]
Attempts = Annotated[CountOrZero, Le(1000)]

Number = Annotated[float, BeforeValidator(no_flag), AllowInfNan(False), Ge(-1e9), Le(1e9)]
NonNegative = Annotated[Number, Ge(0)]
Positive = Annotated[Number, Gt(0)]
LearningRate = Annotated[Number, Ge(0), Le(10)]
Temperature = Annotated[Number, Ge(0), Le(100)]
Seconds = Annotated[Positive, Le(1e7)]
Fraction = Annotated[Number, Ge(0), Le(1)]
"""A share that may be none or all."""
PositiveFraction = Annotated[Fraction, Gt(0)]
InnerFraction = Annotated[Fraction, Gt(0), Lt(1)]
LabelNoise = Annotated[Fraction, Le(0.5)]
LargestWeight = Annotated[Number, Ge(1)]
"""A cap on weights, which start at 1."""
Decay = Annotated[Fraction, Lt(1)]
"""How much of a running mean is kept: 1 would never learn."""


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values, if JSON can say them: the type of free-form settings."""
    check_plain(values, DEEPEST)
    return values


def check_plain(value: Any, depth: int) -> None:
    if isinstance(value, Mapping | list | tuple):
        if not depth:
            raise ValueError(f"it has more than {DEEPEST} lists within one another")
        for part in [*value, *value.values()] if isinstance(value, Mapping) else value:
            check_plain(part, depth - 1)
    elif isinstance(value, int | float) and not abs(value) < 2**63:  # NaN is not smaller either
        raise ValueError("its numbers must be finite and below 2**63")


Plain = Annotated[dict[str, Any], AfterValidator(plain)]


class Ranged:
    """A dataclass whose numbers are checked when it is made. Raises ConfigError that names class and field."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, adapter in adapters_of(kind).items():
            check_number(f"{kind.__name__}.{name}", getattr(self, name), adapter)


Function = TypeVar("Function", bound=Callable[..., Any])


def ranged(function: Function) -> Function:
    """The function, which raises ConfigError for a number out of the range that its annotation gives."""
    signature = inspect.signature(function)
    where = function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name, adapter in adapters_of(function).items():
            if name in given:
                check_number(f"{where}.{name}", given[name], adapter)
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


def check_number(where: str, value: Any, adapter: TypeAdapter[Any]) -> None:
    plain_value = value.item() if hasattr(value, "item") else value  # numpy's and torch's numbers
    try:
        adapter.validate_python(plain_value, strict=True)
    except ValidationError as error:
        raise ConfigError(f"'{where}': {error.errors()[0]['msg']} (found {value!r})") from error


@cache
def adapters_of(target: Any) -> dict[str, TypeAdapter[Any]]:
    """The validators of the fields or arguments that have a range."""
    hints = get_type_hints(target, include_extras=True)
    names = [field.name for field in fields(target) if field.init] if isinstance(target, type) else hints
    return {name: TypeAdapter(hints[name]) for name in names if has_range(hints[name])}


def has_range(hint: Any) -> bool:
    """Whether the type, or one of a union, is a number with a range."""
    return get_origin(hint) is Annotated or any(get_origin(part) is Annotated for part in get_args(hint))
