"""What all sections of a recipe share."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from adaptpo.config.elsewhere import elsewhere, training_fields
from adaptpo.config.secrets import guarded, has_form_of_key, holds_key, remember_given, shown


class Settings(BaseModel):
    """A section of settings. The text under a field is its meaning, from which help and reference are made."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True)


def checked_address(url: str) -> str:
    if not re.match(r"https?://[^/]", url):
        raise ValueError("an address must begin with http:// or https://")
    if holds_key(url):
        raise ValueError("an address must hold no key; name an environment variable in api_key_env")
    parts = urlsplit(url)
    if not re.fullmatch(r"[\w.-]+|[0-9a-fA-F:.]+", parts.hostname or "") or re.search(r"\s", url) or parts.port == 0:
        raise ValueError("an address must name a host, as in http://host:8000/v1")
    return url


def checked_variable(name: str) -> str:
    if has_form_of_key(name) or not (re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name) or name in os.environ):
        raise ValueError("it must name an environment variable, in capital letters; a key itself belongs in no recipe")
    return name


def checked_path(path: str) -> str:
    if not path.strip():
        raise ValueError("it is empty")
    if re.search(r"[\x00-\x1f]", path) or max(len(part.encode()) for part in path.split("/")) > 255 or len(path) > 4000:
        raise ValueError("no path or hub id has control characters, or a name of more than 255 bytes")
    return path


def from_home(path: str) -> str:
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise ValueError(f"{error}; write the whole path") from error


def remembering(text: str) -> str:
    remember_given(text)
    return text


Url = Annotated[str, AfterValidator(checked_address)]
Variable = Annotated[str, AfterValidator(checked_variable)]
"""The name of an environment variable that holds a key."""
PathText = Annotated[str, AfterValidator(checked_path), AfterValidator(from_home)]
"""A path, in which `~` is the home directory, or a hub id."""
Command = Annotated[str, AfterValidator(remembering)]
"""A command line or a part of one; it may hold keys, which are masked wherever it is written."""
Guarded = AfterValidator(guarded)
"""For free-form settings, which may hold keys."""


def nearest(name: str, valid: list[str]) -> str:
    by_letters = {other.lower(): other for other in valid}
    close = difflib.get_close_matches(name.lower(), by_letters, n=1, cutoff=0.5)
    return f"did you mean '{by_letters[close[0]]}'?" if close else f"valid are: {', '.join(sorted(valid))}"


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The settings class that a key of this type takes; None if its value is no section."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)


def settings_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The settings class that the keys at this location belong to; names of a mapping's entries lead no deeper."""
    for part in location:
        field = model.model_fields.get(str(part))
        model = (section_of(field.annotation) if field else None) or model
    return model


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of these settings and of the sections in them, such as `generation.top_p`."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if section := section_of(field.annotation):
            yield from dotted_keys(section, f"{prefix}{name}.")


def anywhere(name: str, model: type[BaseModel], own: list[str]) -> str | None:
    """The key of another section whose name is closer to `name` than any of this section's `own`, if one is close."""
    others = [*(f"training.{field}" for field in training_fields()), *dotted_keys(model)]
    words = {key.split(".")[-1]: key for key in reversed(others)}
    close = difflib.get_close_matches(name, [*own, *words], n=1, cutoff=0.75)
    return f"did you mean '{words[close[0]]}'?" if close and close[0] not in own else None


def explain(error: ValidationError, model: type[BaseModel], section: str | None = None) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(map(str, (section, *problem["loc"]) if section else problem["loc"]))
        if problem["type"] == "extra_forbidden":
            *sections, name = map(str, (section, *problem["loc"]) if section else problem["loc"])
            valid = list(settings_at(model, problem["loc"][:-1]).model_fields)
            hint = elsewhere(name, ".".join(sections)) or anywhere(name, model, valid) or nearest(name, valid)
            lines.append(f"unknown key '{key}': {hint}")
        elif problem["type"] == "missing":
            lines.append(f"'{key}' is missing")
        else:
            name = str(problem["loc"][-1]) if problem["loc"] else ""
            lines.append(f"'{key}': {problem['msg']} (found {shorten(shown(problem['input'], name), 100)})")
    return "\n".join(lines)


def is_special_reward(reward: str) -> bool:
    return reward == "train" or reward.startswith("python:")
