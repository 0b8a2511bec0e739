"""A learner that could learn little or nothing is reported before training, and in the report."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.choices.learners.base import Schedule
from adaptpo.choices.method import Method
from adaptpo.choices.pairing import Online
from adaptpo.choices.selection import SelectAll
from adaptpo.choices.weighting import Focal
from adaptpo.methods import METHODS
from adaptpo.report import write_report
from tests.runs import SETTINGS
from tests.tiny import preference_rows, save_policy, vowel_reward


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize(
    ("method", "schedule", "parts"),
    [
        (methods.metaapo(update_interval=8), Schedule((7, 7), 1), ["the meta-learner will never be updated", "7 opt"]),
        (methods.metaapo(update_interval=8), Schedule((7, 8), 1), []),
        (methods.metaapo(update_interval=1), Schedule((1,), 1), []),
        (methods.metaapo_heuristic(), Schedule((1,), 1), []),
        (methods.dpo(), Schedule((1,), 1), []),
        (
            methods.metapo(meta_interval=100, dense_start=0),
            Schedule((99, 99), 2),
            ["pair weights will never be learned", "every 100"],
        ),
        (methods.metapo(), Schedule((1, 1), 2), ["pair weights will never be learned", "not after the first"]),
        (methods.metapo(), Schedule((540,), 3), []),
        (methods.metapo(), Schedule((6000,), 3), []),
        (methods.metapo(), Schedule((12,), 3), []),
        (methods.metapo(), Schedule((6000,), 1), ["each pair is trained on once"]),
        (methods.metapo(meta_interval=None), Schedule((99,), 1), []),
        (methods.metapo(meta_learning_rate=0.03), Schedule((5700,), 1), ["each pair is trained on once"]),
        (methods.metapo(meta_learning_rate=0.03), Schedule((5700,), 2), []),
        (methods.metapo(features=["margin"], meta_learning_rate=0.03), Schedule((5700,), 1), []),
        (
            methods.metaapo_metapo(update_interval=4, meta_interval=4),
            Schedule((3,), 2),
            ["meta-learner will never", "will never be lear"],
        ),
        (
            replace(methods.ppo(), weighting=Focal(2.0)),
            Schedule((9,), 1),
            ["method.weighting has no effect", "from rewards and not pairs"],
        ),
        (
            replace(methods.metaapo(), pairing=Online(8)),
            Schedule((90,), 1),
            ["method.weighting has no effect", "its learner never learns"],
        ),
        (replace(methods.dpo(), selection=SelectAll()), Schedule((9,), 1), ["method.selection has no effect"]),
    ],
)
def test_doubts(method: Method, schedule: Schedule, parts: list[str]) -> None:
    said = " ".join(method.doubts(schedule))
    assert bool(said) == bool(parts)
    assert all(part in said for part in parts)


@pytest.mark.parametrize("name", METHODS)
def test_no_choice_of_a_named_method_is_idle(name: str) -> None:
    assert not [doubt for doubt in METHODS[name]().doubts(Schedule((10**6,), 3)) if "has no effect" in doubt]


def test_a_reference_that_nothing_reads_is_named(policy: str, tmp_path: Path) -> None:
    args = AlignmentConfig(output_dir=str(tmp_path / "run"), **(SETTINGS | {"reference": "previous"}))
    AlignmentTrainer(policy, args, methods.simpo(), preference_rows(8)).train()
    assert "reference: previous has no effect" in (tmp_path / "run" / "warnings.json").read_text()


def test_weights_that_can_hardly_move_by_hand() -> None:
    """57 Adam steps of 1e-4 on 6 coefficients and a bias, times the slope 1 - 1/e of softplus at weight 1: 2.5 %."""
    paper = methods.metapo(meta_interval=100, meta_learning_rate=1e-4, dense_start=0)
    (said,) = paper.doubts(Schedule((5700,), 2))
    assert f"57 updates at learning rate 0.0001 change a weight by about {57e-4 * 7 * (1 - math.exp(-1)):.1%}" in said
    assert "2.5%" in said
    assert methods.metapo(meta_interval=10, meta_learning_rate=1e-4, dense_start=0).doubts(Schedule((5700,), 2)) == []


def align(policy: str, out: Path, method: Method, **settings: Any) -> None:
    args = AlignmentConfig(output_dir=str(out), **(SETTINGS | {"warmup_epochs": 0, "show_progress": True} | settings))
    rows = preference_rows(12)
    AlignmentTrainer(policy, args, method, rows, reward_funcs=vowel_reward).train()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (methods.metapo(meta_interval=50), "pair weights will never be learned"),
        (methods.metaapo(num_generations=3, update_interval=50), "the meta-learner will never be updated"),
    ],
    ids=["metapo", "metaapo"],
)
def test_a_run_says_it_before_training_and_in_the_report(
    method: Method, message: str, policy: str, tmp_path: Path, undrawn: None, capfd: pytest.CaptureFixture[str]
) -> None:
    align(policy, tmp_path / "run", method)
    output = capfd.readouterr()
    told = output.out + output.err
    assert 0 <= told.index(f"warning: {message}") < told.index("iterations/0/train:")
    assert "was not updated" in told
    (kept,) = json.loads((tmp_path / "run" / "warnings.json").read_text())["before_training"]
    assert kept.startswith(message)
    page = write_report(tmp_path / "run").read_text()
    assert message in page and "iteration 0:" in page and "was not updated" in page


def test_a_run_that_learns_says_nothing(policy: str, tmp_path: Path, undrawn: None) -> None:
    align(policy, tmp_path / "run", methods.metaapo(num_generations=3, update_interval=1))
    assert json.loads((tmp_path / "run" / "warnings.json").read_text()) == {"before_training": []}
    assert 'id="warnings"' not in write_report(tmp_path / "run").read_text()


@pytest.mark.parametrize("repeating", [3, 5])
def test_responses_that_repeat_their_prompt_are_named(policy: str, tmp_path: Path, repeating: int) -> None:
    rows = preference_rows(8)
    for row in rows[:repeating]:
        for side in ("chosen", "rejected"):
            answer = f"{row['prompt'][-1]['content']} {row[side][-1]['content']}"
            row[side] = [{"role": "assistant", "content": answer}]
    args = AlignmentConfig(output_dir=str(tmp_path / "run"), **(SETTINGS | {"num_iterations": 1}))
    AlignmentTrainer(policy, args, methods.simpo(), rows).train()
    said = json.loads((tmp_path / "run" / "warnings.json").read_text())["before_training"]
    assert [doubt[:44] for doubt in said] == (["5 of 8 pairs have two responses that begin w"] if repeating > 4 else [])


def test_a_template_argument_that_nothing_reads_is_named(policy: str, tmp_path: Path) -> None:
    settings = SETTINGS | {"num_iterations": 1, "chat_template_kwargs": {"enable_thinking": True, "mesage": 1}}
    args = AlignmentConfig(output_dir=str(tmp_path / "run"), **settings)
    AlignmentTrainer(policy, args, methods.simpo(), preference_rows(8)).train()
    said = json.loads((tmp_path / "run" / "warnings.json").read_text())["before_training"]
    assert said == [
        "chat_template_kwargs.enable_thinking has no effect: the policy's chat template never reads it; leave it out",
        "chat_template_kwargs.mesage has no effect: the policy's chat template never reads it; did you mean messages?",
    ]
