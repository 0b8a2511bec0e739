"""Runs that take over another's opening end as if they had gone all the way themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptpo.errors import RunError
from adaptpo.remote.store import AnswerStore, content_key
from adaptpo.run.branch import copy
from adaptpo.run.files import JsonLines
from adaptpo.run.state import read_state
from tests.runs import assert_same_run, run_in_process, start
from tests.tiny import save_policy, vowel_reward

Folders = tuple[str, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A policy, and a finished run of DPO with a warm-up."""
    folder = tmp_path_factory.mktemp("branch")
    policy = save_policy(folder / "policy", num_hidden_layers=1)
    align(policy, folder / "dpo", "dpo")
    return policy, folder


def align(policy: str, out: Path, method: str, **settings: object) -> None:
    start(policy, out, vowel_reward, method, rows=16, warmup_epochs=1, **settings)


@pytest.mark.parametrize("method", ["metaapo", "weighted_dpo"])
def test_a_branch_equals_a_straight_run(method: str, folders: Folders, tmp_path: Path) -> None:
    """Data weights are read with the data: such a method cannot branch from one that needs none."""
    policy, folder = folders
    align(policy, tmp_path / "straight", method)
    source = folder / "dpo" if method == "metaapo" else tmp_path / "straight"
    align(policy, tmp_path / "branch", method, branch_of=str(source))
    assert_same_run(tmp_path / "straight", tmp_path / "branch")
    straight, branch = (read_state(tmp_path / name)["phases"] for name in ("straight", "branch"))
    assert list(branch) == list(straight)
    assert branch["warmup"] == read_state(source)["phases"]["warmup"]
    logged = [
        [(r["phase"], r["step"]) for r in JsonLines(tmp_path / name / "metrics.jsonl").read()]
        for name in ("straight", "branch")
    ]
    assert logged[0] == logged[1]


@pytest.mark.engines
def test_a_branch_that_was_killed_goes_on(folders: Folders, tmp_path: Path) -> None:
    policy, folder = folders
    align(policy, tmp_path / "straight", "online_dpo")
    arguments = {"model": policy, "reward": vowel_reward, "method": "online_dpo", "rows": 16, "warmup_epochs": 1}
    settings = {"out": tmp_path / "branch", "branch_of": str(folder / "dpo"), **arguments}
    assert run_in_process("folder:branch/.writing-reference", **settings) == -9
    assert run_in_process("start:iterations/0/train", **settings) == -9
    assert run_in_process(None, **settings) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "branch")


def test_paid_answers_are_copied_while_their_run_writes(tmp_path: Path) -> None:
    """The log of an open database has answers that its file lacks, and a copy made in between is none."""
    source = tmp_path / "source" / "annotation_cache"
    store = AnswerStore(source)
    answers = {content_key(number): {"reward": number} for number in range(200)}
    store.add(answers)
    assert list(source.glob("*-wal"))
    copy(source, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["answers.sqlite"]
    assert AnswerStore(tmp_path / "copy").find(answers) == answers
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "answers.sqlite").write_bytes(b"no database" * 200)
    with pytest.raises(RunError, match=r"bad/answers\.sqlite cannot be copied .*adaptpo verify"):
        copy(tmp_path / "bad", tmp_path / "other")


def test_evaluations_of_iterations_are_not_copied(tmp_path: Path) -> None:
    for name in ("iteration-0", "iteration-1", "initial", "warmup", "iteration-2"):
        (tmp_path / "evaluation").mkdir(exist_ok=True)
        (tmp_path / "evaluation" / f"{name}.parquet").touch()
    copy(tmp_path / "evaluation", tmp_path / "copy")
    assert {path.stem for path in (tmp_path / "copy").iterdir()} == {"initial", "warmup"}


def test_another_opening_is_refused(folders: Folders, tmp_path: Path) -> None:
    policy, folder = folders
    with pytest.raises(RunError, match=r"(?s)started with different settings.*method.objective: .DPO.*SimPO"):
        align(policy, tmp_path / "a", "simpo", branch_of=str(folder / "dpo"))
    with pytest.raises(RunError, match="warmup_epochs: 1 in the run, 2 now"):
        start(policy, tmp_path / "b", vowel_reward, "dpo", rows=16, warmup_epochs=2, branch_of=str(folder / "dpo"))
    with pytest.raises(RunError, match="needs_data_weight: False in the run, True now"):
        align(policy, tmp_path / "c", "weighted_dpo", branch_of=str(folder / "dpo"))


def test_a_folder_without_an_opening_is_refused(folders: Folders, tmp_path: Path) -> None:
    policy = folders[0]
    with pytest.raises(RunError, match="no run at"):
        align(policy, tmp_path / "a", "metaapo", branch_of=str(tmp_path))
    arguments = {"model": policy, "reward": vowel_reward, "method": "dpo", "rows": 16, "warmup_epochs": 1}
    assert run_in_process("start:warmup", out=tmp_path / "killed", **arguments) == -9
    with pytest.raises(RunError, match="has not reached its first iteration"):
        align(policy, tmp_path / "b", "metaapo", branch_of=str(tmp_path / "killed"))
