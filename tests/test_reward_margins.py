"""`reward: train` reads the data column `margin`, as TRL's `RewardTrainer` does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.run.files import JsonLines
from tests.runs import SETTINGS
from tests.tiny import preference_rows, save_policy, vowel_reward


def first_step(policy: str, out: Path, **columns: Any) -> tuple[float, float]:
    """The first pair's loss, and by how much the reward of chosen leads."""
    rows = [row | columns for row in preference_rows(4)]
    settings = SETTINGS | {"num_iterations": 1, "reward_training": {"per_device_train_batch_size": 1}}
    args = AlignmentConfig(output_dir=str(out), **settings)
    AlignmentTrainer(policy, args, methods.online_dpo(num_generations=2), rows, reward_funcs="train").train()
    record = next(r for r in JsonLines(out / "metrics.jsonl").records() if r["phase"] == "reward")
    return record["reward_model/loss"], record["reward_model/margin"]


def test_margins_by_hand(tmp_path: Path) -> None:
    """The loss is -log sigmoid(d), and -log sigmoid(d - 2) with the margin 2."""
    policy = save_policy(tmp_path / "policy")
    plain, lead = first_step(policy, tmp_path / "plain")
    assert math.isclose(plain, math.log1p(math.exp(-lead)), rel_tol=1e-5)
    loss, same = first_step(policy, tmp_path / "two", margin=2)
    assert same == lead and math.isclose(loss, math.log1p(math.exp(2 - lead)), rel_tol=1e-5)


def test_a_margin_that_is_no_number_is_left_out_and_told(tmp_path: Path) -> None:
    policy, rows = save_policy(tmp_path / "policy"), preference_rows(4)
    for row, margin in zip(rows, (1, None, "wide", math.inf), strict=True):
        row["margin"] = margin
    for reward, lost in (("train", [2, 3]), (vowel_reward, [])):
        out = tmp_path / f"run-{len(lost)}"
        args = AlignmentConfig(output_dir=str(out), **(SETTINGS | {"num_iterations": 1}))
        AlignmentTrainer(policy, args, methods.online_dpo(num_generations=2), rows, reward_funcs=reward).train()
        dropped = [record for record in JsonLines(out / "dropped.jsonl").records() if record["phase"] == "data"]
        assert [record["row"] for record in dropped] == lost
        assert all("margin is not a finite number" in record["reason"] for record in dropped)
