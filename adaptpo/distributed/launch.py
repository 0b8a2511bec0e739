"""What the launcher of several processes (torchrun, accelerate) set in the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")


def is_sharded() -> bool:
    """Whether accelerate shares out the weights among the processes."""
    return is_set("ACCELERATE_USE_FSDP") or is_set("ACCELERATE_USE_DEEPSPEED")


def converts_weights() -> bool:
    """Whether training in mixed precision converts the weights, in place of autocast."""
    return is_set("ACCELERATE_USE_FSDP")


def saves_parts() -> bool:
    """Whether DeepSpeed shares out the weights, and each process would save its part alone."""
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    gathers = is_set("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL")
    file = Path(os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none"))
    if file.is_file():
        settings = json.loads(file.read_text(encoding="utf-8")).get("zero_optimization", {})
        stage, own = settings.get("stage", 0), settings.get("stage3_gather_16bit_weights_on_model_save", False)
        gathers = gathers if own == "auto" else own  # accelerate fills it from its own setting.
    return str(stage) == "3" and gathers is not True


def parallel_size(kind: str) -> int:
    """The size that accelerate's configuration gives to a kind of parallelism: `dp_replicate`, `tp`, `cp` or `sp`."""
    if not is_set("ACCELERATE_USE_PARALLELISM_CONFIG"):
        return 1
    return int(os.environ.get(f"PARALLELISM_CONFIG_{kind.upper()}_SIZE", "1"))


def process_count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_process_count() -> int:
    """Number of the run's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first_process() -> bool:
    return process_count() == 1 or os.environ.get("RANK") == "0"


def name_of_process() -> str:
    """The process's name for messages; empty if it was started alone."""
    return "" if process_count() == 1 else f" (process {os.environ.get('RANK', '?')} of {process_count()})"
