"""Trackers: one run over all phases and attempts, on one axis of optimizer steps."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback, integration_utils

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.errors import ConfigError
from adaptpo.pipeline.trackers import Trackers, tracked_id, tracking
from adaptpo.run.damage import mend
from adaptpo.run.directory import open_run
from adaptpo.run.files import JsonLines
from adaptpo.run.history import StepAxis
from tests.damage import DAMAGES, damage
from tests.tiny import preference_rows, save_policy

ROWS = preference_rows(8)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


def trainer(policy: str, out: Path, report_to: Any = "none", **changes: Any) -> AlignmentTrainer:
    training = {"learning_rate": 1e-3, "per_device_train_batch_size": 2, "save_steps": 1, "report_to": report_to}
    settings: dict[str, Any] = {"num_iterations": 2, "warmup_epochs": 1, "max_prompt_length": 64}
    args = AlignmentConfig(output_dir=str(out), training=training, show_progress=False, **settings)
    return AlignmentTrainer(policy, args, "dpo", ROWS, eval_dataset=preference_rows(2, seed=5), **changes)


class Memory(TrainerCallback):
    """A tracker that remembers what it is told, in place of a service that shows it."""

    told: list[tuple[str, Any]]

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        Memory.told.append(("begin", (args.run_name, state.global_step)))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        Memory.told.append(("log", (state.global_step, logs)))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        Memory.told.append(("end", None))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "memory", Memory)
    monkeypatch.setattr(Memory, "told", [], raising=False)
    yield Memory.told


def steps(told: list[tuple[str, Any]], name: str) -> list[int]:
    return [given[0] for event, given in told if event == "log" and name in given[1]]


def test_one_run_over_all_phases(policy: str, memory: list[tuple[str, Any]], tmp_path: Path) -> None:
    """Four steps of warm-up and two in each iteration; an evaluation belongs to the last step before it."""
    trainer(policy, tmp_path / "tea", "memory").train()
    assert [event for event, _ in memory if event != "log"] == ["begin", "end"]
    assert memory[0] == ("begin", (f"tea-{json.loads((tmp_path / 'tea/trackers.json').read_text())['id']}", 0))
    assert steps(memory, "loss") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert steps(memory, "eval_rewards/margins") == [0, 4, 6, 8]


def test_a_resumed_run_goes_on_in_its_own(policy: str, memory: list[tuple[str, Any]], tmp_path: Path) -> None:
    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if "iterations/0" in args.output_dir and state.global_step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(policy, tmp_path / "tea", "memory", callbacks=[Kill()]).train()
    assert memory[-1] == ("end", None)
    first = len(memory)
    trainer(policy, tmp_path / "tea", "memory").train()
    assert memory[first][1][0] == memory[0][1][0]
    assert steps(memory[:first], "loss") == [1, 2, 3, 4, 5] and steps(memory[first:], "loss") == [6, 7, 8]


def test_a_tracker_that_fails_does_not_end_the_run(
    policy: str, memory: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the server went away")

    monkeypatch.setattr(Memory, "on_log", fail)
    trainer(policy, tmp_path / "tea", "memory").train()
    assert capsys.readouterr().err.count("memory failed (the server went away); the run continues without it") == 1


def test_a_tracker_that_fails_at_the_end_does_not_end_the_run(
    policy: str, memory: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the server went away")

    monkeypatch.setattr(Memory, "on_train_end", fail)
    assert (Path(trainer(policy, tmp_path / "tea", "memory").train()) / "model.safetensors").exists()
    assert "memory failed (the server went away)" in capsys.readouterr().err


def test_a_tracker_that_does_not_start_is_refused_before_the_first_phase(
    policy: str, memory: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("api_key not configured (no-tty)")

    monkeypatch.setattr(Memory, "on_train_begin", fail)
    with pytest.raises(ConfigError, match="memory does not start: api_key not configured") as caught:
        trainer(policy, tmp_path / "runs" / "tea", "memory").train()
    assert "WANDB_MODE=offline" in str(caught.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow", "wandbb"])
def test_a_missing_tracker_is_refused(name: str, policy: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(ConfigError, match=f"training.report_to: .*{name}"):
        trainer(policy, tmp_path / "run", name).train()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_identity_is_told_and_made_anew(kind: str, tmp_path: Path, capsys: Any) -> None:
    ids = []
    for name in ("another", "run"):
        with open_run(tmp_path / name) as run:
            ids.append(tracked_id(run))
            assert tracked_id(run) == ids[-1]
    damage(kind, tmp_path / "run/trackers.json", tmp_path / "another/trackers.json")
    with open_run(tmp_path / "run") as run:
        mend(run, repeatable=True)
        assert "trackers.json" in (said := capsys.readouterr().out) and "written again" in said
        assert tracked_id(run) not in ids
        mend(run, repeatable=True)
        assert capsys.readouterr().out == ""


def test_a_damaged_identity_is_written_again_without_trackers_too(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        tracked_id(run)
        (tmp_path / "trackers.json").write_text("{")
        with tracking(SimpleNamespace(run=run, ranks=run.ranks, callbacks=[], report_to=[])):  # type: ignore[arg-type]
            assert run.intact(tmp_path / "trackers.json")


def test_an_identity_that_an_older_version_wrote_is_kept(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        (tmp_path / "trackers.json").write_text('{"id": "0a1b2c3d"}')
        assert tracked_id(run) == "0a1b2c3d"
        assert run.intact(tmp_path / "trackers.json")


class Writer:
    """A TensorBoard writer that remembers."""

    def __init__(self, log_dir: str | None = None) -> None:
        self.log_dir, self.scalars = log_dir, list[tuple[str, int]]()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, step))

    def add_text(self, *_: Any) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_unlogged_steps_count(tmp_path: Path) -> None:
    """A phase of five steps that logs every two is followed by one whose first step is the sixth."""
    (tmp_path / "state.json").write_text('{"phases": {"warmup": {"done": true, "steps": 5}}}')
    axis = StepAxis(tmp_path)
    records = [("warmup", 2), ("warmup", 4), ("e", None), ("iterations/0/train", 2), ("e", None)]
    assert [axis.place({"phase": phase, "step": step}) for phase, step in records] == [2, 4, 5, 7, 7]


def test_steps_of_another_model_are_its_own(memory: list[tuple[str, Any]], tmp_path: Path) -> None:
    """A reward model's steps are none of the policy's, in a tracker either."""
    (tmp_path / "state.json").write_text('{"phases": {"reward": {"done": true, "steps": 500}}}')
    followed = Trackers([Memory()], TrainingArguments(str(tmp_path)), tmp_path)
    for phase, step in [("evaluate/initial", None), ("reward", 500), ("warmup", 1), ("reward", 3), ("warmup", 2)]:
        followed.send({"phase": phase, "step": step, "iteration": None, "time": 0.0, "loss": 1.0})
    assert [given[0] for _, given in memory] == [0, 500, 1, 3, 2]


def test_a_tracker_stores_the_recipe(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep over methods and betas has to show them: the seed is the run's, the epochs are the method's."""
    stored: list[dict[str, Any]] = []

    class Storing(Memory):
        def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
            stored.append(
                args.to_sanitized_dict() | {"whole": args.to_dict(), "json": json.loads(args.to_json_string())}
            )

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "memory", Storing)
    monkeypatch.setattr(Memory, "told", [], raising=False)
    trainer(policy, tmp_path / "tea", "memory").train()
    (found,) = stored
    assert (found["seed"], found["num_train_epochs"], found["learning_rate"]) == (0, 1.0, 1e-3)
    assert all("DPO(beta=0.1," in found[form]["method"]["choices"]["objective"] for form in ("whole", "json"))
    assert found["whole"]["num_iterations"] == 2


def scalars_of(folder: Path) -> list[tuple[str, int]]:
    """The names and steps in TensorBoard's event files."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            found += [(value.tag, event.step) for value in event.summary.value]
            place += 16 + length
    return found


def test_tensorboard_files_stay_in_the_run(policy: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    trainer(policy, tmp_path / "tea", "tensorboard").train()
    found = scalars_of(tmp_path / "tea" / "tensorboard")
    assert [step for name, step in found if name == "train/loss"] == list(range(1, 9))
    assert [step for name, step in found if name == "eval/loss"] == [0, 4, 6, 8]
    assert JsonLines(tmp_path / "tea" / "metrics.jsonl").read()


def test_a_tracker_given_as_a_callback_follows_the_run(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer()
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setattr(
        TensorBoardCallback, "__init__", lambda self, tb_writer=None: vars(self).update(tb_writer=writer)
    )
    monkeypatch.setattr(TensorBoardCallback, "logging_dir", None, raising=False)
    trainer(policy, tmp_path / "tea", callbacks=[TensorBoardCallback()]).train()
    assert [step for name, step in writer.scalars if name == "train/loss"] == list(range(1, 9))
