"""The key `reward` of a recipe: one annotator or several, each with its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from adaptpo.config.base import Settings, Url, explain, is_special_reward, nearest
from adaptpo.errors import ConfigError

CRITERIA = "how well it does what the request asks for: correct, helpful, complete, to the point and harmless"


class RewardPart(Settings):
    """Settings of one annotator. `weight`: how much its reward counts if there are several."""

    holds_model: ClassVar[bool] = False
    """Whether it occupies the accelerator's memory."""
    unnamed: ClassVar[frozenset[str]]
    """Keys that may change between the attempts of a run: how and where the annotator is reached."""
    weight: float = 1.0

    def identity(self) -> dict[str, Any]:
        """The settings that determine the rewards, except for the content of models."""
        return self.model_dump(exclude=set(self.unnamed))


class ModelReward(RewardPart):
    holds_model: ClassVar[bool] = True
    unnamed: ClassVar[frozenset[str]] = frozenset({"reward_model"})
    reward_model: str


class FunctionReward(RewardPart):
    unnamed: ClassVar[frozenset[str]] = frozenset({"function"})
    function: str | Callable[..., Any]


class PairwiseReward(RewardPart):
    """A pairwise model, with PairRM's limits in tokens; see `adaptpo.annotation.pairwise_model`."""

    holds_model: ClassVar[bool] = True
    unnamed: ClassVar[frozenset[str]] = frozenset({"pairwise"})
    pairwise: str
    source_tokens: int = Field(1224, ge=8)
    candidate_tokens: int = Field(412, ge=8)


class RemoteReward(RewardPart):
    """A remote annotator. `api_key_env` names the environment variable with the key; `options` are further fields of
    every request."""

    unnamed: ClassVar[frozenset[str]] = frozenset({"concurrency", "retries", "timeout", "api_key_env"})
    api_key_env: str | None = None
    concurrency: int = Field(8, gt=0)
    retries: int = Field(6, ge=0)
    timeout: float = Field(120.0, gt=0)
    options: dict[str, Any] = Field({})


class JudgeReward(RemoteReward):
    """A judge model. `mode`: `first` compares each response with the first of its prompt, `all` compares every two,
    `score` rates each by itself. Without `base_url`, OpenAI's address is used with the key in OPENAI_API_KEY."""

    unnamed: ClassVar[frozenset[str]] = RemoteReward.unnamed | {"base_url"}
    judge: str
    mode: Literal["first", "all", "score"] = "first"
    base_url: Url | None = None
    criteria: str = CRITERIA
    temperature: float | None = Field(0.0, ge=0)
    max_tokens: int | None = Field(1024, gt=0)


class ServerReward(RemoteReward):
    """A reward server. `api`: our own protocol, or vLLM's pooling endpoint; see `adaptpo.annotation.server`."""

    unnamed: ClassVar[frozenset[str]] = RemoteReward.unnamed | {"server", "batch_size"}
    server: Url
    api: Literal["items", "vllm"] = "items"
    batch_size: int = Field(16, gt=0)


KINDS: dict[str, type[RewardPart]] = {
    "reward_model": ModelReward,
    "function": FunctionReward,
    "pairwise": PairwiseReward,
    "judge": JudgeReward,
    "server": ServerReward,
}


def reward_parts(reward: Any) -> tuple[RewardPart, ...]:
    """The annotators that `reward` names: a string, a function, a mapping, or a list of these.

    Raises ConfigError that names the wrong key and the nearest valid one.
    """
    if isinstance(reward, list | tuple):
        if not reward:
            raise ConfigError(f"reward is an empty list; name at least one of {', '.join(KINDS)}")
        return tuple(reward_part(part, f"reward.{number}") for number, part in enumerate(reward))
    return (reward_part(reward, "reward"),)


def reward_part(value: Any, where: str) -> RewardPart:
    if isinstance(value, RewardPart):
        return value
    if isinstance(value, str):
        return FunctionReward(function=value) if value.startswith("python:") else ModelReward(reward_model=value)
    if callable(value):
        return FunctionReward(function=value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"'{where}' is a {type(value).__name__}; give a path, or one of {', '.join(KINDS)}: ...")
    return part_of_mapping(value, where)


def part_of_mapping(values: Mapping[str, Any], where: str) -> RewardPart:
    kinds = [name for name in values if name in KINDS]
    if len(kinds) != 1:
        stranger = next((name for name in values if name not in KINDS and name != "weight"), "")
        found = f"names {' and '.join(kinds)}" if kinds else f"names no annotator: {nearest(stranger, list(KINDS))}"
        raise ConfigError(f"'{where}' {found}; it takes exactly one of {', '.join(KINDS)}")
    kind = KINDS[kinds[0]]
    if values.get("reward_model") == "train":
        raise ConfigError(
            f"'{where}': `reward: train` must stand alone; train the model in a separate run and name its folder here"
        )
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, where)) from error


def resolved_reward(reward: Any, resolve: Callable[[str], str]) -> Any:
    """Returns the same reward with the paths of models resolved."""
    if isinstance(reward, str):
        return reward if is_special_reward(reward) else resolve(reward)
    if isinstance(reward, list):
        return [resolved_reward(part, resolve) for part in reward]
    paths = {name: resolve(reward[name]) for name in ("reward_model", "pairwise") if name in reward}
    return reward | paths
