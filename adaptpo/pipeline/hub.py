"""Gives the aligned model away: pushed to the hub as the run's last phase, which is checked before anything is spent,
or copied to a folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from adaptpo.errors import ConfigError, RunError
from adaptpo.models.adapters import adapter_settings
from adaptpo.run.progress import say

REMEDIES = {
    401: "log in with `hf auth login`, or set HF_TOKEN to a token with write permission",
    403: "use a token with write permission, or name a repository of yours in training.hub_model_id (owner/name)",
    404: "name a repository that you may write to in training.hub_model_id (owner/name)",
}
NO_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token with write permission; or leave push_to_hub out"
NO_ANSWER = "check the connection (HF_ENDPOINT, HF_HUB_OFFLINE), or leave push_to_hub out and push the folder later"
BAD_NAME = "set training.hub_model_id to owner/name, with letters, digits, '-', '_' and '.'"


@dataclass(frozen=True)
class Repository:
    """Where the model goes. `name`: `owner/name`, or a name alone, whose owner is the user who is logged in."""

    name: str
    private: bool | None = None
    revision: str | None = None
    token: str | None = None


WEIGHTS = re.compile(r"(adapter_)?(pytorch_)?model[^/]*\.(safetensors|bin)(\.index\.json)?|adapter_config\.json")
"""The names of a model's files that `from_pretrained` looks for."""


def local_base(folder: Path) -> str | None:
    """The folder of the model that the adapter in `folder` belongs to; None for a whole model, and for a hub id."""
    base = (adapter_settings(str(folder)) or {}).get("base_model_name_or_path")
    return base if base and (Path(base).is_absolute() or Path(base).exists()) else None


def refuse_local_base(base: str | None) -> None:
    """Raises ConfigError for an adapter whose model nobody else can load."""
    if base is not None:
        raise ConfigError(
            f"an adapter is of use only with its model, which is a folder of this machine here ({base}): give a whole "
            "model's hub id as `model`, train without peft, or merge the adapter and push the whole model yourself"
        )


def repository_of(training: dict[str, Any], output_dir: Path) -> Repository:
    """The repository of a run's `training` settings; as in transformers, the run's folder names it by default."""
    name = training.get("hub_model_id") or output_dir.absolute().name
    return Repository(name, training.get("hub_private_repo"), training.get("hub_revision"))


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turns what the hub's client raises into a ConfigError that names the remedy."""
    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        raise ConfigError(f"{what}: {' '.join(str(error).split())[:300]}; {remedy(error)}") from error


def remedy(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return REMEDIES.get(response.status_code, NO_ANSWER)
    if isinstance(error, ValueError):
        return BAD_NAME
    return NO_LOGIN if "token" in type(error).__name__.lower() else NO_ANSWER


def check_repository(repository: Repository) -> str:
    """Creates the repository if it does not exist, and returns its full name.

    Raises ConfigError without a login, without permission to write, or for a name that is none.
    """
    api = HfApi(token=repository.token)
    with hub_errors(f"cannot push to '{repository.name}'"):
        api.whoami()
        name = api.create_repo(repository.name, private=repository.private, exist_ok=True).repo_id
        api.auth_check(name, write=True)
        if repository.private and api.repo_info(name).private is False:
            raise ConfigError(
                f"'{name}' exists and is public, and it was to be private: change its visibility on the hub, name "
                "another repository in training.hub_model_id, or leave hub_private_repo out"
            )
        if repository.revision is not None:
            api.create_branch(name, branch=repository.revision, exist_ok=True)
    return name


def push(folder: Path, repository: Repository, message: str) -> str:
    """Uploads the folder in place of the model at the top of the repository, and returns the address of the commit.
    Raises RunError, or ConfigError for an adapter of a local model; the folder is as it was."""
    refuse_local_base(local_base(folder))
    try:
        name, api = check_repository(repository), HfApi(token=repository.token)
        with hub_errors(f"cannot push to '{name}'"):
            found = api.list_repo_files(name, revision=repository.revision)
            commit = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message=message,
                revision=repository.revision,
                delete_patterns=list(filter(WEIGHTS.fullmatch, found)),  # An earlier model would be loaded instead.
            )
    except ConfigError as error:
        raise RunError(f"{error}. The model is in {folder}; the same command, started again, pushes it") from error
    return str(commit.commit_url)


def push_final(folder: Path, repository: Repository, shows: bool) -> dict[str, str]:
    url = push(folder, repository, "End of training")
    say(f"pushed to {url}", shows)
    return {"url": url}


def copy_model(folder: Path, target: Path) -> None:
    """Copies the aligned model. Raises RunError if `target` holds files of another model."""
    own = {file.name for file in folder.iterdir()}
    there = {file.name for file in target.iterdir()} if target.is_dir() else set()
    others = set(filter(WEIGHTS.fullmatch, there)) - own
    if others:
        raise RunError(
            f"{target} holds {', '.join(sorted(others))} of another model, which would be loaded instead; remove it, "
            "or choose another folder"
        )
    shutil.copytree(folder, target, dirs_exist_ok=True)
    if base := local_base(target):
        say(f"{target} holds an adapter, which needs its model in {base}: keep that folder, or merge them", True)
