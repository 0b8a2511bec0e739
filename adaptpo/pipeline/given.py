"""What users pass to the trainer as Python objects: brought into the form of a recipe, or refused with the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from os import PathLike
from typing import Any

import datasets
import torch
from peft import LoraConfig
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainerCallback

from adaptpo.config.base import nearest
from adaptpo.config.elsewhere import ARGUMENTS_OF_TRL, elsewhere
from adaptpo.config.recipe import AlignmentConfig
from adaptpo.config.reward import reward_parts
from adaptpo.distributed.launch import is_first_process
from adaptpo.errors import ConfigError
from adaptpo.pipeline.phases.train import TRACKERS
from adaptpo.run.progress import caution
from adaptpo.training.own_optimizer import OwnOptimizer


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


def with_adapter(settings: AlignmentConfig, peft_config: Any) -> AlignmentConfig:
    """The settings with this adapter, checked as that of a recipe is. Raises ConfigError for two of them."""
    if peft_config is None:
        return settings
    if settings.peft is not None:
        raise ConfigError("peft_config is given beside args.peft; leave one of them out")
    given = settings.model_dump(exclude_unset=True) | {"peft": lora_settings(peft_config)}
    return type(settings)(**given)


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


def callbacks_of(given: Any) -> list[TrainerCallback]:
    """The callbacks, made where a class is given. Raises ConfigError for what is none, and for early stopping; says
    which of their events a run does not call."""
    if given is None:
        return []
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(f"callbacks is of type {type(given).__name__}; give a list of transformers.TrainerCallback")
    return [callback_of(callback) for callback in given]


def callback_of(given: Any) -> TrainerCallback:
    if isinstance(given, type) and issubclass(given, TrainerCallback):
        try:
            given = given()
        except (TypeError, ImportError, RuntimeError) as error:
            raise ConfigError(f"callbacks: {given.__name__} cannot be made ({error}); give an object of it") from error
    if isinstance(given, EarlyStoppingCallback):
        raise ConfigError(
            "EarlyStoppingCallback needs evaluations within training, and a run evaluates after every iteration; "
            "set num_iterations, or a callback that sets control.should_training_stop"
        )
    if not isinstance(given, TrainerCallback):
        raise ConfigError(f"callbacks holds a {type(given).__name__}; give objects of transformers.TrainerCallback")
    for event in NEVER_CALLED:
        if getattr(type(given), event) is not getattr(TrainerCallback, event) and not isinstance(given, TRACKERS):
            caution(
                f"callbacks: {event} of {type(given).__name__} is never called: a run evaluates after an iteration, "
                "outside of training. Read those numbers in metrics.jsonl, or with trainer.evaluate()",
                is_first_process(),
            )
    return given


NEVER_CALLED = ("on_evaluate", "on_predict", "on_prediction_step")
"""Events of a callback outside of the training phases, in which alone a run calls it."""
OF_AN_OPTIMIZER = ("optim", "optim_args", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
"""Fields of `TrainingArguments` that are an optimizer's settings."""


def optimizer_of(given: Any, settings: AlignmentConfig) -> OwnOptimizer | None:
    """The user's optimizer; None for `(None, None)`. Raises ConfigError for a scheduler, and for settings beside it."""
    if given is None:
        return None
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ConfigError(f"optimizers is {type(given).__name__}; give (optimizer, None), or set training.optim")
    optimizer, scheduler = given
    if scheduler is not None:
        raise ConfigError(
            "optimizers: a scheduler belongs to one optimizer, and every phase makes its own; give (optimizer, None) "
            "and set training.lr_scheduler_type, lr_scheduler_kwargs and warmup_steps"
        )
    if optimizer is None:
        return None
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizers holds a {type(optimizer).__name__}; give a torch.optim.Optimizer, or None")
    own = OwnOptimizer.like(optimizer)
    doubled = [name for name in OF_AN_OPTIMIZER if name in settings.training]
    if doubled:
        raise ConfigError(f"optimizers has settings of its own; leave out training.{', training.'.join(doubled)}")
    return own


def check_tokenizer(given: Any, name: str) -> None:
    """Raises ConfigError for what is no tokenizer of transformers, such as its name or a processor of images."""
    if given is None or isinstance(given, PreTrainedTokenizerBase):
        return
    remedy = "processor.tokenizer" if hasattr(given, "tokenizer") else "what AutoTokenizer.from_pretrained loads"
    raise ConfigError(f"{name} is of type {type(given).__name__}, which is no tokenizer; give {remedy}")


def check_model(given: Any, name: str) -> None:
    """Raises ConfigError for what is neither a path, a hub id, nor a model of transformers or peft."""
    if given is None:
        raise ConfigError(f"{name} is missing; give a hub id, a folder, or a model in memory")
    if isinstance(given, str | PathLike):
        return
    if isinstance(given, type) or not hasattr(given, "save_pretrained") or not isinstance(given, torch.nn.Module):
        raise ConfigError(
            f"{name} is of type {type(given).__name__}; give a hub id, a folder, or a model in memory that "
            "AutoModelForCausalLM.from_pretrained loads"
        )


def other_model(ref_model: Any, model: Any) -> Any:
    """Raises ConfigError for the policy itself, which is the reference anyway, and for what is no model."""
    if ref_model is None:
        return None
    check_model(ref_model, "ref_model")
    if ref_model is model and not isinstance(model, str):
        raise ConfigError("ref_model is the model itself; leave it out: the reference is the model as it starts")
    return ref_model


def checked_reward(reward: Any) -> Any:
    """Raises ConfigError for what is neither a model, a function, nor the settings of annotators."""
    if reward is None or isinstance(reward, str) or hasattr(reward, "save_pretrained"):
        return reward
    if isinstance(reward, PathLike):
        return str(reward)
    if isinstance(reward, list | tuple) and any(hasattr(part, "save_pretrained") for part in reward):
        raise ConfigError("reward_funcs: a list takes folders, hub ids and functions; save the models in memory first")
    reward_parts(reward)
    return reward


def check_reward_tokenizer(given: Any, reward: Any) -> None:
    if given is not None and not hasattr(reward, "save_pretrained"):
        raise ConfigError(
            "reward_processing_class is for a reward model in memory; the folder or hub id of a reward model has "
            "its own tokenizer. Save yours in that folder, or pass the loaded model as reward_funcs"
        )


def number_of_prompts(most: Any) -> int:
    """Raises ConfigError unless `max_eval_prompts` is an integer of at least 1."""
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise ConfigError(f"max_eval_prompts is {most!r}; give a number of prompts, or leave eval_dataset out")
    return most


def check_held_out(given: Any) -> None:
    """Raises ConfigError for several data sets, of which only one could be meant."""
    if isinstance(given, datasets.DatasetDict | datasets.IterableDatasetDict):
        names = ", ".join(map(repr, given))
        raise ConfigError(f"eval_dataset is a DatasetDict; give one of its splits ({names}), eval_dataset[...]")


def refuse_strangers(given: Mapping[str, Any], valid: list[str]) -> None:
    """Raises ConfigError for the first argument that the trainer does not take, with what to give instead.

    None is what TRL's trainers take for an argument that is not used.
    """
    for name, value in given.items():
        if value is not None:
            remedy = ARGUMENTS_OF_TRL.get(name) or elsewhere(name) or nearest(name, valid)
            raise ConfigError(f"AlignmentTrainer takes no argument '{name}': {remedy}")
