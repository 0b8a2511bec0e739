"""How a run recognizes the choices of its method: by their settings, and by the code of those that users wrote."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

OWN = "adaptpo."


class Described:
    """Shows its settings, so that a resumed run recognizes them: `Name(setting=value, ...)`, as a dataclass does."""

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__qualname__}({settings})"


def choice_name(table: Mapping[str, type], choice: Any) -> str:
    """The name of a choice in its axis's table, as a recipe gives it; of a sum of objectives, those of its parts."""
    if isinstance(parts := getattr(choice, "parts", None), tuple):
        return " + ".join(choice_name(table, part) for part in parts)
    return next((key for key, kind in table.items() if type(choice) is kind), repr(choice))


def code_digests(*parts: Any) -> dict[str, str]:
    """By class, the hash of its source, for the classes outside this package in these parts and in what they hold. It
    covers the class with its bases, not the functions that they call."""
    return {f"{kind.__module__}.{kind.__qualname__}": source_digest(kind) for kind in foreign_classes(parts)}


def foreign_classes(value: Any) -> Iterator[type]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from foreign_classes(item)
    elif isinstance(value, Described):
        yield from (kind for kind in type(value).__mro__ if is_foreign(kind))
        yield from foreign_classes(list(vars(value).values()))


def is_foreign(kind: type) -> bool:
    return issubclass(kind, Described) and not kind.__module__.startswith(OWN)


def source_digest(kind: type) -> str:
    """Hash of a class's source; empty for a class that has none, such as one typed into an interpreter."""
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""
