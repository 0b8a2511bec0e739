"""Adapters of peft that stand in for a model: the model they were trained on, and that model with them merged in."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils.save_and_load import load_peft_weights
from torch import nn
from transformers.utils.peft_utils import find_adapter_config_file

from adaptpo.errors import ModelError

NOT_FOUND = "missing adapter keys"
"""Words of the warning by which peft says that it left a part of the adapter as it was initialized."""
REFUSED = (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, OSError)
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
HUB_ARGUMENTS = ("token", "cache_dir", "local_files_only")
WHERE = ("revision", "subfolder", *HUB_ARGUMENTS)
"""The arguments of `from_pretrained` that say where the files of an adapter lie."""


def is_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").exists()


def adapter_file(path: str, options: dict[str, Any] | None = None) -> str | None:
    """The `adapter_config.json` of a folder or hub id; None if it holds a whole model, or cannot be reached."""
    known = where(options)
    if Path(path).exists():
        folder = Path(path) / known.get("subfolder", "")
        return str(folder / "adapter_config.json") if is_adapter(str(folder)) else None
    try:
        return find_adapter_config_file(path, **known)
    except (OSError, ValueError):  # Neither a folder nor a valid id: loading it says so.
        return None


def where(options: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (options or {}).items() if name in WHERE and value is not None}


def adapter_settings(path: str, options: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The content of `adapter_config.json`; None if `path` is no adapter. Raises ModelError if it is damaged."""
    file = adapter_file(path, options)
    try:
        return None if file is None else dict(json.loads(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"cannot read {file}: {error}; save the adapter again with save_pretrained") from error


def base_of(path: str, options: dict[str, Any] | None = None) -> str | None:
    """The folder or hub id of the model that the adapter at `path` was trained on; None if `path` is no adapter.

    Raises ModelError if the adapter does not name it, or names a folder that is not there.
    """
    settings = adapter_settings(path, options)
    if settings is None:
        return None
    base = settings.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"the adapter at '{path}' does not name its model; set base_model_name_or_path in its adapter_config.json"
        )
    beside = Path(path) / where(options).get("subfolder", "") / base
    if not Path(base).exists() and beside.exists():
        return str(beside)
    if not Path(base).exists() and not HUB_ID.fullmatch(base):
        raise ModelError(
            f"the adapter at '{path}' was trained on '{base}', which is not there; correct base_model_name_or_path in "
            "its adapter_config.json"
        )
    return base


def base_options(settings: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `from_pretrained` for an adapter's model: those of `options` that say where and whose code."""
    kept = {name: options[name] for name in (*HUB_ARGUMENTS, "trust_remote_code") if name in options}
    return kept | ({"revision": settings["revision"]} if settings.get("revision") else {})


def refuse_other_task(path: str, settings: dict[str, Any], task: str, remedy: str) -> None:
    """Raises ModelError for an adapter that was trained for another task than `task` (peft's name)."""
    found = settings.get("task_type")
    if found not in (task, None):
        raise ModelError(f"the adapter at '{path}' was trained for {found}, not for {task}; {remedy}")


def merged(model: nn.Module, path: str, options: dict[str, Any] | None = None) -> nn.Module:
    """`model` with the adapter at `path` merged into its weights; `options` say where its files lie, as for a model.
    Raises ModelError if that is not possible."""
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, path, **where(options))
    except REFUSED as error:
        raise not_mergeable(path, str(error).strip().split("\n")[0]) from error
    if lost := next((str(warning.message) for warning in said if NOT_FOUND in str(warning.message)), None):
        raise not_mergeable(path, lost[:200])
    for warning in said:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return merged_weights(adapted, path)


def merged_weights(adapted: Any, path: str) -> nn.Module:
    """The model inside a `PeftModel`, with the adapter merged into its weights in place."""
    try:
        return adapted.merge_and_unload()
    except REFUSED as error:  # Prompt tuning, for instance, has no weights to merge.
        raise not_mergeable(path, str(error).strip().split("\n")[0]) from error


def not_mergeable(path: str, reason: str) -> ModelError:
    return ModelError(
        f"the adapter at '{path}' cannot be merged into its model: {reason}; check base_model_name_or_path in its "
        "adapter_config.json, or merge it yourself and give the folder of the whole model"
    )


def adapter_shapes(path: str, options: dict[str, Any] | None = None) -> dict[str, tuple[int, ...]]:
    """The shapes of the adapter's own weights, by name. Raises ModelError if they cannot be read."""
    try:
        found = load_peft_weights(path, device="cpu", **where(options))
        return {name: tuple(weight.shape) for name, weight in found.items()}
    except REFUSED as error:
        raise ModelError(f"cannot read the adapter at '{path}': {error}; save it again with save_pretrained") from error
