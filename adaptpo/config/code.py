"""Which settings make a run execute code or programs that its author chose; `--no-code` refuses them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adaptpo.config.imported import is_imported
from adaptpo.config.recipe import GenerationSettings, Recipe
from adaptpo.config.reward import FunctionReward, reward_parts
from adaptpo.errors import ConfigError

IMPORTED_BY_PEFT = ("megatron_config", "megatron_core", "auto_mapping")


def refuse_code(recipe: Recipe) -> None:
    """Raises ConfigError that names every setting of the recipe that runs code."""
    of_method = [f"method {name}" for name in imported_in(recipe.method)]
    refuse([*code_of_reward(recipe.reward), *of_method, *code_of_model(recipe), *code_of_engine(recipe.generation)])


def refuse_reward_code(reward: Any, trust_remote_code: bool) -> None:
    """The same for a reward alone."""
    refuse([*code_of_reward(reward), *(["trust_remote_code"] if trust_remote_code else [])])


def refuse_engine_code(generation: GenerationSettings) -> None:
    """The same for the settings of an engine alone."""
    refuse(list(code_of_engine(generation)))


def refuse(found: list[str]) -> None:
    if found:
        raise ConfigError(
            f"--no-code refuses {', '.join(found)}: it would run code that the recipe's author chose. Leave it out, or "
            "read the code and start without --no-code (SECURITY.md)"
        )


def code_of_reward(reward: Any) -> Iterator[str]:
    for part in reward_parts(reward) if reward is not None else ():
        if isinstance(part, FunctionReward):
            yield f"reward '{part.function}'"


def imported_in(value: Any) -> Iterator[str]:
    """The objects that a method names as `python:...`, at any depth."""
    if isinstance(value, str) and is_imported(value):
        yield f"'{value}'"
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from imported_in(part)


def code_of_model(recipe: Recipe) -> Iterator[str]:
    options, peft = recipe.model_init_kwargs, recipe.peft or {}
    if recipe.trusts_code:
        yield "trust_remote_code"
    if "/" in str(options.get("attn_implementation", "")):
        yield "model_init_kwargs.attn_implementation (a kernel of the hub)"
    yield from (f"model_init_kwargs.{name}" for name in ("use_kernels",) if options.get(name))
    yield from (f"peft.{name}" for name in IMPORTED_BY_PEFT if peft.get(name))


def code_of_engine(generation: GenerationSettings) -> Iterator[str]:
    if generation.command is not None:
        yield "generation.command"
    if generation.program != "vllm":
        yield "generation.program"
    if generation.arguments:
        yield "generation.arguments"
