"""`model_init_kwargs` that choose among the models of one folder or repository, here `subfolder`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.methods import METHODS
from tests.runs import SETTINGS, weights
from tests.tiny import preference_rows, save_policy, vowel_reward

METHODS_BY_REFERENCE = {
    "metaapo": {"num_generations": 2},
    "grpo": {"num_generations": 2},
    "iterative_dpo": {"num_generations": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of the same kind: one at the top, and another one below it."""
    folder = tmp_path_factory.mktemp("models")
    save_policy(folder, num_hidden_layers=1, seed=0)
    save_policy(folder / "sub", num_hidden_layers=1, seed=1)
    return folder


def final_weights(out: Path, model: Path, method: str, arguments: dict[str, Any], **settings: Any) -> Any:
    args = AlignmentConfig(output_dir=str(out), **(SETTINGS | settings))
    built = METHODS[method](**arguments)
    trainer = AlignmentTrainer(str(model), args, built, preference_rows(12), reward_funcs=vowel_reward)
    return weights(Path(trainer.train()))


@pytest.mark.parametrize("method", METHODS_BY_REFERENCE)
def test_a_run_from_a_subfolder_is_a_run_from_that_folder(method: str, folder: Path, tmp_path: Path) -> None:
    """Policy, reference and tokenizer are the one below, and the run's own checkpoints have no subfolder."""
    arguments = METHODS_BY_REFERENCE[method]
    options = {"subfolder": "sub"}
    named = final_weights(tmp_path / "named", folder, method, arguments, model_init_kwargs=options)
    direct = final_weights(tmp_path / "direct", folder / "sub", method, arguments)
    assert named.keys() == direct.keys()
    assert all(torch.equal(named[name], direct[name]) for name in direct)
