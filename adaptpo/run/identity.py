"""Which settings make a run: what may change between attempts, and what makes it another run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from adaptpo.config.executor import ExecutorSettings
from adaptpo.config.secrets import masked
from adaptpo.config.strict_yaml import read_yaml
from adaptpo.errors import OtherRunError, RunError

NOT_COMPARED = frozenset(
    {
        "output_dir",
        "branch_of",
        "model",
        "ref_model",
        "reward",
        "data.path",
        "eval_data.path",
        "show_progress",
        "annotation_cache",
    }
    | {"adaptpo", "threads", "training", "reward_training", "method.opening.takes_prompts"}
    | {f"executor.{name}" for name in ExecutorSettings.model_fields}
    | {f"generation.{name}" for name in ("base_url", "command", "served_model", "api_key_env", "arguments")}
    | {f"generation.{name}" for name in ("program", "reload")}
    | {f"generation.{name}" for name in ("concurrency", "retries", "timeout", "start_timeout", "restarts")}
    | {f"generation.{name}" for name in ("tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization")}
    | {f"training.{name}" for name in ("report_to", "logging_steps", "disable_tqdm", "run_name", "save_steps")}
    | {f"training.{name}" for name in ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "project")}
    | {f"training.{name}" for name in ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")}
    | {"training.full_determinism"}
)
"""Keys that may change between attempts: where inputs lie and what is shown. The content of inputs is compared by hash.

`training` and `reward_training` stand for an empty section; the keys of a section that has any are compared one by one.
"""

OF_THE_MACHINE = ("gradient_checkpointing", "activation_checkpointing", "torch_empty_cache_steps", "ddp_timeout")
OF_THE_LOADER = ("num_workers", "prefetch_factor", "persistent_workers", "pin_memory")
ROUNDING = frozenset(
    {"max_tokens_per_batch", "generation.memory_gb", "generation.batch_size"}
    | {f"{section}.{name}" for section in ("training", "reward_training") for name in OF_THE_MACHINE}
    | {f"{section}.dataloader_{name}" for section in ("training", "reward_training") for name in OF_THE_LOADER}
)
"""Keys that say how much memory is taken for the same numbers, which differ at most by rounding. They may change when a
run is resumed, which says so, and not between runs that share an opening."""

PLACE_OF_A_SET = re.compile(r"(eval_)?data\.sets\..*\.path")
"""The key of the place of one of several data sets, which may change like that of one alone."""

DEFAULT_BATCH = 8
"""`per_device_train_batch_size` if a recipe does not set it, as in transformers."""


def plain(value: Any) -> Any:
    """The value without keys, after a round trip through YAML: what a run stores and compares."""
    return yaml.safe_load(yaml.safe_dump(masked(value), sort_keys=False, allow_unicode=True))


def stored_config(folder: Path) -> dict[str, Any]:
    """The settings of the run in this folder. Raises RunError if the file cannot be read."""
    path = folder / "config.yaml"
    try:
        return masked(dict(read_yaml(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise RunError(f"{path} cannot be read ({error}); restore it, or choose another output_dir") from error


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    parts = (flatten(part, f"{prefix}.{name}" if prefix else name) for name, part in value.items())
    return {key: leaf for part in parts for key, leaf in part.items()}


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """One line for each of the first keys in which two flat mappings differ; empty if they are equal."""
    differing = [key for key in sorted(stored.keys() | wanted.keys()) if stored.get(key) != wanted.get(key)]
    lines = [f"  {key}: {stored.get(key)!r} in the run, {wanted.get(key)!r} now" for key in differing]
    return "\n".join(lines[:12]) + ("\n  ..." if len(lines) > 12 else "")


def is_compared(key: str) -> bool:
    return key not in NOT_COMPARED and not PLACE_OF_A_SET.fullmatch(key)


def rounds(key: str) -> bool:
    """Whether the key, or the section that it is in, changes a result by no more than rounding."""
    return key.removesuffix("_kwargs") in ROUNDING or key.partition("_kwargs.")[0] in ROUNDING


def rounding_changes(stored: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The values that another attempt has for keys that change a result by no more than rounding."""
    before, now = ({key: value for key, value in flatten(each).items() if rounds(key)} for each in (stored, wanted))
    return {key: now.get(key) for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)}


def compared(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that identify a run, flat. Batch size, accumulation passes and processes count only as a product:
    the batch of an optimizer step."""
    drops_out = config.get("disable_dropout") is False  # Then other passes draw other dropout.
    settings = {
        key: value for key, value in flatten(config).items() if is_compared(key) and (drops_out or not rounds(key))
    }
    processes = settings.pop("processes", 1)
    sections = ("training", "reward_training") if config.get("reward") == "train" else ("training",)
    for section in sections:
        size = settings.pop(f"{section}.per_device_train_batch_size", DEFAULT_BATCH)
        passes = settings.pop(f"{section}.gradient_accumulation_steps", 1)
        settings[f"{section}: batch of an optimizer step"] = size * passes * processes
    return settings


def refuse_other_run(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    if lines := differences(compared(stored), compared(wanted)):
        raise OtherRunError(
            f"{path} holds a different run:\n{lines}\n"
            "Start with the run's own settings and inputs to resume it, or choose another output_dir."
        )
