"""Models named by their hub ids, as the hub's client finds them in its cache on a machine without a connection."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.errors import AdaptpoError, ModelError
from adaptpo.methods import metaapo, metaapo_semantic
from adaptpo.pipeline.inputs import model_digest
from tests.runs import SETTINGS, weights
from tests.tiny import preference_rows, save_policy, save_reward_model

COMMIT, LATER = "1" * 40, "2" * 40
Publish = Callable[..., None]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Puts a folder into the client's cache as a repository at a commit, which is then the newest one."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(name: str, folder: str, commit: str = COMMIT) -> None:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)

    return put


def align(out: Path, model: str, method: Any, reward: str, **settings: Any) -> Path:
    args = AlignmentConfig(output_dir=str(out), **(SETTINGS | settings))
    return Path(AlignmentTrainer(model, args, method, preference_rows(12), reward_funcs=reward).train())


def test_a_run_of_hub_ids_is_that_of_their_folders(publish: Publish, tmp_path: Path) -> None:
    """Policy, reward model and encoder; the same command then finds everything done."""
    policy, reward = save_policy(tmp_path / "policy", num_hidden_layers=1), save_reward_model(tmp_path / "reward")
    publish("org/policy", policy)
    publish("org/reward", reward)
    named = align(
        tmp_path / "named", "org/policy", metaapo_semantic(num_generations=2, encoder="org/policy"), "org/reward"
    )
    direct = align(tmp_path / "direct", policy, metaapo_semantic(num_generations=2, encoder=policy), reward)
    expected = weights(direct)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(named).items())

    written = (named / "model.safetensors").stat().st_mtime_ns
    align(tmp_path / "named", "org/policy", metaapo_semantic(num_generations=2, encoder="org/policy"), "org/reward")
    assert (named / "model.safetensors").stat().st_mtime_ns == written


def test_another_commit_is_another_model(publish: Publish, tmp_path: Path) -> None:
    policy = save_policy(tmp_path / "policy", num_hidden_layers=1)
    publish("org/policy", policy)
    assert model_digest("org/policy") == COMMIT
    publish("org/policy", policy, LATER)
    assert model_digest("org/policy") == LATER
    assert model_digest("org/policy", {"revision": COMMIT}) == COMMIT


def test_a_run_is_not_resumed_with_another_commit(publish: Publish, tmp_path: Path) -> None:
    policy, reward = save_policy(tmp_path / "policy", num_hidden_layers=1), save_reward_model(tmp_path / "reward")
    publish("org/policy", policy)
    align(tmp_path / "run", "org/policy", metaapo(num_generations=2), reward, num_iterations=1)
    publish("org/policy", policy, LATER)
    with pytest.raises(AdaptpoError, match="model"):
        align(tmp_path / "run", "org/policy", metaapo(num_generations=2), reward, num_iterations=1)


def test_a_model_that_is_not_there_is_named(publish: Publish) -> None:
    with pytest.raises(ModelError, match=r"no model at 'org/nothing': .*check the id and the connection"):
        model_digest("org/nothing")
