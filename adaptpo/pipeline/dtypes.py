"""The precision of the weights that train, and what a run says about it."""

from __future__ import annotations

from typing import Any

from adaptpo.models.loading import read_config
from adaptpo.pipeline.context import Context
from adaptpo.run.progress import say

HALVES = ("bfloat16", "float16", "half")


def announce_dtype(context: Context, model_config: Any) -> None:
    """Says that the policy is trained in another dtype than that of its checkpoint, unless the recipe names one."""
    stored = stored_dtype(model_config)
    if stored != "float32" and "dtype" not in context.config.model_init_kwargs:
        below = f", or model_init_kwargs.dtype to {stored} for the model below the adapter"
        adapted = below if context.config.peft else ""
        say(
            f"the policy's weights train in float32, and the checkpoint's dtype is {stored}; to compute in bfloat16, "
            f"set training.bf16{adapted}",
            context.shows,
        )


def stored_dtype(model_config: Any) -> str:
    return str(getattr(model_config, "dtype", None) or "float32").removeprefix("torch.")


def trained_dtype(context: Context) -> str:
    """The dtype of the weights that train; an adapter's are float32 whatever the model below it has."""
    given = str(context.config.model_init_kwargs.get("dtype", "float32")).removeprefix("torch.")
    if context.config.peft is not None:
        return "float32"
    if given != "auto":
        return given
    return stored_dtype(read_config(context.initial, context.config.options_of(context.initial)))


def dtype_doubts(context: Context) -> list[str]:
    dtype = trained_dtype(context)
    if dtype not in HALVES:
        return []
    return [
        f"model_init_kwargs.dtype makes the weights {dtype}, which rounds away a step that is small beside its weight: "
        f"with a learning rate of {context.inference_arguments.learning_rate:g}, most weights may never change. Leave "
        "dtype out and set training.bf16, which computes in bfloat16 and keeps the weights in float32; or set peft"
    ]
