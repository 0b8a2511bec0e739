"""What a judge is told: our own words, or a benchmark's own file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adaptpo.config.strict_yaml import read_yaml
from adaptpo.data import open_rows
from adaptpo.errors import ConfigError, DataError
from adaptpo.types import Message

OWN = "adaptpo's own words"
ONLY = ""
"""The name of a suite's template where it has one alone."""
NO_SYSTEM = (
    "no `system_prompt`, so that the judge would get no instructions; Arena-Hard v2.0 keeps its own in its code, one "
    "for each category: add them, as `system_prompt: {hard_prompt: TEXT, creative_writing: TEXT}`, or one for all, "
    "or `system_prompt: ''` where prompt_template has them"
)
CHAT_PART = re.compile(r"<\|im_start\|>(system|user)\n(.*?)\n?<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True)
class Template:
    """`{name}` in `user` stands for a value; `system` may be empty."""

    system: str
    user: str

    def messages(self, values: Mapping[str, str]) -> tuple[Message, ...]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return (*system, {"role": "user", "content": filled(self.user, values)})


Templates = Mapping[str, Template]


def filled(text: str, values: Mapping[str, str]) -> str:
    """With each `{name}` of `values` replaced, all at once: what a value holds is never read as a place."""
    places = re.compile("|".join(re.escape(f"{{{name}}}") for name in values))
    return places.sub(lambda found: values[found[0][1:-1]], text)


def read_templates(path: Path) -> Templates:
    """FastChat's `judge_prompts.jsonl`, Arena-Hard's `.yaml` of a judge, or AlpacaEval's `.txt` in ChatML.

    Raises ConfigError where the file is none of these.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such template; leave --template out for our own words")
    try:
        return READERS[path.suffix](path)
    except (KeyError, TypeError, yaml.YAMLError, DataError) as error:
        raise ConfigError(
            f"{path} is no template of a judge ({error}); accepted are FastChat's judge_prompts.jsonl, Arena-Hard's "
            "YAML with system_prompt and prompt_template, and AlpacaEval's text in ChatML"
        ) from error


def from_lines(path: Path) -> Templates:
    return {row["name"]: Template(row["system_prompt"], row["prompt_template"]) for row in open_rows(path)}


def from_yaml(path: Path) -> Templates:
    """`system_prompt` is a text, or one for each category of questions."""
    values: Any = read_yaml(path.read_text("utf-8"))
    user, system = values["prompt_template"], values.get("system_prompt")
    texts = system if isinstance(system, dict) else {ONLY: system}
    if not texts or not all(isinstance(text, str) for text in texts.values()):
        raise ConfigError(f"{path}: {NO_SYSTEM}")
    return {str(name): Template(text, user if isinstance(user, str) else "".join(user)) for name, text in texts.items()}


def from_chat_text(path: Path) -> Templates:
    parts = dict(CHAT_PART.findall(path.read_text("utf-8")))
    return {ONLY: Template(parts.get("system", ""), parts["user"])}


READERS = {".jsonl": from_lines, ".yaml": from_yaml, ".yml": from_yaml, ".txt": from_chat_text}


def fingerprint(templates: Templates) -> str:
    """Twelve digits that tell templates apart."""
    text = repr(sorted((name, one.system, one.user) for name, one in templates.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def template_of(templates: Templates, category: str) -> Template:
    """That of a category of questions, or the only one. Raises ConfigError where there is neither."""
    return template_named(templates, ONLY if ONLY in templates else category)


def template_named(templates: Templates, name: str) -> Template:
    """Raises ConfigError where the file of templates lacks one that the suite needs."""
    if name not in templates:
        raise ConfigError(f"the templates lack '{name}'; found {', '.join(map(repr, templates))}")
    return templates[name]
