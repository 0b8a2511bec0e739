"""What all sections of a recipe share."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from adaptpo.config.elsewhere import elsewhere


class Settings(BaseModel):
    """A section of settings. The text under a field is its meaning, from which help and reference are made."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)


def without_secrets(url: str) -> str:
    if not re.match(r"https?://[^/]", url):
        raise ValueError("an address must begin with http:// or https://")
    if re.match(r"https?://[^/]*@", url) or re.search(r"[?&][^=]*(key|token|secret)[^=]*=", url, re.IGNORECASE):
        raise ValueError("an address must hold no key; name an environment variable in api_key_env")
    return url


Url = Annotated[str, AfterValidator(without_secrets)]


def nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"valid are: {', '.join(sorted(valid))}"


def settings_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The settings class that the keys at this location belong to."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            break
        candidates = [field.annotation, *get_args(field.annotation)]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        model = nested[0] if nested else model
    return model


def explain(error: ValidationError, model: type[BaseModel], section: str | None = None) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(map(str, (section, *problem["loc"]) if section else problem["loc"]))
        if problem["type"] == "extra_forbidden":
            *sections, name = map(str, (section, *problem["loc"]) if section else problem["loc"])
            valid = list(settings_at(model, problem["loc"][:-1]).model_fields)
            lines.append(f"unknown key '{key}': {elsewhere(name, '.'.join(sections)) or nearest(name, valid)}")
        elif problem["type"] == "missing":
            lines.append(f"'{key}' is missing")
        else:
            lines.append(f"'{key}': {problem['msg']} (found {problem['input']!r})")
    return "\n".join(lines)


def is_special_reward(reward: str) -> bool:
    return reward == "train" or reward.startswith("python:")
