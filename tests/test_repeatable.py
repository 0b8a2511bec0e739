"""The same run twice is the same, with several threads too, and with another number of threads after a resume."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.distributed.repeatable import CUBLAS_WORKSPACE, repeatable
from adaptpo.errors import ModelError
from adaptpo.training.prompt_group_trainer import StepHooks
from tests.runs import assert_same_run
from tests.tiny import save_policy, vowel_reward


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


LONG = "a red cat and a blue dog see the sun over the sea; "


def rows(count: int) -> list[dict[str, Any]]:
    """Rows so long that PyTorch splits what it computes of a batch between threads: 32,768 numbers or more."""
    return [
        {"prompt": f"tell {number}", "chosen": f"{LONG}{number}", "rejected": f"{number}{LONG[::-1]}"}
        for number in range(count)
    ]


def align(policy: str, out: Path) -> None:
    trainer = AlignmentTrainer(
        model=policy,
        args=AlignmentConfig(
            output_dir=str(out),
            num_iterations=1,
            warmup_epochs=1,
            max_prompt_length=64,
            generation={"max_new_tokens": 12},
            training={"learning_rate": 1e-3, "per_device_train_batch_size": 6, "save_steps": 1, "use_cpu": True},
            show_progress=False,
        ),
        method=methods.metaapo(num_generations=2, update_interval=2),
        train_dataset=rows(12),
        reward_funcs=vowel_reward,
    )
    trainer.train()


@pytest.fixture(scope="module")
def straight(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    torch.set_num_threads(2)
    align(policy, out)
    return out


def test_two_threads_end_with_the_same_bits_though_resumed_with_one(
    policy: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    step_end = StepHooks.on_step_end

    def fail(self: StepHooks, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        seen.append(torch.get_num_threads())
        step_end(self, args, state, *rest, **more)
        if len(seen) in (1, 4):
            raise InterruptedError

    monkeypatch.setattr(StepHooks, "on_step_end", fail)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        with pytest.raises(InterruptedError):
            align(policy, tmp_path / "run")
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    align(policy, tmp_path / "run")
    assert set(seen) == {2} == {yaml.safe_load((straight / "config.yaml").read_text())["threads"]}
    assert_same_run(straight, tmp_path / "run")


def test_backward_of_indexing_adds_in_one_order() -> None:
    """Many columns of the same place, as the responses of one prompt begin; enough for two threads."""
    torch.manual_seed(0)
    columns = torch.arange(64).repeat(32)
    weight = torch.randn(1, len(columns), 64)
    found = set()
    with repeatable(2):
        for _ in range(12):
            states = torch.zeros(1, 64, 64, requires_grad=True)
            (states[:, columns] * weight).sum().backward()
            found.add(states.grad.numpy().tobytes())
    assert len(found) == 1


def test_settings_of_the_process_are_as_before() -> None:
    filling = torch.utils.deterministic.fill_uninitialized_memory
    with repeatable(1):
        assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    with repeatable(None):
        assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 2
    assert torch.utils.deterministic.fill_uninitialized_memory == filling
    assert torch.cuda.is_available() or CUBLAS_WORKSPACE not in os.environ


def test_operation_without_a_deterministic_version_is_named() -> None:
    with pytest.raises(ModelError, match=r"put_.*training\.full_determinism to false"), repeatable(None):
        torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))
    with pytest.raises(RuntimeError, match="size"), repeatable(None):
        torch.zeros(4) @ torch.zeros(3)


@pytest.mark.parametrize(("chosen", "expected"), [({}, True), ({"full_determinism": False}, False)])
def test_recipe_may_turn_it_off(chosen: dict[str, Any], expected: bool, policy: str, tmp_path: Path) -> None:
    trainer = AlignmentTrainer(
        model=policy,
        args=AlignmentConfig(output_dir=str(tmp_path / "run"), training={"use_cpu": True, **chosen}),
        method=methods.dpo(),
        train_dataset=rows(2),
    )
    with trainer.open() as context:
        assert context.is_repeatable == expected
        assert torch.are_deterministic_algorithms_enabled() == expected
