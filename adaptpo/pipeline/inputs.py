"""Models and rewards in the forms that users pass, and the hashes by which a resumed run recognizes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CONFIG_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from adaptpo.annotation.function import RewardFunction, import_function
from adaptpo.config.reward import FunctionReward, RewardPart, reward_parts
from adaptpo.data import fingerprint
from adaptpo.errors import ConfigError, ModelError
from adaptpo.models.adapters import HUB_ARGUMENTS, adapter_file, adapter_settings, base_of, base_options
from adaptpo.models.loading import TRUST, Options, read_config
from adaptpo.models.merging import save_merged, whole
from adaptpo.pipeline.data_inputs import combined
from adaptpo.remote.store import content_key
from adaptpo.run.files import whole_folder, write_json
from adaptpo.run.manifest import Digest, entry_of, files_of
from adaptpo.run.progress import say

MERGED_FROM = "merged_from.json"
"""In the folder of a merged adapter: what it was made of, which identifies it."""


def model_digest(path: str, options: Options | None = None) -> str:
    """Hash of a folder's content, or the commit of a hub model; that of an adapter includes its model's."""
    if (Path(path) / MERGED_FROM).is_file():
        return merged_digest(Path(path) / MERGED_FROM)
    settings = adapter_settings(path, options)
    if settings is None:
        return own_digest(path, options)
    below = model_digest(base_of(path, options) or "", base_options(settings, options or {}))
    return content_key([own_digest(path, options), below])[:16]


def merged_digest(file: Path) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["digest"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{file} is damaged ({error}); it says what the model was merged from. Restore it, or give the adapter "
            "itself as the model"
        ) from error


def own_digest(path: str, options: Options | None) -> str:
    if Path(path).is_dir():
        return combined(fingerprint(path))
    if file := adapter_file(path, options):
        return str(extract_commit_hash(file, None))
    try:
        read_config(path, options)
        return commit_of(path, options or {})
    except ModelError as error:
        if TRUST in str(error):
            raise
        raise ModelError(
            f"no model at '{path}': it is neither a folder nor a hub id that this machine can reach. "
            "Give a folder that `save_pretrained` wrote, or check the id and the connection."
        ) from error


def commit_of(path: str, options: Options) -> str:
    """The commit of a hub model, in whose folder of the cache its configuration lies."""
    known = {name: value for name, value in options.items() if name in (*HUB_ARGUMENTS, "revision", "subfolder")}
    file = cached_file(path, CONFIG_NAME, **known)
    assert file is not None
    return extract_commit_hash(file, None) or combined(fingerprint(file))


def input_digest(path: str, options: Options | None = None) -> str:
    """Hash of a file's content, or of a model."""
    return combined(fingerprint(path)) if Path(path).is_file() else model_digest(path, options)


def reward_digest(reward: Any, options: Options | None = None) -> str | None:
    """Hash of what determines the rewards, except for the address of a remote annotator."""
    if reward is None or reward == "train":
        return reward
    if isinstance(reward, str) or callable(reward):
        return part_digest(reward_parts(reward)[0], options)
    parts = [(part.identity(), part_digest(part, options)) for part in reward_parts(reward)]
    return content_key(parts)[:16]


def part_digest(part: RewardPart, options: Options | None = None) -> str:
    """Hash of a model's content, but only the name of a function: a run may resume after its function was fixed, and
    the source would not show what the function calls."""
    if isinstance(part, FunctionReward):
        return function_name(part.function)
    path = getattr(part, "reward_model", None) or getattr(part, "pairwise", None)
    return model_digest(path, options) if path else ""


def function_name(function: str | RewardFunction) -> str:
    found = import_function(function) if isinstance(function, str) else function
    return f"{found.__module__}.{getattr(found, '__qualname__', type(found).__qualname__)}"


def whole_policy(target: Path, path: str, options: Options, shows: bool = False) -> str:
    """The path of a whole model: as given, or `target`, where an adapter is merged into its model, once.

    The merged model is both the start of the run and its reference.
    """
    base = base_of(path, options)
    if base is None:
        return path
    digest = model_digest(path, options)
    target = target.resolve()  # Adapters that the run saves name it.
    if holds_merged(target, digest):
        return str(target)
    with whole_folder(target) as folder:
        save_merged(path, folder, options)
        made = {"adapter": path, "base": base, "digest": digest, "content": content_of(folder)}
        write_json(folder / MERGED_FROM, made)
    say(f"the adapter {path} is merged into {base}; the run starts from the result, its reference too: {target}", shows)
    return str(target)


def holds_merged(folder: Path, digest: str) -> bool:
    """Whether the folder holds the merged model of this digest, undamaged."""
    try:
        made = json.loads((folder / MERGED_FROM).read_text(encoding="utf-8"))
        return made["digest"] == digest and made["content"] == content_of(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def content_of(folder: Path) -> str:
    """The checksum over a folder's files, but the one that says what they were made of."""
    files = [file for file in files_of(folder) if file.name != MERGED_FROM]
    return Digest.of(entry_of(folder, file, "", "") for file in files).xxh3


def save_whole(model: Any, folder: Path) -> None:
    """Raises ModelError for a model that transformers does not save."""
    try:
        whole(model).save_pretrained(folder)
    except ValueError as error:
        raise ModelError(
            f"the model in memory cannot be saved: {' '.join(str(error).split())[:300]}; correct its "
            "generation_config (do_sample=True, or no sampling settings)"
        ) from error


def as_folder(target: Path, model: Any, tokenizer: Any) -> str:
    """The path of a model: as given, or the folder that a model in memory is saved to, with its adapter merged."""
    if isinstance(model, str | Path):
        return str(model)
    if tokenizer is None:
        raise ConfigError(
            "a model in memory needs its tokenizer: give processing_class (for a reward model, reward_processing_class)"
        )
    with whole_folder(target) as folder:
        save_whole(model, folder)
        tokenizer.save_pretrained(folder)
    return str(target.resolve())
