"""Settings as flags: `--training.learning_rate 1e-6` stands for `--set training.learning_rate=1e-6`."""

from __future__ import annotations

import argparse
import textwrap
from collections import deque
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

SHORT = 70
"""Maximum length of a default that is shown."""


def as_assignments(arguments: Sequence[str], own: Container[str]) -> list[str]:
    """The arguments with every flag that is not among the command's `own` ones turned into `--set KEY=VALUE`. A flag
    without a value is true."""
    waiting, found = deque(arguments), list[str]()
    while waiting:
        word = waiting.popleft()
        if not word.startswith("--") or word == "--" or word.partition("=")[0] in own:
            found.append(word)
            if word == "--set" and waiting:
                found.append(waiting.popleft())
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = "true" if not waiting or waiting[0].startswith("--") else waiting.popleft()
        found += ["--set", f"{key.replace('-', '_')}={value}"]
    return found


class ShowSettings(argparse.Action):
    """Prints every setting with its meaning, type and default, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from adaptpo.config.recipe import Recipe

        print("\n".join(settings_lines(Recipe)))
        parser.exit()


def settings_lines(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """One entry per key of these settings, followed by those of its section if it has one."""
    from adaptpo.config.base import section_of

    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        yield f"--{prefix}{name}  {'' if section else facts(field)}".rstrip()
        yield from textwrap.wrap(field.description or "", 110, initial_indent="    ", subsequent_indent="    ")
        if section:
            yield from settings_lines(section, f"{prefix}{name}.")
        if name == "training":
            yield from textwrap.wrap(", ".join(accepted()), 110, initial_indent="    ", subsequent_indent="    ")


def accepted() -> list[str]:
    """The keys of `training`."""
    from adaptpo.config.elsewhere import training_fields
    from adaptpo.config.sections import OWNED_TRAINING_ARGUMENTS

    return sorted(training_fields() - set(OWNED_TRAINING_ARGUMENTS))


def facts(field: FieldInfo) -> str:
    default = "" if field.is_required() else shown(field.get_default())
    kind = type_name(field.annotation)
    return f"({kind}, default {default})" if default and len(default) <= SHORT else f"({kind})"


def shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return "{}" if isinstance(value, dict) else str(value)


def type_name(annotation: Any) -> str:
    """The type as a user of YAML says it."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    words = {str: "text", int: "number", float: "number", bool: "true | false", type(None): "null"}
    if annotation in words:
        return words[annotation]
    if get_origin(annotation) is Annotated:
        return type_name(get_args(annotation)[0])
    if get_origin(annotation) in (dict, list):
        return {dict: "mapping", list: "list"}[get_origin(annotation)]
    return " | ".join(dict.fromkeys(type_name(part) for part in get_args(annotation))) or "text"
