"""Settings of a run. One YAML file is one run; an unknown key is an error that names the nearest valid one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Gt, Lt
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from adaptpo.config.base import Guarded, PathText, Settings, checked_path, explain, is_special_reward
from adaptpo.config.data import DataSettings, EvalDataSettings, as_section
from adaptpo.config.executor import ExecutorSettings
from adaptpo.config.generation import EngineSettings
from adaptpo.config.numbers import (
    Count,
    CountOrZero,
    LearningRate,
    Plain,
    Positive,
    PositiveFraction,
    Seed,
    SeveralResponses,
    Temperature,
)
from adaptpo.config.plain import plain
from adaptpo.config.sections import (
    check_names,
    check_types,
    load_options,
    refuse_other_adapters,
    refuse_owned,
    refuse_shared,
)
from adaptpo.config.strict_yaml import read_yaml
from adaptpo.errors import ConfigError


class GenerationSettings(EngineSettings):
    """Sampling of fresh responses, and the engine that samples."""

    temperature: Temperature = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: PositiveFraction = 1.0
    """Nucleus sampling; 1 is off."""
    top_k: CountOrZero = 0
    """Sample among the k likeliest tokens; 0 is off."""
    max_new_tokens: Count = 512
    """Maximum tokens of a fresh response."""


class StageSettings(Settings):
    """The boundary measurement, for methods that need one and for `adaptpo stage`."""

    prompts: Count = 2000
    """Maximum number of prompts to measure."""
    precision: Annotated[Positive, Lt(0.5)] | None = None
    """Stop measuring once half the width of the 95 % interval is at most this; null measures all prompts."""
    groups: Count = 1
    """Groups of similarly worded prompts, each with its own score; 1 is one score for all."""


class SyncedReference(Settings):
    """A reference that follows the policy, as TRL's `sync_ref_model`: TR-DPO."""

    ref_model_sync_steps: Count = 512
    """Optimizer steps between two updates of the reference."""
    ref_model_mixup_alpha: PositiveFraction = 0.6
    """The share of the policy in the updated reference; 1 replaces it."""


TEXTS_OF_LOADING = ("revision", "code_revision", "subfolder", "variant")
"""Arguments of `from_pretrained` that a recipe may spell like a number: `revision: 12345678`."""


class AlignmentConfig(Settings):
    """All settings of a run except model, data, reward and method. Names follow TRL where it has one."""

    output_dir: PathText
    """The run directory, relative to the working directory."""
    branch_of: PathText | None = None
    """Folder of another run, whose opening (everything before the first iteration) is reused instead of repeated."""
    num_iterations: Count = 3
    """T: the data is split into T sequential parts, one per iteration."""
    warmup_epochs: CountOrZero | None = None
    """Epochs of offline training before the first iteration; null is the method's default."""
    reference: Literal["initial", "previous"] | SyncedReference | None = None
    """The initial model, the policy that started the iteration, or a section, for a model that follows the policy;
    null is the method's default."""
    max_prompt_length: Count = 1024
    """Prompts with more tokens are left out and recorded."""
    max_completion_length: Count | None = None
    """Responses of the data with more tokens are cut and counted; null cuts none."""
    max_length: Annotated[Count, Gt(1)] | None = None
    """Tokens of prompt and response together, above which a response of the data is cut and counted; null is the
    model's number of positions."""
    chat_template_kwargs: Plain = Field({})
    """Arguments of the chat template, such as `{enable_thinking: false}`; a row's own override them."""
    trained_turns: Literal["last", "all"] = "last"
    """Pairs that differ in several turns: `last` leaves them out; `all` trains on all the turns of the assistant in
    them, and on no token of other turns."""
    generation: GenerationSettings = GenerationSettings()
    """Sampling of fresh responses, and the engine that samples."""
    stage: StageSettings = StageSettings()
    """The boundary measurement, for methods that need one."""
    training: Annotated[dict[str, Any], Guarded] = Field({})
    """Fields of transformers' `TrainingArguments`; `per_device_train_batch_size` counts prompts."""
    reward_training: Annotated[dict[str, Any], Guarded] = Field({})
    """Fields of TRL's `RewardConfig`, for `reward: train`."""
    peft: dict[str, Any] | None = None
    """Fields of peft's `LoraConfig`; the model without the adapter is the reference. null trains all weights."""
    model_init_kwargs: Annotated[dict[str, Any], Guarded] = Field({})
    """Arguments of `from_pretrained`, such as `dtype` (default float32) or `attn_implementation`."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a model, for policy, tokenizer, reward model and encoder."""
    disable_dropout: bool = True
    """Train without dropout, that of an adapter included, because the reference has none."""
    max_tokens_per_batch: Count = 16384
    """Maximum number of tokens of one forward pass, padding included; a larger batch is computed in several passes of
    whole prompt groups, with the same result."""
    shard_size: Count = 64
    """Prompts that are scored, generated or annotated per file; a kill loses at most one file."""
    executor: ExecutorSettings = ExecutorSettings()
    """What computes the shards of a phase: the word `local` or `ray`, or a section."""
    annotation_cache: PathText | None = None
    """Folder for the answers of remote annotators, which several runs may share; null stores them in the run."""
    seed: Seed = 0
    """Random seed of the run."""
    show_progress: bool = True
    """Show progress bars."""

    def __init__(self, **values: Any) -> None:
        """Raises ConfigError that names every wrong key and the nearest valid one."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self))) from error

    @field_validator("reference", mode="before")
    @classmethod
    def _reference_by_name_or_section(cls, value: Any) -> Any:
        if isinstance(value, dict):
            try:
                return SyncedReference(**value)
            except ValidationError as error:
                raise ConfigError(explain(error, SyncedReference, "reference")) from error
        if value not in (None, "initial", "previous") and not isinstance(value, SyncedReference):
            accepted = "Input should be 'initial' or 'previous', or a section with ref_model_sync_steps"
            raise PydanticCustomError("reference", accepted)
        return value

    @field_validator("executor", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("training", "reward_training", "peft", "model_init_kwargs", "chat_template_kwargs", mode="before")
    @classmethod
    def _can_be_stored(cls, values: Any, info: ValidationInfo) -> Any:
        if values is None or isinstance(values, Mapping):
            return None if values is None else plain(values, str(info.field_name))
        raise ValueError(f"it takes a mapping of names to values, and not a {type(values).__name__}")

    @field_validator("training")
    @classmethod
    def _training_fields_exist(cls, values: dict[str, Any]) -> dict[str, Any]:
        from transformers import TrainingArguments

        refuse_owned("training", values)
        check_names("training", values, TrainingArguments)
        check_types("training", values, TrainingArguments)
        if values.get("train_sampling_strategy") == "group_by_length":
            raise ConfigError(
                "training.train_sampling_strategy: set random or sequential; batches are sorted by length"
            )
        return values

    @field_validator("reward_training")
    @classmethod
    def _reward_fields_exist(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values:
            from trl import RewardConfig

            refuse_owned("reward_training", values)
            refuse_shared(values)
            check_names("reward_training", values, RewardConfig)
            check_types("reward_training", values, RewardConfig)
        return values

    @field_validator("peft")
    @classmethod
    def _peft_fields_exist(cls, values: dict[str, Any] | None) -> dict[str, Any] | None:
        if values is not None:
            from peft import LoraConfig

            check_names("peft", values, LoraConfig)
            check_types("peft", values, LoraConfig)
            refuse_other_adapters(values)
        return values

    @field_validator("model_init_kwargs")
    @classmethod
    def _one_dtype(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in TEXTS_OF_LOADING:
            if not isinstance(values.get(name), str | None):
                raise ConfigError(f"model_init_kwargs.{name}: {values[name]} is not text; put it in quotes")
        return load_options(values)

    @property
    def trusts_code(self) -> bool:
        return self.trust_remote_code or bool(self.model_init_kwargs.get("trust_remote_code"))

    @property
    def load_options(self) -> dict[str, Any]:
        """The arguments of `from_pretrained` for the given model."""
        return self.model_init_kwargs | {"trust_remote_code": self.trusts_code}

    def options_of(self, path: str) -> dict[str, Any]:
        """The arguments of `from_pretrained` for the given model, a reference, or a folder that the run wrote, which
        holds one model at its top."""
        own = Path(path).absolute().is_relative_to(Path(self.output_dir).absolute())
        return without_place(self.load_options) if own else self.load_options


def without_place(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `from_pretrained` but those that say which of a repository's models the given one is."""
    return {name: value for name, value in options.items() if name not in TEXTS_OF_LOADING}


class RecipeGenerationSettings(GenerationSettings):
    """Sampling of fresh responses, and the engine that samples."""

    num_generations: SeveralResponses | None = None
    """K: fresh responses per prompt; null is the method's own number: 8, or 2 for some (`adaptpo methods --json`)."""


class MetaSettings(Settings):
    """MetaAPO's meta-learner; ignored by methods without one."""

    learning_rate: Annotated[LearningRate, Gt(0)] = 5e-3
    """Its Adam learning rate."""
    update_interval: Count = 8
    """T_meta: optimizer steps between its updates."""


class Recipe(AlignmentConfig):
    """A run as one YAML file: `AlignmentConfig` plus the model, data, reward and method."""

    model: PathText
    """Folder or hub id of the policy to align; a LoRA adapter is merged into its model once."""
    ref_model: PathText | None = None
    """Folder or hub id of another model as the reference `initial`; null is `model`."""
    reward: str | dict[str, Any] | list[Any] | None = None
    """Folder or hub id of a reward model, `train`, `python:module:function`, or settings of other annotators."""
    data: DataSettings
    """The preference pairs: a path, a section, or a list of these."""
    eval_data: EvalDataSettings | None = None
    """Held-out prompts or pairs: a path, a section, or a list of these. Without a reward, pairs give
    `eval_loss` and `eval_rewards/*`."""
    method: str | dict[str, Any] = "metaapo"
    """A name (`adaptpo methods`), or a section with the name and any argument of the method or of its objective."""
    generation: RecipeGenerationSettings = RecipeGenerationSettings()
    """Sampling of fresh responses, and the engine that samples."""
    meta: MetaSettings = MetaSettings()
    """MetaAPO's meta-learner; ignored by methods without one."""

    @field_validator("reward")
    @classmethod
    def _reward_exists(cls, value: Any) -> Any:
        if isinstance(value, dict | list):
            from adaptpo.config.reward import reward_parts

            reward_parts(value)
        elif isinstance(value, str) and not is_special_reward(value):
            checked_path(value)
        return value

    @field_validator("data", "eval_data", mode="before")
    @classmethod
    def _as_section(cls, value: Any) -> Any:
        return as_section(value)


STANDS_FOR = {"method": "name", "objective": "name", "executor": "kind"}
"""The key that a string in place of a section sets; for data sections it is `path`."""
DATA_SECTIONS = ("data", "eval_data")


def set_value(values: dict[str, Any], assignment: str) -> None:
    """Applies `a.b=value` (the value is YAML) to nested settings, in place."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"--set takes key=value, for instance --set training.learning_rate=1.0e-6; found '{assignment}'"
        )
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if isinstance(inner, str) and section in STANDS_FOR:
            inner = values[section] = {STANDS_FOR[section]: inner}
        elif isinstance(inner, str) or section in DATA_SECTIONS:
            inner = values[section] = as_section(inner)
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {assignment}: '{section}' is not a section")
        values = inner
    try:
        values[last] = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {assignment}: the value is not YAML ({' '.join(str(error).split())})") from error


def resolve_path(value: str, folder: Path) -> str:
    """Resolves an input: relative to the recipe's folder if it exists there, else unchanged (a path, or a hub id)."""
    try:
        beside = folder / Path(checked_path(value)).expanduser()
    except (ValueError, RuntimeError) as error:  # RuntimeError: no such user's home.
        raise ConfigError(f"'{value[:60]}': {error}") from error
    return str(beside.resolve()) if beside.exists() else value


def load_recipe(path: Path | None, assignments: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe and applies `--set` assignments; without a path, these alone are the recipe. Raises ConfigError
    with the problem and the remedy."""
    return make_recipe(read_recipe(path) if path else {}, assignments, path.parent if path else Path())


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys that a recipe file sets."""
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"no recipe at {path}; give the path of a YAML file (recipes/ has examples, docs/recipes.md the keys)"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no recipe; it needs at least model, data and output_dir")
    return values


def make_recipe(values: dict[str, Any], assignments: list[str] | tuple[str, ...], folder: Path) -> Recipe:
    """Builds a recipe from these keys and `--set` assignments; inputs are looked up in `folder` first."""
    for assignment in assignments:
        set_value(values, assignment)
    for key in values:
        if not isinstance(key, str):
            raise ConfigError(f"'{key}': Keys should be strings")
    recipe = Recipe(**values)
    return recipe.model_copy(update=resolved_inputs(recipe, folder))


METHOD_PATHS = ("learner", "encoder")
"""Arguments of methods that name a folder."""


def resolved_inputs(recipe: Recipe, folder: Path) -> dict[str, Any]:
    update: dict[str, Any] = {"model": resolve_path(recipe.model, folder)}
    if recipe.ref_model is not None:
        update["ref_model"] = resolve_path(recipe.ref_model, folder)
    if isinstance(recipe.method, dict):
        given = {name: recipe.method[name] for name in METHOD_PATHS if isinstance(recipe.method.get(name), str)}
        update["method"] = recipe.method | {name: resolve_path(path, folder) for name, path in given.items()}
    if recipe.reward is not None:
        from adaptpo.config.reward import resolved_reward

        update["reward"] = resolved_reward(recipe.reward, lambda path: resolve_path(path, folder))
    for name in DATA_SECTIONS:
        settings = getattr(recipe, name)
        if settings is not None:
            update[name] = with_resolved_paths(settings, folder)
    return update


def with_resolved_paths(settings: DataSettings, folder: Path) -> DataSettings:
    if settings.path is not None:
        return settings.model_copy(update={"path": resolve_path(settings.path, folder)})
    sets = {
        name: one.model_copy(update={"path": resolve_path(one.path, folder)})
        for name, one in (settings.sets or {}).items()
    }
    return settings.model_copy(update={"sets": sets})
