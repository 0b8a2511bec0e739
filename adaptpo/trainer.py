"""The public trainer: takes Hugging Face models, tokenizers and data sets, and runs the phases of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from peft import LoraConfig

from adaptpo.choices.method import Method
from adaptpo.config.base import nearest
from adaptpo.config.recipe import AlignmentConfig, Recipe
from adaptpo.config.reward import reward_parts
from adaptpo.config.version import __version__
from adaptpo.distributed.executor import executor_of
from adaptpo.distributed.ranks import ALONE, Ranks, join_ranks
from adaptpo.errors import ConfigError
from adaptpo.methods import METHODS
from adaptpo.methods.build import build_method
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.inputs import (
    DataInput,
    as_folder,
    function_name,
    input_digest,
    model_digest,
    reward_digest,
    whole_policy,
)
from adaptpo.pipeline.loop import align, run_opening
from adaptpo.run.branch import opening_facts, take_opening
from adaptpo.run.directory import RunDirectory, open_run
from adaptpo.run.files import whole_folder

RewardSource = str | Callable[..., Any] | dict[str, Any] | list[Any] | None


class AlignmentTrainer:
    """Aligns a policy with preferences.

    Args:
        model: hub id, folder, or a causal language model in memory (with its tokenizer as `processing_class`). A LoRA
            adapter is merged into its model, which is then the start and the reference.
        args: an `AlignmentConfig`, or a dict of its fields: all settings except model, data, method and reward.
        method: a method from `adaptpo.methods`, its name, or any `Method`. It is copied, so it can be reused.
        train_dataset: preference pairs in TRL's formats: a `datasets.Dataset`, a `pandas.DataFrame`, rows (dicts), a
            path, or a hub id.
        reward_funcs: a reward model (hub id, folder, or in memory with its tokenizer as `reward_processing_class`),
            `"train"`, `"python:module:function"`, a function `f(prompts, completions, **columns) -> list[float]`,
            the settings of another annotator, as in a recipe (`{"judge": "MODEL", ...}`), or a list of these with
            weights; None for methods that never annotate.
        eval_dataset: held-out prompts or pairs; every stage is then evaluated on the first `max_eval_prompts`. Without
            a reward, held-out pairs give `eval_loss` and `eval_rewards/*`.
        processing_class: the tokenizer, beside a hub id or folder in place of the model's own.
        peft_config: a `peft.LoraConfig`, in place of `args.peft`.

    Raises ConfigError for arguments of other types, with what is accepted.
    """

    def __init__(
        self,
        model: Any,
        args: AlignmentConfig,
        method: Method,
        train_dataset: Any,
        reward_funcs: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_class: Any = None,
        max_eval_prompts: int = 256,
        peft_config: Any = None,
    ) -> None:
        data = DataInput.of(train_dataset)
        if data is None:
            raise ConfigError("train_dataset is missing; give a datasets.Dataset, a list of rows, a path, or a hub id")
        self.args, self.method = config_of(args), copy.deepcopy(method_of(method))
        self.data, self.eval_data = data, DataInput.of(eval_dataset)
        self.max_eval_prompts = max_eval_prompts
        self.model, self.processing_class = model, processing_class
        if peft_config is not None:
            self.args = self.args.model_copy(update={"peft": lora_settings(peft_config)})
        if reward_processing_class is not None and isinstance(reward_funcs, str | Path):
            raise ConfigError(
                "reward_processing_class is for a reward model in memory; the folder or hub id of a reward model has "
                "its own tokenizer. Save yours in that folder, or pass the loaded model as reward_funcs"
            )
        self.reward, self.reward_processing_class = reward_funcs, reward_processing_class

    @classmethod
    def from_recipe(cls, recipe: Recipe, method: Method | None = None) -> AlignmentTrainer:
        """A trainer with the recipe's method, or another one.

        Raises ConfigError for a method, objective or argument that does not exist.
        """
        return cls(
            model=recipe.model,
            args=recipe,
            method=method or build_method(recipe),
            train_dataset=recipe.data,
            reward_funcs=recipe.reward,
            eval_dataset=recipe.eval_data,
            max_eval_prompts=recipe.eval_data.max_prompts if recipe.eval_data else 256,
        )

    def train(self) -> Path:
        """Trains, or resumes an unfinished run of the same settings and inputs in `args.output_dir`.

        Returns the folder of the aligned model. Raises an AdaptpoError that names the remedy.
        """
        with self.open() as context:
            return align(context)

    def prepare(self) -> Path:
        """Runs only what precedes the first iteration: data, checks, reference log-probs, evaluation, warm-up.

        Returns `args.output_dir`. `train` continues from there, and so do other runs that name it as `branch_of`.
        """
        with self.open() as context:
            run_opening(context)
            return context.run.path

    def opening_facts(self) -> dict[str, Any]:
        """Returns what the opening depends on. Runs with equal values can share an opening through `branch_of`."""
        folder = Path(self.args.output_dir) / "inputs"
        initial, reward = self._models(folder)
        return opening_facts(self._resolved(initial, reward, self._tokenizer(folder)))

    @contextmanager
    def open(self) -> Iterator[Context]:
        """Opens the run, with its folder locked and claimed, before any phase. Raises the same errors as `train`."""
        ranks = join_ranks(self.args.training)
        if ranks.count > 1 and any(hasattr(given, "save_pretrained") for given in (self.model, self.reward)):
            raise ConfigError("a run over several processes takes models as folders or hub ids; save them first")
        with open_run(Path(self.args.output_dir), ranks, executor_of(self.args.executor)) as run:
            initial, reward = self._models(run.path / "inputs", ranks)
            tokenizer = ranks.on_first(partial(self._tokenizer, run.path / "inputs"))
            ranks.on_first(partial(self._claim, run, initial, reward, tokenizer))
            yield self._context(run, initial, reward, tokenizer)

    def _claim(self, run: RunDirectory, initial: str, reward: RewardSource, tokenizer: str | None) -> None:
        config = self._resolved(initial, reward, tokenizer, run.ranks.count)
        run.claim(config)
        if self.args.branch_of is not None:
            take_opening(run, Path(self.args.branch_of), config)

    def _tokenizer(self, folder: Path) -> str | None:
        """The folder of a tokenizer that is given beside a hub id or a folder; None if the model's own is used."""
        if self.processing_class is None or not isinstance(self.model, str | Path):
            return None
        with whole_folder(folder / "processing_class") as target:
            self.processing_class.save_pretrained(target)
        return str(folder / "processing_class")

    def _models(self, folder: Path, ranks: Ranks = ALONE) -> tuple[str, RewardSource]:
        given = as_folder(folder / "model", self.model, self.processing_class)
        options, shows = self.args.load_options, self.args.show_progress
        initial = ranks.on_first(partial(whole_policy, folder / "model", given, options, shows))
        reward = self.reward
        if hasattr(reward, "save_pretrained"):
            reward = as_folder(folder / "reward_model", reward, self.reward_processing_class)
        return initial, reward

    def _resolved(
        self, initial: str, reward: RewardSource, tokenizer: str | None = None, processes: int = 1
    ) -> dict[str, Any]:
        """Returns what identifies this run. A run directory refuses a run with other values."""
        recipe = self.args.model_dump(mode="json")
        method = {
            "name": self.method.name,
            "choices": self.method.choices(),
            "filter": repr(self.method.filter),
            "trainer": repr(self.method.trainer),
            "reference": self.method.reference,
            "warmup_epochs": self.method.warmup_epochs,
            "validation": None if self.method.validation is None else repr(self.method.validation),
            "opening": self.method.opening(),
        }
        code = {"trust_remote_code": self.args.trusts_code}
        inputs = {
            "model": model_digest(initial, self.args.load_options),
            "reward": reward_digest(reward, code),
            "data": self.data.digest(),
            "eval_data": self.eval_data.digest() if self.eval_data else None,
            **{name: input_digest(path, code) for name, path in self.method.external_inputs().items()},
        }
        inputs |= {} if tokenizer is None else {"processing_class": input_digest(tokenizer)}
        named = {"model": initial, "reward": described(reward), "method": method}
        shared = {"processes": processes} if processes > 1 else {}
        return {"adaptpo": __version__} | shared | recipe | named | {"inputs": inputs}

    def _context(self, run: RunDirectory, initial: str, reward: RewardSource, tokenizer: str | None) -> Context:
        rows = self.data.rows()
        return Context(
            run=run,
            config=self.args,
            method=self.method,
            initial=initial,
            reward=reward,
            data_rows=rows,
            eval_rows=self.eval_data.rows() if self.eval_data else None,
            max_eval_prompts=self.max_eval_prompts,
            text_format=self.data.text_format,
            source=rows.description,
            tokenizer_folder=tokenizer or initial,
        )


def config_of(args: Any) -> AlignmentConfig:
    """Raises ConfigError for settings of another library, and for what are no settings."""
    if isinstance(args, AlignmentConfig):
        return args
    if isinstance(args, Mapping):
        return AlignmentConfig(**args)
    raise ConfigError(
        f"args is of type {type(args).__name__}; give AlignmentConfig(output_dir=..., training={{...}}), whose "
        "`training` takes the fields of transformers' TrainingArguments"
    )


def method_of(method: Any) -> Method:
    """The method, also by its name or as the function that makes it. Raises ConfigError for anything else."""
    if isinstance(method, Method):
        return method
    if isinstance(method, str):
        if method not in METHODS:
            raise ConfigError(f"unknown method '{method}': {nearest(method, list(METHODS))}")
        return METHODS[method]()
    if method in METHODS.values():
        return method()
    raise ConfigError(f"method is of type {type(method).__name__}; give for instance adaptpo.methods.metaapo()")


def lora_settings(config: Any) -> dict[str, Any]:
    """The fields of a `LoraConfig` that differ from its defaults. Raises ConfigError for another kind of adapter."""
    if isinstance(config, Mapping):
        return dict(config)
    if type(config) is not LoraConfig:
        raise ConfigError(f"peft_config is of type {type(config).__name__}; give a peft.LoraConfig")
    usual = LoraConfig()
    changed = {f.name: getattr(config, f.name) for f in fields(config) if f.init}
    changed = {name: value for name, value in changed.items() if value != getattr(usual, name)}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in changed.items()}


def described(reward: RewardSource) -> Any:
    """The reward as `config.yaml` shows it, with functions given by name."""
    if isinstance(reward, list | tuple | dict):
        return [
            {name: value if not callable(value) else function_name(value) for name, value in part.model_dump().items()}
            for part in reward_parts(reward)
        ]
    return reward if isinstance(reward, str) or reward is None else getattr(reward, "__qualname__", "object")
