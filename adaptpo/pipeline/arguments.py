"""What transformers makes of the arguments of optimizer, scheduler and compiler, tried before the first phase."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler

from adaptpo.errors import ConfigError
from adaptpo.models.loading import first_line

OF_LAYERS = ("galore", "apollo", "lomo", "adalomo")
"""Beginnings of the names of optimizers that a run cannot use."""
ANOTHER_VALUE = 0.123456
OF_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
WITHOUT_ARGUMENTS = ("constant", "constant_with_warmup")
STEPS = 10
"""Any number of steps: a schedule fails for all or none."""


def optimizer_of(args: TrainingArguments) -> tuple[type, dict[str, Any]]:
    """The class and the settings of the optimizer. Raises ConfigError if its package is missing, or if `optim_args` has
    a setting that it does not read: transformers would ignore it."""
    name = str(getattr(args.optim, "value", args.optim))
    if name.startswith(OF_LAYERS):
        raise ConfigError(
            f"training.optim is {name}, which a run cannot use: it needs the model before there is one, or changes "
            "weights within the backward pass; set another one, such as adamw_torch, or peft"
        )
    try:
        found = Trainer.get_optimizer_cls_and_kwargs(args)
        unread = [part for part in _parts(args) if _is_unread(args, part, found)]
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"training.optim: {first_line(error)}") from error
    if unread:
        read_not = ", ".join(part.strip() for part in unread)
        raise ConfigError(
            f"training.optim_args: the optimizer {name} reads no {read_not}; leave it out, or set the field of "
            "`training` that it means, such as adam_beta1"
        )
    return found


def _parts(args: TrainingArguments) -> list[str]:
    return [part for part in (args.optim_args or "").split(",") if part.strip()]


def _is_unread(args: TrainingArguments, part: str, found: tuple[type, dict[str, Any]]) -> bool:
    """Whether the optimizer is the same without this part, and with another value, which a default may equal."""
    without, other = copy(args), copy(args)
    rest = [kept for kept in _parts(args) if kept != part]
    without.optim_args = ",".join(rest)
    other.optim_args = ",".join([*rest, f"{part.partition('=')[0]}={ANOTHER_VALUE}"])
    try:
        return all(Trainer.get_optimizer_cls_and_kwargs(one) == found for one in (without, other))
    except ValueError:  # A value that this setting cannot have: it is read.
        return False


def check_scheduler(args: TrainingArguments) -> None:
    """Raises ConfigError if the scheduler cannot be made of its arguments."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    schedule, warm_up = args.lr_scheduler_type, args.get_warmup_steps(STEPS)
    name = getattr(schedule, "value", schedule)
    try:
        get_scheduler(schedule, optimizer, warm_up, STEPS, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"training.lr_scheduler_kwargs: the scheduler {name} cannot be made with "
            f"{args.lr_scheduler_kwargs or 'no arguments'}: {first_line(error)}"
        ) from error
    if warm_up and name == "constant":
        raise ConfigError(
            "training.warmup_steps: the scheduler constant has no warm-up; set lr_scheduler_type to "
            "constant_with_warmup, or leave the warm-up out"
        )
    if args.lr_scheduler_kwargs and name in WITHOUT_ARGUMENTS:
        raise ConfigError(f"training.lr_scheduler_kwargs: the scheduler {name} reads none; leave them out")


def check_compilation(args: TrainingArguments) -> None:
    """Raises ConfigError for a mode or a backend that torch.compile does not have."""
    if not args.torch_compile:
        return
    known = {"torch_compile_mode": [*torch._inductor.list_mode_options()]}
    known["torch_compile_backend"] = torch.compiler.list_backends(exclude_tags=())
    for name, accepted in known.items():
        if getattr(args, name) not in (None, *accepted):
            raise ConfigError(f"training.{name} is {getattr(args, name)!r}; give one of {', '.join(accepted)}")


def refuse_unread_by_optimizer(given: Mapping[str, Any], args: TrainingArguments) -> None:
    """Raises ConfigError for fields of Adam, as given, that the chosen optimizer does not read."""
    for name in (each for each in OF_ADAM if each in given):
        other = copy(args)
        setattr(other, name, ANOTHER_VALUE)
        if Trainer.get_optimizer_cls_and_kwargs(other) == Trainer.get_optimizer_cls_and_kwargs(args):
            optimizer = getattr(args.optim, "value", args.optim)
            raise ConfigError(f"training.{name}: the optimizer {optimizer} does not read it; leave it out")


def refuse_unread(given: Mapping[str, Any], args: TrainingArguments) -> None:
    """Raises ConfigError for fields of `training`, as given, that nothing reads beside the others."""
    hub = [name for name in ("hub_model_id", "hub_private_repo", "hub_revision") if given.get(name) is not None]
    if hub == ["hub_private_repo"] and "trackio" in str(given.get("report_to")):
        hub = []  # Of trackio's Space.
    if hub and not given.get("push_to_hub"):
        raise ConfigError(f"training.{hub[0]} says where to push, and push_to_hub is not set; set it, or leave it out")
    if given.get("optim_target_modules"):
        raise ConfigError("training.optim_target_modules: it is for GaLore and APOLLO, which a run cannot use; drop it")
    if args.accelerator_config.split_batches:
        raise ConfigError(
            "training.accelerator_config.split_batches is not read, because per_device_train_batch_size counts the "
            "prompts of a process; leave it out"
        )
