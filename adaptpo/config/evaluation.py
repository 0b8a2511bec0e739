"""The settings of benchmarks: what `adaptpo eval` takes as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from adaptpo.config.base import Settings, Url, explain
from adaptpo.config.recipe import GenerationSettings, read_yaml
from adaptpo.errors import ConfigError


class JudgeSettings(Settings):
    """`judge`: the model's name at the endpoint. Without `base_url` it is OpenAI's address with the key in
    OPENAI_API_KEY. `max_tokens`: of a judgment; None takes the suite's. `logprobs`: whether to ask for log-probs where
    the suite reads them; `options` are further fields of every request."""

    judge: str
    base_url: Url | None = None
    api_key_env: str | None = None
    temperature: float | None = Field(0.0, ge=0)
    max_tokens: int | None = Field(None, gt=0)
    logprobs: bool = True
    concurrency: int = Field(8, gt=0)
    retries: int = Field(6, ge=0)
    timeout: float = Field(300.0, gt=0)
    options: dict[str, Any] = Field({})


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
