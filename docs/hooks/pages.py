"""Pages of the site that are made from the code, and links that lead out of docs/."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[2]
TOP = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
"""Pages at the root of the repository, by their name in the site."""
LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {
        "reference/keys.md": "\n".join(keys_page()),
        "reference/commands.md": "\n".join(commands_page()),
        "reference/methods.md": "\n".join(methods_page()),
        **{page: (ROOT / name).read_text("utf-8") for name, page in TOP.items() if (ROOT / name).exists()},
    }
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files that are no pages become code; GitHub follows them, the site cannot."""

    def replaced(match: re.Match[str]) -> str:
        text, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        if "://" in target:
            return match.group(0)
        source = ROOT / page.file.src_uri if page.file.src_uri in TOP.values() else ROOT / "docs" / page.file.src_uri
        path = (source.parent / target).resolve()
        if not path.is_relative_to(ROOT) or not path.exists():
            return match.group(0)
        inside = path.relative_to(ROOT).as_posix()
        if inside in TOP:
            return f"[{text}]({up(page)}{TOP[inside]}{anchor})"
        if not inside.startswith("docs/"):
            return text if text.startswith("`") else f"`{inside}`"
        return f"[{text}]({up(page)}{inside.removeprefix('docs/')}{anchor})"

    return LINK.sub(replaced, markdown)


def up(page: Page) -> str:
    return "../" * page.file.src_uri.count("/")


# Recipe keys


def keys_page() -> Iterator[str]:
    from adaptpo.config.evaluation import JudgeSettings
    from adaptpo.config.recipe import Recipe
    from adaptpo.config.reward import KINDS
    from adaptpo.plan.machines import Machine

    yield "# Recipe keys\n\nMade from the settings' classes. [Recipes](../recipes.md) explains how they act together.\n"
    yield from section("The top of a recipe", "", Recipe)
    yield "## Annotators (`reward`)\n\nThe key `reward` takes one of these, or a list of them.\n"
    for name, kind in KINDS.items():
        yield from table(f"### `reward: {{{name}: ...}}`", kind)
    yield from table("## Judges of `adaptpo eval` (`--judge`)", JudgeSettings)
    yield from table("## Machines of `adaptpo plan` (`--machine`)", Machine)


def section(title: str, prefix: str, model: type[BaseModel]) -> Iterator[str]:
    yield from table(f"## {title}", model)
    for name, field in model.model_fields.items():
        for nested in nested_models(field):
            yield from section(f"`{prefix}{name}`", f"{prefix}{name}.", nested)


def nested_models(field: FieldInfo) -> list[type[BaseModel]]:
    found = [field.annotation, *get_args(field.annotation)]
    return [kind for kind in found if inspect.isclass(kind) and issubclass(kind, BaseModel)]


def table(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"{title}\n\n{inspect.getdoc(model) or ''}\n"
    yield "| key | takes | default | meaning |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        takes = "a section" if nested_models(field) else cell(f"{type_name(field.annotation)}{limits(field)}")
        yield f"| `{name}` | {takes} | {default(field)} | {cell(meaning(model, name, field))} |"
    yield ""


def meaning(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    if not field.description:
        raise ValueError(f"{model.__name__}.{name} has no description; write one under the field")
    return " ".join(field.description.split())


def type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if kind is type(None):
        return "null"
    if get_origin(kind) is Annotated:
        return type_name(get_args(kind)[0])
    if get_args(kind) and get_origin(kind) not in (list, dict, tuple):
        return " or ".join(dict.fromkeys(type_name(part) for part in get_args(kind) if not isinstance(part, FieldInfo)))
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping", list: "list"}
    return names.get(get_origin(kind) or kind, "Python function" if callable(kind) else str(kind))


SIGNS = {"gt": "> ", "ge": "≥ ", "lt": "< ", "le": "≤ "}


def limits(field: FieldInfo) -> str:
    bounds = [(sign, getattr(m, name)) for m in field.metadata for name, sign in SIGNS.items() if hasattr(m, name)]
    found = [f"{sign}{bound:g}" for sign, bound in bounds if abs(bound) < 2**31 - 1]
    return f", {', '.join(found)}" if found else ""


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return "see there"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"`{value}`" if value != "" else "empty"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


# Command line


def commands_page() -> Iterator[str]:
    from adaptpo.cli import build_parser

    yield "# Command line\n\nMade from the parser; `adaptpo COMMAND --help` prints the same.\n"
    yield from commands_of(build_parser())


def commands_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from commands_of(inner)
            return
    yield f"## `{parser.prog}`\n\n```text\n{(parser.description or '').strip()}\n```\n"
    if rows := [option for option in parser._actions if option.help != argparse.SUPPRESS]:
        yield "| argument | meaning |\n|---|---|"
        yield from (f"| `{spelled(option)}` | {cell(option.help or '')} |" for option in rows)
    yield ""


def spelled(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    takes = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    return f"{name} {takes}" if action.option_strings and takes else name


# Methods


def methods_page() -> Iterator[str]:
    from adaptpo.cli.methods import axis_names
    from adaptpo.methods import METHODS

    yield "# Methods\n\nMade from the table of methods; `adaptpo methods` prints it.\n"
    yield "| method | selection | pairing | objective | weighting |\n|---|---|---|---|---|"
    for name in METHODS:
        yield f"| [`{name}`](#{name}) | {' | '.join(cell(axis) for axis in axis_names(name))} |"
    for name, build in METHODS.items():
        settings = ", ".join(f"{p.name}: {p.default!r}" for p in inspect.signature(build).parameters.values())
        yield f"\n## `{name}` {{ #{name} }}\n\n{inspect.getdoc(build)}\n\n```python\nmethods.{name}({settings})\n```"
