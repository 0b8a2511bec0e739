"""The table of `docs/from-trl.md`: what a run answers to every field of TRL's configurations.

`python -m tests.from_trl` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from trl import DPOConfig, RewardConfig
from trl.experimental.online_dpo import OnlineDPOConfig

from adaptpo import AlignmentConfig
from adaptpo.config.recipe import Recipe
from adaptpo.errors import ConfigError

DOCS = Path(__file__).parents[1] / "docs" / "from-trl.md"
HEADING = "| field | of | adaptpo |\n|---|---|---|\n"
OF_ALL = {field.name for field in fields(TrainingArguments)}
KINDS = {"DPO": DPOConfig, "online DPO": OnlineDPOConfig, "reward": RewardConfig}
NOT_DEFAULT: dict[str, Any] = {"bf16": True, "report_to": "wandb", "push_to_hub": True, "use_vllm": True}
NOT_DEFAULT |= {"chat_template_path": "other.jinja", "eos_token": "<end>", "pad_token": "<pad>"}
"""Values for fields whose default asks for nothing."""


def value_of(field: Field) -> Any:
    if field.name in NOT_DEFAULT:
        return NOT_DEFAULT[field.name]
    return field.default if field.default is not MISSING else field.default_factory()


def answer(section: str | None, name: str, value: Any) -> str | None:
    """None if the settings take it, else the remedy that they name."""
    try:
        AlignmentConfig(output_dir="x", **({name: value} if section is None else {section: {name: value}}))
    except ConfigError as error:
        return str(error).split(": ", 1)[1]
    return None


def row(name: str, field: Field, kinds: list[str]) -> tuple[str, str | None]:
    """The key that takes the field, and the remedy if none does."""
    value = value_of(field)
    if kinds == ["reward"]:
        return f"reward_training.{name}", answer("reward_training", name, value)
    if name in OF_ALL:
        return f"training.{name}", answer("training", name, value)
    if name in Recipe.model_fields:
        return name, None if name in AlignmentConfig.model_fields else "it is a key of recipes"
    return name, answer(None, name, value)


def table() -> Iterator[tuple[str, str, str, str | None]]:
    """Field, configurations, key and remedy: those of transformers' `TrainingArguments` first."""
    found = {name: field for kind in KINDS.values() for name, field in kind.__dataclass_fields__.items() if field.init}
    for name in sorted(found, key=lambda name: (name not in OF_ALL, name)):
        kinds = [kind for kind, config in KINDS.items() if name in config.__dataclass_fields__]
        said = "all" if name in OF_ALL else ", ".join(kinds)
        yield name, said, *row(name, found[name], kinds)


def lines() -> Iterator[str]:
    for name, kinds, key, remedy in table():
        yield f"| `{name}` | {kinds} | {f'`{key}`' if remedy is None else remedy.replace('|', chr(92) + '|')} |"


def text() -> str:
    return HEADING + "\n".join(lines()) + "\n"


if __name__ == "__main__":
    before = DOCS.read_text("utf-8").split(HEADING)[0]
    DOCS.write_text(before + text(), encoding="utf-8")
