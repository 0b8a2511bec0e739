"""A run as it was asked for: opens its folder, and says what identifies it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from adaptpo.choices.method import Method
from adaptpo.config.recipe import AlignmentConfig
from adaptpo.config.reward import reward_parts
from adaptpo.config.version import __version__
from adaptpo.distributed.executor import executor_of
from adaptpo.distributed.ranks import ALONE, Ranks, join_ranks
from adaptpo.distributed.repeatable import repeatable
from adaptpo.errors import ConfigError
from adaptpo.pipeline.context import MAX_EVAL_PROMPTS, Context
from adaptpo.pipeline.data_inputs import DataInputs
from adaptpo.pipeline.inputs import (
    as_folder,
    function_name,
    input_digest,
    model_digest,
    reward_digest,
    whole_policy,
)
from adaptpo.run.branch import opening_facts, take_opening
from adaptpo.run.damage import mend
from adaptpo.run.directory import RunDirectory, open_run
from adaptpo.run.files import whole_folder
from adaptpo.training.own_optimizer import OwnOptimizer

RewardSource = str | Callable[..., Any] | dict[str, Any] | list[Any] | None


@dataclass(frozen=True)
class Models:
    """Folders or hub ids of the run's models. `tokenizer` and `reference` are None if they are the initial model's."""

    reward: RewardSource
    initial: str
    tokenizer: str | None
    reference: str | None


@dataclass
class Request:
    """The inputs of a run, as `adaptpo.trainer.AlignmentTrainer` documents them, checked."""

    model: Any
    args: AlignmentConfig
    method: Method
    data: DataInputs
    eval_data: DataInputs | None
    max_eval_prompts: int
    reward: Any
    processing_class: Any
    reward_processing_class: Any
    ref_model: Any
    callbacks: list[TrainerCallback]
    optimizer: OwnOptimizer | None

    def opening_facts(self) -> dict[str, Any]:
        """Returns what the opening depends on. Runs with equal values can share an opening through `branch_of`."""
        return opening_facts(self._resolved(self._models(Path(self.args.output_dir) / "inputs")))

    @contextmanager
    def open(self) -> Iterator[Context]:
        """Opens the run, with its folder locked and claimed, before any phase. Raises the same errors as `train`."""
        ranks = join_ranks(self.args.training, self.args.reward_training)
        if ranks.count > 1 and any(hasattr(given, "save_pretrained") for given in self._given):
            raise ConfigError("a run over several processes takes models as folders or hub ids; save them first")
        with open_run(Path(self.args.output_dir), ranks, executor_of(self.args.executor)) as run:
            models = self._models(run.path / "inputs", ranks)
            run.threads = ranks.on_first(partial(self._claim, run, models))
            with closing(self._context(run, models)) as context, computing(context):
                run.repeatable = context.is_repeatable
                ranks.on_first(partial(mend, run, context.is_repeatable))
                yield context

    @property
    def _given(self) -> tuple[Any, ...]:
        return self.model, self.reward, self.ref_model

    def _claim(self, run: RunDirectory, models: Models) -> int:
        """Returns the number of threads that the run started with."""
        config = self._resolved(models, run.ranks.count)
        run.claim(config)
        if self.args.branch_of is not None:
            take_opening(run, Path(self.args.branch_of), config)
        return run.stored_config.get("threads", config["threads"])

    def _models(self, folder: Path, ranks: Ranks = ALONE) -> Models:
        """Writes what is in memory to the folder, and returns where everything lies."""
        reward = self.reward
        if hasattr(reward, "save_pretrained"):
            reward = as_folder(folder / "reward_model", reward, self.reward_processing_class)
        return Models(reward, *ranks.on_first(partial(self._policies, folder)))

    def _policies(self, folder: Path) -> tuple[str, str | None, str | None]:
        reference = None if self.ref_model is None else self._whole(folder / "ref_model", self.ref_model)
        return self._whole(folder / "model", self.model), self._tokenizer(folder), reference

    def _whole(self, target: Path, model: Any) -> str:
        given = as_folder(target, model, self.processing_class)
        return whole_policy(target, given, self.args.load_options, self.args.show_progress)

    def _tokenizer(self, folder: Path) -> str | None:
        """The folder of a tokenizer that is given beside a hub id or a folder; None if the model's own is used."""
        if self.processing_class is None or not isinstance(self.model, str | Path):
            return None
        with whole_folder(folder / "processing_class") as target:
            self.processing_class.save_pretrained(target)
        return str(folder / "processing_class")

    def _resolved(self, models: Models, processes: int = 1) -> dict[str, Any]:
        """Returns what identifies this run. A run directory refuses a run with other values."""
        recipe = self.args.model_dump(mode="json")
        method = {
            "name": self.method.name,
            "choices": self.method.choices(),
            "code": self.method.code(),
            "filter": repr(self.method.filter),
            "trainer": repr(self.method.trainer),
            "reference": str(self.method.reference),
            "warmup_epochs": self.method.warmup_epochs,
            "num_train_epochs": self.method.num_train_epochs,
            "validation": None if self.method.validation is None else repr(self.method.validation),
            "opening": self.method.opening(),
        }
        code = {"trust_remote_code": self.args.trusts_code}
        inputs = {
            "model": model_digest(models.initial, self.args.options_of(models.initial)),
            "reward": reward_digest(models.reward, code),
            "data": self.data.digest(),
            "eval_data": self.eval_data.digest() if self.eval_data else None,
            **{name: input_digest(path, code) for name, path in self.method.external_inputs().items()},
        }
        others = {"processing_class": models.tokenizer, "ref_model": models.reference}
        inputs |= {name: input_digest(path, code) for name, path in others.items() if path is not None}
        named = {"model": models.initial, "reward": described(models.reward), "method": method}
        named |= {} if models.reference is None else {"ref_model": models.reference}
        named |= {} if self.optimizer is None else {"optimizer": self.optimizer.described}
        named |= {} if "eval_data" in recipe else self._how_data_are_read()
        shared = {"processes": processes} if processes > 1 else {}
        computed = {"adaptpo": __version__, "threads": torch.get_num_threads()}
        return computed | shared | recipe | named | {"inputs": inputs}

    def _how_data_are_read(self) -> dict[str, Any]:
        """Settings of the data that a recipe names among its keys, where they are not the usual ones."""
        sources = {"data": self.data, "eval_data": self.eval_data}
        formats = {
            name: [one.settings.text_format for one in data.sets.values()] for name, data in sources.items() if data
        }
        unusual = {f"{name}.text_format": found for name, found in formats.items() if {*found} != {"auto"}}
        others = self.eval_data is not None and self.max_eval_prompts != MAX_EVAL_PROMPTS
        return unusual | ({"max_eval_prompts": self.max_eval_prompts} if others else {})

    def _context(self, run: RunDirectory, models: Models) -> Context:
        return Context(
            run=run,
            config=self.args,
            method=self.method,
            initial=models.initial,
            reward=models.reward,
            data=self.data.mixture(),
            eval_data=self.eval_data.mixture() if self.eval_data else None,
            max_eval_prompts=self.max_eval_prompts,
            tokenizer_folder=models.tokenizer or models.initial,
            reference_model=models.reference,
            callbacks=self.callbacks,
            optimizer=self.optimizer,
        )


def computing(context: Context) -> AbstractContextManager[None]:
    """The context in which the run computes, repeatable if that is wanted."""
    return repeatable(context.run.threads) if context.is_repeatable else nullcontext()


def described(reward: RewardSource) -> Any:
    """The reward as `config.yaml` shows it, with functions given by name."""
    if isinstance(reward, list | tuple | dict):
        return [
            {name: value if not callable(value) else function_name(value) for name, value in part.model_dump().items()}
            for part in reward_parts(reward)
        ]
    return reward if isinstance(reward, str) or reward is None else getattr(reward, "__qualname__", "object")
