"""The key `reward` of a recipe: one annotator or several, each with its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le
from pydantic import Field, ValidationError, field_validator

from adaptpo.config.base import Guarded, PathText, Settings, Url, Variable, explain, is_special_reward, nearest
from adaptpo.config.numbers import Attempts, Concurrency, Count, Number, Plain, Seconds, Temperature
from adaptpo.config.sections import load_options
from adaptpo.errors import ConfigError

CRITERIA = "how well it does what the request asks for: correct, helpful, complete, to the point and harmless"


class RewardPart(Settings):
    """Settings of one annotator."""

    holds_model: ClassVar[bool] = False
    """Whether it occupies the accelerator's memory."""
    unnamed: ClassVar[frozenset[str]]
    """Keys that may change between the attempts of a run: how and where the annotator is reached."""
    weight: Number = 1.0
    """How much its reward counts if there are several annotators."""

    def identity(self) -> dict[str, Any]:
        """The settings that determine the rewards, except for the content of models."""
        return self.model_dump(exclude=set(self.unnamed))


class ModelReward(RewardPart):
    """A reward model with one label."""

    holds_model: ClassVar[bool] = True
    unnamed: ClassVar[frozenset[str]] = frozenset({"reward_model"})
    reward_model: PathText
    """Folder or hub id of the reward model."""
    model_init_kwargs: dict[str, Any] = Field({})
    """Arguments of `from_pretrained`, such as `{dtype: float32}`; the default precision is bfloat16 on CUDA, else
    float32, with the score itself in float32."""
    chat_template_kwargs: dict[str, Any] = Field({})
    """Arguments of the reward model's chat template; a row's own override them."""

    @field_validator("model_init_kwargs")
    @classmethod
    def _checked(cls, values: dict[str, Any]) -> dict[str, Any]:
        return load_options(values)


class FunctionReward(RewardPart):
    """A Python function."""

    unnamed: ClassVar[frozenset[str]] = frozenset({"function"})
    function: str | Callable[..., Any]
    """`python:module:function`, or the function itself: `f(prompts, completions, **columns)` returns floats."""


class PairwiseReward(RewardPart):
    """A pairwise model such as PairRM; see `adaptpo.annotation.pairwise_model`."""

    holds_model: ClassVar[bool] = True
    unnamed: ClassVar[frozenset[str]] = frozenset({"pairwise"})
    pairwise: PathText
    """Folder or hub id of the pairwise model."""
    source_tokens: Annotated[Count, Ge(8)] = 1224
    """Maximum tokens of the prompt; the default is PairRM's."""
    candidate_tokens: Annotated[Count, Ge(8)] = 412
    """Maximum tokens of a response; the default is PairRM's."""


class RemoteReward(RewardPart):
    """A remote annotator."""

    unnamed: ClassVar[frozenset[str]] = frozenset({"concurrency", "retries", "timeout", "api_key_env"})
    api_key_env: Variable | None = None
    """Environment variable that holds the key."""
    concurrency: Concurrency = 8
    """Requests at a time."""
    retries: Attempts = 6
    """Attempts after the first."""
    timeout: Seconds = 120.0
    """Seconds for one answer."""
    options: Annotated[Plain, Guarded] = Field({})
    """Further fields of every request."""


class JudgeReward(RemoteReward):
    """A judge: a language model that compares or rates responses."""

    unnamed: ClassVar[frozenset[str]] = RemoteReward.unnamed | {"base_url"}
    judge: str
    """The model's name at the endpoint."""
    mode: Literal["first", "all", "score"] = "first"
    """`first` compares each response with the first of its prompt, `all` compares every two, `score` rates each by
    itself."""
    base_url: Url | None = None
    """Address of the endpoint; null is OpenAI's, with the key in OPENAI_API_KEY."""
    criteria: str = CRITERIA
    """What the judge is asked to judge by."""
    temperature: Temperature | None = 0.0
    """Sampling temperature; null leaves it to the endpoint."""
    max_tokens: Count | None = 1024
    """Maximum tokens of a judgment; null leaves it to the endpoint."""


class ServerReward(RemoteReward):
    """A reward server; see `adaptpo.annotation.server`."""

    unnamed: ClassVar[frozenset[str]] = RemoteReward.unnamed | {"server", "batch_size"}
    server: Url
    """Address of the server."""
    api: Literal["items", "vllm"] = "items"
    """`items` is our own protocol, `vllm` vLLM's pooling endpoint."""
    batch_size: Annotated[Count, Le(4096)] = 16
    """Responses of one request."""


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
