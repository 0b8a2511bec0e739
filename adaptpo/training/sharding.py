"""What training asks of FSDP2 and DeepSpeed, so that sharing out the weights changes no result.

DeepSpeed's engine takes the optimizer step inside a backward pass, and would round the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import GradientState
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainingArguments
from transformers.integrations.deepspeed import propagate_args_to_deepspeed

from adaptpo.errors import ConfigError

DEEPSPEED = "DEEPSPEED"
"""accelerate's name for it."""


def reduce_in_float32(plugin: Any) -> None:
    """Sums the gradients of FSDP2's ranks in float32; accelerate would sum them in the precision of the forward pass,
    whose rounding grows with the number of ranks."""
    if isinstance(plugin.mixed_precision_policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)


def compute_by_autocast(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Lets DeepSpeed compute in bfloat16 as training without it does: by autocast over float32 weights, with gradients
    summed in float32. By default, it rounds the weights that a phase starts from, those that are saved, and the numbers
    of a batch, such as the reference's log-probs. Call it before training; without bfloat16 or DeepSpeed it changes
    nothing. Raises ConfigError if DeepSpeed's own file asks for another precision."""
    if accelerator.distributed_type is not DistributedType.DEEPSPEED:
        return
    if (accelerator.mixed_precision == "bf16") != bool(args.bf16):
        raise ConfigError(
            f"DeepSpeed's own file has the precision {accelerator.mixed_precision}, and the run computes references in "
            f"{args.mixed_precision}; set training.bf16, or mixed_precision of accelerate launch's file, to the same"
        )
    if args.bf16:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config.pop("bf16", None)
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        propagate_args_to_deepspeed(accelerator, args)  # transformers then leaves batches in float32.


@contextmanager
def without_step(state: GradientState) -> Iterator[None]:
    """Inside the context, backward passes add to the gradients and no optimizer step is taken."""
    takes_step = state.sync_gradients
    state._set_sync_gradients(False)
    try:
        yield
    finally:
        state._set_sync_gradients(takes_step)


def has_finite_gradients(engine: Any) -> bool:
    """Whether the gradients of the last optimizer step were finite. DeepSpeed skips a step whose gradients are not, and
    gives them a norm of -1 or infinity."""
    norm = engine.get_global_grad_norm()
    return not engine.optimizer.overflow and bool(norm is None or 0 <= norm < math.inf)
