"""The public trainer: takes Hugging Face models, tokenizers and data sets, and runs the phases of a run."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

from transformers import TrainerState

from adaptpo.choices.method import Method
from adaptpo.config.base import nearest
from adaptpo.config.elsewhere import METHODS_OF_TRL
from adaptpo.config.recipe import Recipe
from adaptpo.distributed.launch import is_first_process
from adaptpo.errors import ConfigError, RunError
from adaptpo.methods import METHODS
from adaptpo.methods.build import build_method
from adaptpo.pipeline.context import MAX_EVAL_PROMPTS, Context
from adaptpo.pipeline.data_inputs import DataInputs
from adaptpo.pipeline.given import (
    callback_of,
    callbacks_of,
    check_held_out,
    check_model,
    check_reward_tokenizer,
    check_tokenizer,
    checked_reward,
    config_of,
    number_of_prompts,
    optimizer_of,
    other_model,
    refuse_strangers,
    with_adapter,
)
from adaptpo.pipeline.hub import Repository, copy_model, push, repository_of
from adaptpo.pipeline.loop import align, evaluate_now, run_opening
from adaptpo.pipeline.outcome import AlignmentOutput, load_newest, outcome, run_state, tokenizer_of_run
from adaptpo.pipeline.request import Request


class AlignmentTrainer:
    """Aligns a policy with preferences.

    Args:
        model: hub id, folder, or a causal language model in memory (with its tokenizer as `processing_class`). A LoRA
            adapter is merged into its model, which is then the start and the reference.
        args: an `AlignmentConfig`, or a dict of its fields: all settings except model, data, method and reward.
        method: a method from `adaptpo.methods`, its name, or any `Method`. It is copied, so it can be reused.
        train_dataset: preference pairs in TRL's formats: a `datasets.Dataset`, a `pandas.DataFrame`, rows (dicts), a
            path, or a hub id; a list of several, or a dict of them by name. A dict with the key `path` holds the
            settings of one, as in a recipe. Prompts alone are enough for methods that generate.
        reward_funcs: a reward model (hub id, folder, or in memory with its tokenizer as `reward_processing_class`),
            `"train"`, `"python:module:function"`, a function `f(prompts, completions, **columns) -> list[float]`,
            the settings of another annotator, as in a recipe (`{"judge": "MODEL", ...}`), or a list of these with
            weights; None for methods that never annotate.
        eval_dataset: held-out prompts or pairs, in the same forms; every stage is then evaluated on the first
            `max_eval_prompts`. Without a reward, held-out pairs give `eval_loss` and `eval_rewards/*`.
        processing_class: the tokenizer, beside a hub id or folder in place of the model's own.
        peft_config: a `peft.LoraConfig`, in place of `args.peft`.
        ref_model: another model as the reference that stands for the start (hub id, folder, or in memory); it must have
            the policy's tokenizer.
        callbacks: transformers' `TrainerCallback`s. They see every phase that trains the policy, each with a state of
            its own; trackers (`WandbCallback`, ...) see the run as `training.report_to` would show it.
        optimizers: `(optimizer, None)`. Every phase makes one of its class and settings for the policy that it trains.

    Raises ConfigError for arguments of other types, with what is accepted, and for those of TRL's trainers that have
    another name or no meaning here.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        method: Any = None,
        train_dataset: Any = None,
        reward_funcs: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_class: Any = None,
        max_eval_prompts: int = MAX_EVAL_PROMPTS,
        peft_config: Any = None,
        ref_model: Any = None,
        callbacks: Any = None,
        optimizers: Any = None,
        **others: Any,
    ) -> None:
        refuse_strangers(others, list(signature(AlignmentTrainer).parameters)[:-1])
        check_model(model, "model")
        check_tokenizer(processing_class, "processing_class")
        check_tokenizer(reward_processing_class, "reward_processing_class")
        check_reward_tokenizer(reward_processing_class, reward_funcs)
        check_held_out(eval_dataset)
        self.args = with_adapter(config_of(args), peft_config)
        self.request = Request(
            model=model,
            args=self.args,
            method=copy.deepcopy(method_of(method)),
            data=required(DataInputs.of(train_dataset, "train_dataset")),
            eval_data=DataInputs.of(eval_dataset, "eval_dataset"),
            max_eval_prompts=number_of_prompts(max_eval_prompts),
            reward=checked_reward(reward_funcs),
            processing_class=processing_class,
            reward_processing_class=reward_processing_class,
            ref_model=other_model(ref_model, model),
            callbacks=callbacks_of(callbacks),
            optimizer=optimizer_of(optimizers, self.args),
        )

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
            max_eval_prompts=recipe.eval_data.max_prompts if recipe.eval_data else MAX_EVAL_PROMPTS,
            ref_model=recipe.ref_model,
        )

    def train(self, resume_from_checkpoint: bool | None = None) -> AlignmentOutput:
        """Trains, or resumes an unfinished run of the same settings and inputs in `args.output_dir`.

        `resume_from_checkpoint` may be True or None, which mean the same, because every run resumes by itself.

        Returns `(global_step, training_loss, metrics)`, which is also the path of the aligned model's folder. Raises an
        AdaptpoError that names the remedy.
        """
        if resume_from_checkpoint not in (None, True):
            raise ConfigError(
                f"resume_from_checkpoint is {resume_from_checkpoint!r}; leave it out: a run resumes by itself, and one "
                "with another output_dir starts from the beginning"
            )
        self.__dict__.pop("model", None)
        with self.open() as context:
            align(context)
            return outcome(context.run.path)

    def prepare(self) -> Path:
        """Runs only what precedes the first iteration: data, checks, reference log-probs, evaluation, warm-up.

        Returns `args.output_dir`. `train` continues from there, and so do other runs that name it as `branch_of`.
        """
        with self.open() as context:
            run_opening(context)
            return context.run.path

    def evaluate(self, eval_dataset: Any = None) -> dict[str, float]:
        """Evaluates the run's newest policy on held-out data: `eval_dataset`, by default the trainer's.

        Returns the metrics, which are in `metrics.jsonl` too; before `train`, those of the initial model.
        """
        check_held_out(eval_dataset)
        other = DataInputs.of(eval_dataset, "eval_dataset")
        if other is None and self.request.eval_data is None:
            raise ConfigError("evaluate needs held-out data: give eval_dataset, here or to the trainer")
        with self.open() as context:
            if other is None:
                return evaluate_now(context)
            data = f"{other.digest()}-{self.request.max_eval_prompts}/"
            return evaluate_now(replace(context, eval_data=other.mixture()), data)

    @property
    def folder(self) -> Path:
        """The folder of the run's aligned model. Raises RunError before `train` has finished."""
        final = Path(self.args.output_dir) / "final"
        if not final.exists():
            raise RunError(f"{self.args.output_dir} holds no aligned model yet; call train() first")
        return final

    @property
    def state(self) -> TrainerState:
        """transformers' `TrainerState` of the run so far; `log_history` has every metric of all phases."""
        return run_state(Path(self.args.output_dir))

    @property
    def method(self) -> Method:
        """The method that the run trains with."""
        return self.request.method

    @cached_property
    def model(self) -> Any:
        """The aligned model, on the CPU; before `train` has finished, the policy that the run starts from."""
        return load_newest(self.request)

    @cached_property
    def processing_class(self) -> Any:
        """The tokenizer."""
        return self.request.processing_class or tokenizer_of_run(self.request)

    def __getattr__(self, name: str) -> Any:
        remedy = f": {METHODS_OF_TRL[name]}" if name in METHODS_OF_TRL else ""
        raise AttributeError(f"AlignmentTrainer has no attribute '{name}'{remedy}", name=name, obj=self)

    def add_callback(self, callback: Any) -> None:
        """Adds a callback, as in TRL; see `callbacks`."""
        self.request.callbacks.append(callback_of(callback))

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Copies the aligned model with its tokenizer and card to `output_dir`. None leaves it where it is: `final/` of
        the run's folder. Raises RunError before `train` has finished, and where `output_dir` holds files of another
        model, which would be loaded instead."""
        folder = self.folder
        if is_first_process() and output_dir is not None and Path(output_dir).absolute() != folder.absolute():
            copy_model(folder, Path(output_dir))

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> str:
        """Pushes the aligned model to `training.hub_model_id` (by default the name of the run's folder).

        Returns the address of the commit. Raises RunError before `train` has finished, and where the hub refuses.
        """
        usual = repository_of(self.args.training, Path(self.args.output_dir))
        private = usual.private if private is None else private
        target = Repository(usual.name, private, revision or usual.revision, token)
        return push(self.folder, target, commit_message)

    def opening_facts(self) -> dict[str, Any]:
        """Returns what the opening depends on. Runs with equal values can share an opening through `branch_of`."""
        return self.request.opening_facts()

    def open(self) -> AbstractContextManager[Context]:
        """Opens the run, with its folder locked and claimed, before any phase. Raises the same errors as `train`."""
        return self.request.open()


def method_of(method: Any) -> Method:
    """The method, also by its name or as the function that makes it. Raises ConfigError for anything else."""
    if method is None:
        raise ConfigError("method is missing; give for instance adaptpo.methods.dpo() or adaptpo.methods.metaapo()")
    if isinstance(method, Method):
        return method
    if isinstance(method, str):
        if method not in METHODS:
            raise ConfigError(f"unknown method '{method}': {nearest(method, list(METHODS))}")
        return METHODS[method]()
    if method in METHODS.values():
        return method()
    raise ConfigError(f"method is of type {type(method).__name__}; give for instance adaptpo.methods.metaapo()")


def required(data: DataInputs | None) -> DataInputs:
    if data is None:
        raise ConfigError("train_dataset is missing; give a datasets.Dataset, a list of rows, a path, or a hub id")
    return data
