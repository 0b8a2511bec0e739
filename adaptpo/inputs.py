"""The inputs of a run in the forms users have them, and the hashes by which a resumed run knows them again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adaptpo.annotation.function import import_function
from adaptpo.config import DataSettings
from adaptpo.data import fingerprint, open_rows
from adaptpo.data.rows import Rows
from adaptpo.errors import ConfigError, ModelError
from adaptpo.files import whole_folder


@dataclass(frozen=True)
class DataInput:
    """A data set: `source` is what `adaptpo.data.open_rows` takes."""

    source: Any
    split: str = "train"
    name: str | None = None
    text_format: Literal["auto", "messages", "text"] = "auto"

    @classmethod
    def of(cls, data: Any) -> DataInput | None:
        """From recipe settings, a path or hub id, or a data set in memory; None stays None."""
        if isinstance(data, DataSettings):
            return cls(data.path, data.split, data.name, data.text_format)
        return None if data is None else cls(data)

    def rows(self) -> Rows:
        return open_rows(self.source, self.split, self.name)

    def digest(self) -> str:
        """Raises DataError at once where nothing can be opened; a fingerprint alone would first wait for the hub."""
        self.rows()
        return combined(fingerprint(self.source, self.split, self.name))


def combined(hashes: dict[str, str]) -> str:
    """One hash of several that does not change when the files move."""
    return hashlib.sha256("\n".join(sorted(hashes.values())).encode()).hexdigest()[:16]


def model_digest(path: str) -> str:
    """Of a folder's content, or the commit of a hub model."""
    if Path(path).is_dir():
        return combined(fingerprint(path))
    from transformers import AutoConfig

    try:
        return str(AutoConfig.from_pretrained(path)._commit_hash)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no model at '{path}': it is neither a folder nor a hub id that this machine can reach. "
            "Give a folder that `save_pretrained` wrote, or check the id and the connection."
        ) from error


def reward_digest(reward: str | Callable[..., Any] | None) -> str | None:
    """Of a reward model's content. Of a reward function its name alone: one that failed may be mended and the run goes
    on, and its source would not show what it calls."""
    if isinstance(reward, str) and reward.startswith("python:"):
        reward = import_function(reward)
    if callable(reward):
        return f"{reward.__module__}.{getattr(reward, '__qualname__', type(reward).__qualname__)}"
    return reward if reward in (None, "train") else model_digest(reward)


def as_folder(target: Path, model: Any, tokenizer: Any) -> str:
    """The path of a model: as given, or the folder that a model in memory is saved to."""
    if isinstance(model, str | Path):
        return str(model)
    if tokenizer is None:
        raise ConfigError(
            "a model in memory needs its tokenizer: give processing_class (for a reward model, reward_processing_class)"
        )
    with whole_folder(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(target)
