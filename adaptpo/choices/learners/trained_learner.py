"""The meta-learner that an earlier run trained, from the files that the run left."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from adaptpo.choices.learners.base import METHOD_STATE
from adaptpo.errors import ConfigError


def learner_file(path: str) -> Path:
    """The learners' state in a checkpoint, or in the last checkpoint of a run.

    Raises ConfigError where the folder is neither.
    """
    folder = Path(path).expanduser()
    if (folder / METHOD_STATE).is_file():
        return folder / METHOD_STATE
    found = folder.glob(f"iterations/*/checkpoint/{METHOD_STATE}")
    files = sorted(found, key=lambda file: int(file.parents[1].name))
    if not files:
        raise ConfigError(
            f"no trained learner at '{path}': it holds no {METHOD_STATE} and no finished iteration; "
            "give the folder of a run, or its iterations/T/checkpoint"
        )
    return files[-1]


def trained_network(path: str) -> dict[str, Tensor]:
    """The weights of the meta-learner of a run. Raises ConfigError where the run had none, or more than one."""
    state = torch.load(learner_file(path), map_location="cpu", weights_only=True)
    networks = [learner["network"] for learner in state["learners"] if "network" in learner]
    if len(networks) != 1:
        raise ConfigError(
            f"the run at '{path}' has {len(networks)} meta-learners, and one is needed; "
            "give a run of the method metaapo"
        )
    return networks[0]
