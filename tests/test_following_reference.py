"""A reference that follows the policy: its updates by hand, runs, and resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.choices.reference import Synced
from adaptpo.errors import ConfigError
from adaptpo.models.collate import GroupCollator
from adaptpo.training.following_reference import FOLLOWING, FollowingReference
from tests.groups import random_groups, with_reference
from tests.runs import SETTINGS, assert_same_run, run_in_process, start, weights
from tests.tiny import byte_tokenizer, preference_rows, save_policy, tiny_model


def test_it_moves_a_share_of_the_way_every_few_steps(tmp_path: Path) -> None:
    policy, initial = tiny_model(byte_tokenizer(), seed=0), tiny_model(byte_tokenizer(), seed=1)
    reference = FollowingReference(tiny_model(byte_tokenizer(), seed=1), Synced(2, 0.25))
    for steps in range(1, 4):
        reference.follow(policy)
        moved = (steps // 2 > 0) * 0.25
        for own, old, new in zip(reference.model.parameters(), initial.parameters(), policy.parameters(), strict=True):
            torch.testing.assert_close(own, (1 - moved) * old + moved * new, atol=1e-7, rtol=1e-6)
    reference.save(tmp_path)
    other = FollowingReference(tiny_model(byte_tokenizer(), seed=1), Synced(2, 0.25))
    other.load(tmp_path)
    for each in (reference, other):
        each.follow(policy)
    assert other.steps == 4
    assert all(map(torch.equal, reference.model.parameters(), other.model.parameters()))


def test_it_adds_the_log_probs_that_a_run_would_have_stored() -> None:
    model = tiny_model(byte_tokenizer(), seed=1)
    groups = random_groups(3)
    expected = GroupCollator(0)(with_reference(groups, model))
    found = FollowingReference(model, Synced(), by_token=True).added_to(GroupCollator(0)(groups))
    for name in ("reference_chosen", "reference_rejected", "reference_shared"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["reference_tokens"].sum(dim=1)[:6], found["reference_chosen"])


@pytest.mark.parametrize("wrong", [{"ref_model_sync_steps": 0}, {"ref_model_mixup_alpha": 0.0}, {"ref_model_mixup_alpha": 2}])  # fmt: skip # noqa: E501
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Synced(**wrong)
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AlignmentConfig(output_dir="o", reference=wrong)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"), num_hidden_layers=1)


def align(policy: str, out: Path, method: str, **settings: object) -> Path:
    args = AlignmentConfig(output_dir=str(out), **(SETTINGS | settings))
    return Path(AlignmentTrainer(policy, args, method, preference_rows(12)).train())


def test_a_recipe_chooses_it_for_any_method_with_a_reference(policy: str, tmp_path: Path) -> None:
    """At every step the reference becomes the policy: every margin is 0, so the loss falls no further than ln 2."""
    final = align(policy, tmp_path / "run", "dpo", reference={"ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0})
    lines = (tmp_path / "run/iterations/1/pair_weights.jsonl").read_text().splitlines()
    margins = [float(line.split('"margin": ')[1].split(",")[0]) for line in lines]
    assert len(margins) == 6 and max(map(abs, margins)) < 1e-4
    assert not (final / FOLLOWING).exists()
    assert not (tmp_path / "run/iterations/1/reference").exists()


def test_in_bf16_the_first_margins_are_0(policy: str, tmp_path: Path) -> None:
    """Policy and reference are the same model, and compute in the same precision."""
    training = SETTINGS["training"] | {"bf16": True, "use_cpu": True}
    align(policy, tmp_path / "run", "tr_dpo", num_iterations=1, training=training)
    lines = (tmp_path / "run/iterations/0/pair_weights.jsonl").read_text().splitlines()
    first = [json.loads(line)["margin"] for line in lines if json.loads(line)["step"] == 1]
    assert first == [0.0] * 4


def test_a_reference_that_never_follows_is_doubted(policy: str, tmp_path: Path) -> None:
    align(policy, tmp_path / "run", "tr_dpo")
    assert (
        "the reference never follows the policy: the run has 4 optimizer steps"
        in (tmp_path / "run/warnings.json").read_text()
    )
    align(policy, tmp_path / "dpo", "dpo")
    ours, plain = weights(tmp_path / "run/final"), weights(tmp_path / "dpo/final")
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, plain[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("tr_dpo", {"peft": {"r": 2}}, "leave peft out, or set reference to previous"),
        ("simpo", {"reference": {"ref_model_sync_steps": 1}}, "compares pairs with no reference"),
    ],
)
def test_it_is_refused_where_there_is_nothing_to_follow(
    method: str, settings: dict, message: str, policy: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        align(policy, tmp_path / "run", method, **settings)


def test_a_killed_run_resumes_bit_for_bit_within_an_iteration(policy: str, tmp_path: Path) -> None:
    """Of 5 steps in the second iteration, two are saved: the reference has followed in both iterations by then."""
    arguments = {"model": policy, "method": "tr_dpo", "rows": 36, "held_out": 0, "reward": None}
    arguments["method_settings"] = {"ref_model_sync_steps": 2}
    start(out=tmp_path / "straight", **arguments)
    killed = arguments | {"out": tmp_path / "killed"}
    assert run_in_process("step:iterations/1:4", **killed) == -9
    assert run_in_process(**killed) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
