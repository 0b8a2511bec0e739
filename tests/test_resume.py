"""A run killed at any moment goes on and ends exactly as one that was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from adaptpo.run.files import JsonLines
from tests.runs import assert_same_run, run_in_process
from tests.tiny import save_policy

KILLS = [
    "start:data",
    "written:offline.arrow",
    "written:offline.parquet",
    "done:data",
    "start:reward",
    "written:reward/scratch/.writing-pairs.arrow",
    "reward-step:3",
    "folder:reward/.writing-model",
    "done:reward",
    "file:reference/00002.parquet",
    "done:reference",
    "start:evaluate/initial",
    "done:evaluate/initial",
    "step:warmup:5",
    "saving:warmup:6",
    "saved:warmup:6",
    "folder:warmup/.writing-checkpoint",
    "done:warmup",
    "file:0/scores/00001.parquet",
    "done:iterations/0/score",
    "done:iterations/0/select",
    "file:0/responses/00001.parquet",
    "done:iterations/0/generate",
    "file:0/annotations/00001.parquet",
    "done:iterations/0/annotate",
    "start:iterations/0/pair",
    "written:0/scratch/.writing-pairs.arrow",
    "written:0/.writing-pairs.parquet",
    "file:0/reference/00001.parquet",
    "written:0/scratch/.writing-training.arrow",
    "step:iterations/0:1",
    "step:iterations/0:3",
    "saved:iterations/0:2",
    "folder:iterations/0/.writing-checkpoint",
    "done:iterations/0/train",
    "start:evaluate/iteration-0",
    "file:1/scores/00000.parquet",
    "step:iterations/1:3",
    "done:iterations/1/train",
    "folder:.writing-final",
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def straight(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    assert run_in_process(model=policy, out=out, reward="train") == 0
    return out


def metric_lines(out: Path) -> list[dict]:
    lines = JsonLines(out / "metrics.jsonl").read()
    volatile = ("time", "reward_model/epoch")
    return [{k: v for k, v in line.items() if k not in volatile} for line in lines]


RUNS = 3
"""Runs that share the points: each is killed at every third of them, and resumes in between."""


@pytest.mark.parametrize("first", range(RUNS))
def test_killed_run_resumes_to_the_same_end(first: int, policy: str, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for point in KILLS[first::RUNS]:
        assert run_in_process(point, model=policy, out=out, reward="train") == -9, point
        assert not (out / "final").exists()
    assert run_in_process(model=policy, out=out, reward="train") == 0
    assert_same_run(straight, out)
    assert metric_lines(out) == metric_lines(straight)


def test_finished_run_does_nothing_again(policy: str, straight: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*") if path.is_file() and path.name != "lock"}
    assert run_in_process(model=policy, out=straight, reward="train") == 0
    after = {path: path.stat().st_mtime_ns for path in straight.rglob("*") if path.is_file() and path.name != "lock"}
    assert before == after


def test_learner_state_is_in_every_checkpoint(straight: Path) -> None:
    first, second = (torch.load(straight / f"iterations/{i}/checkpoint/method.pt") for i in (0, 1))
    assert 0 < first["learners"][0]["updates"] < second["learners"][0]["updates"]


def test_no_half_written_files_and_no_intermediate_checkpoints_remain(straight: Path) -> None:
    assert not list(straight.rglob(".writing-*"))
    assert not list(straight.rglob("checkpoint-*")) and not list(straight.rglob("scratch"))
    phases = json.loads((straight / "state.json").read_text())["phases"]
    assert all(phase["done"] for phase in phases.values())


def test_seed_changes_the_run(policy: str, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run_in_process(model=policy, out=out, reward="train", seed=1) == 0
    with pytest.raises(AssertionError):
        assert_same_run(straight, out)
    shutil.rmtree(out)
