"""`reward: train` reads the data column `margin`, as TRL's `RewardTrainer` does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.run.files import JsonLines
from tests.runs import SETTINGS
from tests.tiny import preference_rows, save_policy


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
    assert first_step(policy, tmp_path / "words", margin="wide") == (plain, lead)
