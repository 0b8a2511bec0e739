"""The settings of benchmarks: what `adaptpo eval` takes as YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from adaptpo.config.base import Guarded, Settings, Url, Variable, explain
from adaptpo.config.numbers import Attempts, Concurrency, Count, Plain, Seconds, Temperature
from adaptpo.config.recipe import GenerationSettings
from adaptpo.config.strict_yaml import read_yaml
from adaptpo.errors import ConfigError


class JudgeSettings(Settings):
    """The judge of a benchmark."""

    judge: str
    """The model's name at the endpoint."""
    base_url: Url | None = None
    """Address of the endpoint; null is OpenAI's."""
    api_key_env: Variable | None = None
    """Environment variable that holds the key; null is OPENAI_API_KEY at OpenAI's address."""
    temperature: Temperature | None = 0.0
    """Sampling temperature; null leaves it to the endpoint."""
    max_tokens: Count | None = None
    """Maximum tokens of a judgment; null takes the suite's."""
    logprobs: bool = True
    """Whether to ask for log-probs where the suite reads them."""
    concurrency: Concurrency = 8
    """Requests at a time."""
    retries: Attempts = 6
    """Attempts after the first."""
    timeout: Seconds = 300.0
    """Seconds for one answer."""
    options: Annotated[Plain, Guarded] = Field({})
    """Further fields of every request."""


def judge_settings(values: Any) -> JudgeSettings:
    """Raises ConfigError naming the wrong key and the nearest valid one."""
    if not isinstance(values, dict):
        raise ConfigError("--judge takes keys and values, for instance '{judge: gpt-4-1106-preview}'")
    try:
        return JudgeSettings(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, JudgeSettings, "judge")) from error


def generation_settings(values: Any) -> GenerationSettings:
    """As the key `generation` of a recipe. Raises ConfigError naming the wrong key and the nearest valid one."""
    if not isinstance(values, dict):
        raise ConfigError("--generation takes keys and values, for instance '{temperature: 0, max_new_tokens: 2048}'")
    try:
        return GenerationSettings(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, GenerationSettings, "generation")) from error


def yaml_mapping(text: str, option: str) -> Any:
    """What YAML says, or a file of it. Raises ConfigError where it is none."""
    path = Path(text)
    try:
        return read_yaml(path.read_text("utf-8") if text.endswith((".yaml", ".yml")) and path.is_file() else text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{option} is no YAML: {' '.join(str(error).split())}; quote it for the shell") from error


def mapping_of(text: str, option: str) -> dict[str, Any]:
    """Keys and values in YAML. Raises ConfigError for anything else."""
    values = yaml_mapping(text, option)
    if not isinstance(values, dict):
        raise ConfigError(f"{option} takes keys and values, for instance '{{enable_thinking: false}}'")
    try:
        json.dumps(values)
    except TypeError as error:
        raise ConfigError(f"{option}: {error}, such as a date; put it in quotes") from error
    return values
