"""Every named method through every situation: the conformance table. A new method is picked up by itself."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptpo import AlignmentConfig, AlignmentTrainer, Method
from adaptpo.files import read_rows
from adaptpo.method_table import axis_names, method_rows
from adaptpo.methods import METHODS
from adaptpo.quiet import quiet_libraries
from adaptpo.selection import SelectAll, SelectNone
from adaptpo.types import PreferencePair, Response
from tests.runs import SETTINGS, assert_same_run, run_in_process, weights
from tests.tiny import preference_rows, save_policy, vowel_reward

EXPECTED = {
    "dpo", "simpo", "ipo", "hinge", "slic_hf", "dpo_shift", "conservative_dpo", "orpo", "kto", "focalpo",
    "weighted_dpo", "selective_dpo", "bees", "map", "perplexity_filter", "loss_curriculum",
    "online_dpo", "iterative_dpo", "selm", "adpo", "rdo", "ppo", "grpo", "rloo",
    "metaapo", "metaapo_simpo", "metaapo_random", "metaapo_same_rate", "metaapo_threshold", "metaapo_all",
    "metaapo_uniform", "metaapo_heuristic", "metaapo_fixed", "metaapo_all_offline", "metaapo_deep",
    "metaapo_multi_feature", "metaapo_unscaled", "metaapo_previous", "metaapo_adaptive",
}  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(autouse=True)
def quiet() -> None:
    quiet_libraries()


def build(name: str) -> Method:
    settings = {"num_generations": 3, "update_interval": 2}
    taken = inspect.signature(METHODS[name]).parameters
    return METHODS[name](**{key: value for key, value in settings.items() if key in taken})


def align(policy: str, out: Path, method: Method, rows: int = 12, **settings: Any) -> Path:
    trainer = AlignmentTrainer(
        model=policy,
        args=AlignmentConfig(output_dir=str(out), **(SETTINGS | {"warmup_epochs": 0} | settings)),
        method=method,
        train_dataset=[row | {"weight": 1 + number % 3} for number, row in enumerate(preference_rows(rows))],
        reward_funcs=vowel_reward,
    )
    return trainer.train()


def selected(out: Path) -> list[bool]:
    return [row["selected"] for path in sorted(out.rglob("selection.parquet")) for row in read_rows(path)]


def leaves_out_unselected(method: Method) -> bool:
    pair = PreferencePair(0, "offline", Response("a", [1]), Response("b", [2]))
    return not method.pairing.pairs(pair, None)


def policy_moved(policy: str, out: Path) -> bool:
    before = weights(Path(policy))
    return any(not torch.equal(before[name], tensor) for name, tensor in weights(out / "final").items())


def test_the_table_holds_the_methods_it_should() -> None:
    assert set(METHODS) == EXPECTED


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_paper_and_its_choices(name: str) -> None:
    row = next(row for row in method_rows() if row["name"] == name)
    assert row["summary"] and row["paper"]
    assert METHODS[name]().name == name
    assert not any("(" in axis for axis in (axis_names(name)[i] for i in (0, 1, 3)))


@pytest.mark.parametrize("name", METHODS)
def test_runs_on_one_row(name: str, policy: str, tmp_path: Path) -> None:
    """Two of three parts are empty."""
    final = align(policy, tmp_path / "run", build(name), rows=1, num_iterations=3)
    assert (final / "config.json").exists()


@pytest.mark.parametrize("name", METHODS)
def test_everything_selected(name: str, policy: str, tmp_path: Path) -> None:
    method = replace(build(name), selection=SelectAll())
    align(policy, tmp_path / "run", method)
    assert all(selected(tmp_path / "run"))
    assert policy_moved(policy, tmp_path / "run")


@pytest.mark.parametrize("name", METHODS)
def test_nothing_selected(name: str, policy: str, tmp_path: Path) -> None:
    """Methods that leave unselected prompts out have nothing to train on: the policy stays, and the run ends well."""
    method = replace(build(name), selection=SelectNone())
    align(policy, tmp_path / "run", method)
    assert not any(selected(tmp_path / "run"))
    assert policy_moved(policy, tmp_path / "run") != leaves_out_unselected(method)


@pytest.mark.parametrize("name", METHODS)
def test_accumulation_changes_nothing(name: str, policy: str, tmp_path: Path) -> None:
    """8 prompts a step as 8 x 1 and 1 x 8, the last step smaller; float32 sums in another order differ slightly."""
    results = []
    for per_device, accumulation in ((8, 1), (1, 8)):
        training = SETTINGS["training"] | {
            "per_device_train_batch_size": per_device,
            "gradient_accumulation_steps": accumulation,
        }
        out = tmp_path / f"{per_device}"
        align(policy, out, copy.deepcopy(build(name)), rows=11, num_iterations=1, training=training)
        results.append(weights(out / "final"))
    for tensor, other in zip(results[0].values(), results[1].values(), strict=True):
        torch.testing.assert_close(tensor, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_lora(name: str, policy: str, tmp_path: Path) -> None:
    final = align(policy, tmp_path / "run", build(name), peft={"r": 2, "target_modules": ["q_proj", "v_proj"]})
    adapter = weights(final)
    assert adapter and all("lora" in tensor_name for tensor_name in adapter)
    assert any(tensor.abs().max() > 0 for tensor_name, tensor in adapter.items() if "lora_B" in tensor_name)


@pytest.mark.parametrize("name", METHODS)
def test_resume_is_bit_identical(name: str, policy: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"model": policy, "method": name, "rows": 12, "reward": vowel_reward}
    assert run_in_process(out=tmp_path / "straight", **arguments) == 0
    killed = arguments | {"out": tmp_path / "killed"}
    # Where a learner's state has to come from disk; tests/test_resume.py has the other points.
    assert run_in_process("start:iterations/1/train", **killed) == -9
    assert run_in_process(**killed) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.parametrize("reference", ["initial", "previous"])
def test_reference_starts_iterations_as_it_should(reference: str, policy: str, tmp_path: Path) -> None:
    """Against the policy that started the iteration every first margin is 0; against the initial model it is not."""
    out = tmp_path / "run"
    align(policy, out, METHODS["online_dpo"](num_generations=3), rows=16, reference=reference, num_iterations=2)
    lines = (out / "iterations/1/pair_weights.jsonl").read_text().splitlines()
    first = [float(line.split('"margin": ')[1].split(",")[0]) for line in lines if '"step": 1,' in line]
    assert first
    assert all(abs(margin) < 1e-4 for margin in first) == (reference == "previous")


def test_bf16_run(policy: str, tmp_path: Path) -> None:
    training = SETTINGS["training"] | {"bf16": True, "use_cpu": True}
    align(policy, tmp_path / "run", build("metaapo"), training=training)
    assert policy_moved(policy, tmp_path / "run")


def test_rows_without_a_valid_weight_are_left_out_where_it_counts(policy: str, tmp_path: Path) -> None:
    rows = preference_rows(6)
    weights = [{"weight": 1.0}, {}, {"weight": "high"}, {"weight": -1}, {"weight": 2}, {"weight": 0}]
    for name, kept in (("weighted_dpo", 3), ("dpo", 6)):
        AlignmentTrainer(
            model=policy,
            args=AlignmentConfig(output_dir=str(tmp_path / name), **(SETTINGS | {"num_iterations": 1})),
            method=build(name),
            train_dataset=[row | weight for row, weight in zip(rows, weights, strict=True)],
        ).train()
        assert len(list(read_rows(tmp_path / name / "data" / "offline.parquet"))) == kept
    reasons = (tmp_path / "weighted_dpo" / "dropped.jsonl").read_text()
    assert reasons.count("weight is not a finite number") == 2 and reasons.count("no column 'weight'") == 1
