"""Files that exist whole or not at all, and the run directory: phases, shards, lock, and whose run it is."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml

from adaptpo.errors import RunError
from adaptpo.run import files
from adaptpo.run.directory import RunDirectory, open_run
from adaptpo.run.files import JsonLines, read_rows, whole_file, whole_folder, write_json, write_table, write_text
from adaptpo.run.identity import flatten
from adaptpo.run.state import read_state

FULL_DISK = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL_DISK.is_char_device(), reason="the system has no /dev/full")


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- whole files -----------------------------------------------------------------------------------------------------


def test_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert content(tmp_path) == {"deep/a.txt": "new"}


@pytest.mark.parametrize("before", [{}, {"a.txt": "old"}])
def test_failure_leaves_the_file_as_it_was(before: dict[str, str], tmp_path: Path) -> None:
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("ne")
        raise ZeroDivisionError
    assert content(tmp_path) == before


def test_content_is_on_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(descriptor: int) -> None:
        events.append(f"flush {Path(f'/dev/fd/{descriptor}').resolve().name}")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> Path:
        events.append(f"rename {source.name} {target.name}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    write_text(tmp_path / "a.txt", "new")
    assert events == ["flush .writing-a.txt", "rename .writing-a.txt a.txt", f"flush {tmp_path.name}"]


def test_text_json_and_tables(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "é\n")
    write_json(tmp_path / "a.json", {"é": [1, None]})
    write_table(tmp_path / "a.parquet", pa.table({"x": [1, 2], "y": ["a", None]}))
    assert (tmp_path / "a.txt").read_bytes() == "é\n".encode()
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "é": [\n  1,\n  null\n ]\n}\n'
    assert read_rows(tmp_path / "a.parquet") == [{"x": 1, "y": "a"}, {"x": 2, "y": None}]
    assert read_rows(tmp_path / "a.parquet", ["x"]) == [{"x": 1}, {"x": 2}]


# --- whole folders ---------------------------------------------------------------------------------------------------


def fill(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text)


def test_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    for texts in ({"a": "1", "b": "2"}, {"b": "3", "c": "4"}):
        with whole_folder(tmp_path / "model") as temporary:
            fill(temporary, **texts)
    assert content(tmp_path) == {"model/b": "3", "model/c": "4"}


@pytest.mark.parametrize("before", [{}, {"a": "1", "b": "2"}])
def test_failure_leaves_the_folder_as_it_was(before: dict[str, str], tmp_path: Path) -> None:
    if before:
        (tmp_path / "model").mkdir()
        fill(tmp_path / "model", **before)
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "model") as temporary:
        fill(temporary, a="new")
        raise ZeroDivisionError
    assert content(tmp_path) == {f"model/{name}": text for name, text in before.items()}


def test_leftovers_of_a_killed_process_do_not_get_into_the_folder(tmp_path: Path) -> None:
    for name in (".writing-model", ".replaced-model"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, leftover="x")
    (tmp_path / "model").mkdir()
    with whole_folder(tmp_path / "model") as temporary:
        fill(temporary, a="new")
    assert content(tmp_path) == {"model/a": "new"}


def test_folder_never_holds_half_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deletion takes time: a kill within it must not leave a part under the final name."""
    path, remove = tmp_path / "model", shutil.rmtree
    path.mkdir()
    fill(path, a="1", b="2")
    removed: list[Path] = []

    def remove_by_and_by(folder: Path, **options: Any) -> None:
        removed.append(Path(folder))
        for file in Path(folder).rglob("*"):
            assert not path.exists() or content(path) in ({"a": "1", "b": "2"}, {"a": "3"})
            file.unlink()
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", remove_by_and_by)
    with whole_folder(path) as temporary:
        fill(temporary, a="3")
    assert content(tmp_path) == {"model/a": "3"}
    assert removed and path not in removed


# --- a disk that cannot take more ------------------------------------------------------------------------------------


def torch_save(path: Path) -> None:
    with whole_file(path) as temporary:
        torch.save({"x": torch.zeros(100_000)}, temporary)


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_text(path, "new"),
    "table": lambda path: write_table(path, pa.table({"x": [1]})),
    "torch": torch_save,
}


@needs_full_disk
@pytest.mark.parametrize("kind", WRITERS)
def test_full_disk_is_a_run_error_and_leaves_the_old_file(kind: str, tmp_path: Path) -> None:
    """The temporary file is a link to a device that is always full, so that the system itself refuses."""
    path = tmp_path / "a.bin"
    path.write_text("old")
    (tmp_path / ".writing-a.bin").symlink_to(FULL_DISK)
    with pytest.raises(RunError, match=r"the disk is full: .*a\.bin was not written.*start the same command again"):
        WRITERS[kind](path)
    assert content(tmp_path) == {"a.bin": "old"}
    assert FULL_DISK.is_char_device()


@needs_full_disk
def test_full_disk_while_a_folder_is_written(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    fill(tmp_path / "model", a="old")
    with pytest.raises(RunError, match="the disk is full"), whole_folder(tmp_path / "model") as temporary:
        (temporary / "a").symlink_to(FULL_DISK)
        (temporary / "a").write_text("new")
    assert content(tmp_path) == {"model/a": "old"}


@needs_full_disk
def test_full_disk_while_a_log_grows(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to(FULL_DISK)
    with pytest.raises(RunError, match=r"the disk is full: .*log\.jsonl"):
        JsonLines(tmp_path / "log.jsonl").append({"a": 1})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_is_full_only_when_flushed(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "old")

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="the disk is full"):
        write_text(tmp_path / "a.txt", "new")
    with pytest.raises(RunError, match="the disk is full"), whole_folder(tmp_path / "model") as temporary:
        fill(temporary, a="new")
    assert content(tmp_path) == {"a.txt": "old"}


def test_error_of_a_library_that_hides_the_number(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the disk is full"), files.disk_errors(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), files.disk_errors(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(KeyError), files.disk_errors(tmp_path):
        raise KeyError("x")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="the system has no /sys")
def test_folder_one_may_not_write_to() -> None:
    """Not even the superuser may: /sys is no ordinary file system."""
    for path in (Path("/sys/adaptpo/a.txt"), Path("/sys/adaptpo.txt")):
        with pytest.raises(RunError, match=r"cannot write .*; choose an output_dir you may write to"):
            write_text(path, "x")
    for folder in (Path("/sys"), Path("/sys/adaptpo")):
        with pytest.raises(RunError, match=r"cannot use the folder .*; choose another output_dir"):
            RunDirectory(folder)


# --- logs ------------------------------------------------------------------------------------------------------------

RECORDS = [{"a": 1}, {"text": "naïve ❤ \n\u2028 line"}, {"b": [1.5, None]}]


def test_log_keeps_records_in_order(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    assert log.read() == []
    log.append(RECORDS[0])
    log.append(*RECORDS[1:])
    log.append()
    assert log.read() == RECORDS


@pytest.mark.parametrize("block", [3, 2**16])
def test_log_survives_a_kill_at_any_byte(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line that ends before the cut stays; a torn one goes, also where it is torn inside a character."""
    monkeypatch.setattr(files, "BLOCK", block)
    log = JsonLines(tmp_path / "log.jsonl")
    log.append(*RECORDS)
    whole = log.path.read_bytes()
    assert len(whole) > len(whole.decode())
    for size in range(len(whole) + 1):
        complete = RECORDS[: whole[:size].count(b"\n")]
        log.path.write_bytes(whole[:size])
        assert log.read() == complete
        log.append({"c": 3})
        assert log.read() == [*complete, {"c": 3}]
        log.path.write_bytes(whole[:size])
        log.discard(lambda record: "a" in record)
        assert log.read() == complete[1:]
        assert log.path.read_bytes().count(b"\n") == len(complete[1:])


def test_discard_takes_records_back(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    log.discard(lambda record: True)
    assert not log.path.exists()
    log.append(*({"n": n} for n in range(5)))
    log.discard(lambda record: record["n"] % 2 == 0)
    assert log.read() == [{"n": 1}, {"n": 3}]


# --- phases ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


def test_phase_is_done_once_and_keeps_its_summary(path: Path) -> None:
    calls: list[int] = []

    def work() -> dict[str, Any]:
        calls.append(1)
        return {"prompts": 3}

    for _ in range(3):
        with open_run(path) as run:
            facts = run.phase("data", work)
            assert run.done("data") and not run.done("train")
            assert (facts["done"], facts["prompts"], facts["attempts"]) == (True, 3, 1)
            assert facts["seconds"] >= 0
    assert calls == [1]


def test_attempts_are_counted_and_a_failed_phase_is_not_done(path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise ZeroDivisionError

    for attempt in (1, 2):
        with pytest.raises(ZeroDivisionError), open_run(path) as run:
            run.phase("data", fail)
        with open_run(path) as run:
            assert not run.done("data") and run.state["phases"]["data"]["attempts"] == attempt
    with open_run(path) as run:
        assert run.phase("data", dict)["attempts"] == 3


def test_phase_is_recorded_after_its_work(path: Path) -> None:
    with open_run(path) as run:
        run.phase("data", lambda: {"done_meanwhile": run.done("data")})
        assert run.state["phases"]["data"]["done_meanwhile"] is False


# --- shards ----------------------------------------------------------------------------------------------------------


class Doubler:
    """Work on a shard; fails at the given call."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.seen: list[list[int]] = []
        self.fails_at = fails_at

    def __call__(self, shard: Any) -> pa.Table:
        if len(self.seen) == self.fails_at:
            raise ZeroDivisionError
        self.seen.append(list(shard))
        return pa.table({"x": [2 * item for item in shard]})


def shard_files(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (path / "scores").iterdir()}


def test_shards_have_a_fixed_composition_and_are_skipped_when_present(path: Path) -> None:
    items, failing, resumed, idle = list(range(10)), Doubler(fails_at=2), Doubler(), Doubler()
    with open_run(path) as run:
        with pytest.raises(ZeroDivisionError):
            run.shards("scores", items, 4, failing, show_progress=False)
        assert failing.seen == [[0, 1, 2, 3], [4, 5, 6, 7]]
        before = shard_files(path)
        assert sorted(before) == ["00000.parquet", "00001.parquet"]
        run.shards("scores", items, 4, resumed, show_progress=False)
        assert resumed.seen == [[8, 9]]
        run.shards("scores", items, 4, idle, show_progress=False)
        assert idle.seen == []
        assert before.items() <= shard_files(path).items()
        assert [row["x"] for row in run.read_shards("scores")] == [2 * item for item in items]


def test_a_lost_shard_is_computed_again_from_the_same_items(path: Path) -> None:
    with open_run(path) as run:
        run.shards("scores", list(range(10)), 4, Doubler(), show_progress=False)
        (path / "scores" / "00001.parquet").unlink()
        again = Doubler()
        run.shards("scores", list(range(10)), 4, again, show_progress=False)
        assert again.seen == [[4, 5, 6, 7]]


def test_half_written_shards_are_not_read(path: Path) -> None:
    with open_run(path) as run:
        run.shards("scores", [1, 2, 3], 2, Doubler(), show_progress=False)
        (path / "scores" / ".writing-00002.parquet").write_bytes(b"PAR1")
        assert [row["x"] for row in run.read_shards("scores", ["x"])] == [2, 4, 6]


def test_no_items_no_shards(path: Path) -> None:
    with open_run(path) as run:
        run.shards("scores", [], 4, Doubler(), show_progress=False)
        assert list(run.read_shards("scores")) == []


# --- metrics and dropped rows ----------------------------------------------------------------------------------------


def test_metrics_after_a_step_are_taken_back(path: Path) -> None:
    with open_run(path) as run:
        for step in (1, 2, 3):
            run.log("train", {"loss": 1 / step}, iteration=0, step=step)
        run.log("train", {"runtime": 1.0}, iteration=0)
        run.log("evaluate", {"reward": 1.0})
        run.forget_after("train", 2)
        kept = [(r["phase"], r["iteration"], r["step"]) for r in run.metrics.read()]
        assert kept == [("train", 0, 1), ("train", 0, 2), ("train", 0, None), ("evaluate", None, None)]
        run.forget_after("train", 0)
        assert [r["phase"] for r in run.metrics.read()] == ["evaluate"]


def test_repeated_phase_replaces_what_it_dropped(path: Path) -> None:
    with open_run(path) as run:
        run.drop("data", [{"row": 1, "reason": "empty"}, {"row": 2, "reason": "empty"}])
        run.drop("pair", [{"row": 9, "reason": "equal"}])
        run.drop("data", [{"row": 2, "reason": "long"}])
        assert run.dropped.read() == [
            {"phase": "pair", "row": 9, "reason": "equal"},
            {"phase": "data", "row": 2, "reason": "long"},
        ]


# --- the lock --------------------------------------------------------------------------------------------------------

HOLD_THE_LOCK = """
import sys
from pathlib import Path
from adaptpo.run.directory import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_second_process_is_refused_until_the_first_is_dead(path: Path) -> None:
    """Killed, not closed: the lock must go with the process."""
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout.readline() == "locked\n"
            for _ in range(2):  # Being refused must not spoil the file that names the owner.
                with pytest.raises(RunError, match=f"process {owner.pid} is working on {path}; wait for it"):
                    RunDirectory(path)
        finally:
            owner.kill()
            owner.wait()
    with open_run(path):
        assert (path / "lock").read_text() == f"process {os.getpid()}"


def test_lock_goes_with_the_run(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_run(path):
        with pytest.raises(RunError, match=f"process {os.getpid()} is working on"):
            RunDirectory(path)
        raise ZeroDivisionError
    with open_run(path):
        pass


@pytest.mark.parametrize("below", ["", "further"])
def test_output_dir_that_is_a_file(below: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match=r"cannot use the folder .*taken.*; choose another output_dir"):
        RunDirectory(tmp_path / "taken" / below)


# --- whose run it is -------------------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "adaptpo": "0.1.0",
    "output_dir": "runs/one",
    "model": "models/policy",
    "reward": "models/reward",
    "data": {"path": "pairs.jsonl", "split": "train"},
    "eval_data": {"path": "held-out.jsonl", "max_prompts": 8},
    "training": {"learning_rate": 1e-6, "report_to": "none"},
    "peft": None,
    "show_progress": True,
    "seed": 0,
    "inputs": {"model": "aa", "data": "bb"},
}


def changed(**changes: Any) -> dict[str, Any]:
    """The config with other values; `data__path` is `data.path`."""
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (config[section] if section else config)[name] = value
    return config


def claim(path: Path, config: dict[str, Any]) -> bool:
    with open_run(path) as run:
        resumed = run.claim(config)
        run.phase("data", dict)
    return resumed


def test_same_config_resumes(path: Path) -> None:
    assert not claim(path, CONFIG)
    stored = (path / "config.yaml").read_text()
    assert yaml.safe_load(stored) == CONFIG
    assert claim(path, CONFIG)
    assert (path / "config.yaml").read_text() == stored


@pytest.mark.parametrize(
    "moved",
    [
        {
            "output_dir": "elsewhere",
            "model": "moved",
            "reward": "moved",
            "data__path": "moved",
            "eval_data__path": "moved",
        },
        {"show_progress": False, "adaptpo": "0.2.0"},
        {"training__report_to": "wandb", "training__logging_steps": 10, "training__save_steps": 3},
    ],
    ids=["places", "what is shown", "logging"],
)
def test_places_and_what_is_shown_may_change(moved: dict[str, Any], path: Path) -> None:
    claim(path, CONFIG)
    assert claim(path, changed(**moved))


@pytest.mark.parametrize("swapped", [False, True])
def test_logging_may_change_where_training_was_empty(swapped: bool, path: Path) -> None:
    configs = [changed(training={}), changed(training={"report_to": "wandb"})]
    first, second = configs[::-1] if swapped else configs
    claim(path, first)
    assert claim(path, second)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens_per_batch": 4096},
        {"generation": {"memory_gb": 2.0}},
        {"training__gradient_checkpointing": True},
        {"training__activation_checkpointing_kwargs": {"use_reentrant": False}},
        {"training__dataloader_num_workers": 2, "reward_training": {"ddp_timeout": 60}},
    ],
    ids=str,
)
def test_what_only_takes_less_memory_may_change_and_is_told(
    changes: dict[str, Any], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The remedies of a full memory. Runs do not share an opening across them."""
    claim(path, CONFIG)
    now = flatten(changed(**changes))
    told = {key: value for key, value in now.items() if flatten(CONFIG).get(key) != value}
    assert claim(path, changed(**changes)) and told
    assert read_state(path)["changed"] == told
    said = capsys.readouterr().err
    assert all(f"{key} is {value} from here on" in " ".join(said.split()) for key, value in told.items())
    assert claim(path, CONFIG) and read_state(path)["changed"] == {}


def test_an_empty_section_may_get_what_takes_less_memory(path: Path) -> None:
    claim(path, changed(reward="train", reward_training={}))
    assert claim(path, changed(reward="train", reward_training={"activation_checkpointing": True}))


def test_with_dropout_other_passes_are_another_run(path: Path) -> None:
    """They draw other dropout."""
    claim(path, changed(disable_dropout=False, max_tokens_per_batch=8192))
    with pytest.raises(RunError, match="max_tokens_per_batch: 8192 in the run, 4096 now"):
        claim(path, changed(disable_dropout=False, max_tokens_per_batch=4096))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": 1}, "  seed: 0 in the run, 1 now"),
        ({"training__learning_rate": 2e-6}, "  training.learning_rate: 1e-06 in the run, 2e-06 now"),
        ({"training__max_steps": 3}, "  training.max_steps: None in the run, 3 now"),
        ({"training": {}}, "  training.learning_rate: 1e-06 in the run, None now"),
        ({"peft": {}}, "  peft: None in the run, {} now"),
        ({"peft": {"r": 8}}, "  peft.r: None in the run, 8 now"),
        ({"data__split": "test"}, "  data.split: 'train' in the run, 'test' now"),
        ({"inputs__data": "cc"}, "  inputs.data: 'bb' in the run, 'cc' now"),
    ],
    ids=str,
)
def test_another_config_is_refused_with_both_values(changes: dict[str, Any], line: str, path: Path) -> None:
    claim(path, CONFIG)
    stored = (path / "config.yaml").read_text()
    with pytest.raises(RunError) as caught:
        claim(path, changed(**changes))
    first, *lines, remedy = str(caught.value).split("\n")
    assert first == f"{path} holds a different run:"
    assert lines == [line]
    assert "resume it, or choose another output_dir" in remedy
    assert (path / "config.yaml").read_text() == stored


def test_every_difference_is_listed_up_to_a_dozen(path: Path) -> None:
    claim(path, CONFIG)
    with pytest.raises(RunError) as caught:
        claim(path, changed(seed=1, data__split="test"))
    assert "\n  data.split: 'train' in the run, 'test' now\n  seed: 0 in the run, 1 now\n" in str(caught.value)
    with pytest.raises(RunError) as caught:
        claim(path, changed(**{f"training__field_{n}": n for n in range(20)}))
    assert str(caught.value).count(" in the run, ") == 12 and "\n  ...\n" in str(caught.value)


def test_run_that_has_done_nothing_yet_may_change(path: Path) -> None:
    """A recipe or a data file that was wrong is mended, and the same command started again."""
    with pytest.raises(ZeroDivisionError), open_run(path) as run:
        run.claim(CONFIG)
        write_json(path / "snapshots" / "start.json", {})
        run.phase("data", lambda: {"never": 1 / 0})
    assert not claim(path, changed(seed=1))
    assert not (path / "snapshots").exists()
    with open_run(path) as run:
        assert run.state["phases"]["data"]["attempts"] == 2
    with pytest.raises(RunError, match="seed: 1 in the run, 0 now"):
        claim(path, CONFIG)


def test_shards_of_an_unfinished_phase_are_work_done(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_run(path) as run:
        run.claim(CONFIG)
        run.phase("scores", lambda: run.shards("scores", [1, 2, 3], 2, Doubler(fails_at=1), show_progress=False))
    with pytest.raises(RunError, match="seed: 0 in the run, 1 now"):
        claim(path, changed(seed=1))
    assert claim(path, CONFIG)


def test_folder_that_holds_something_else_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    for name in "dcba":
        (path / f"{name}.txt").write_text("mine")
    with pytest.raises(RunError, match=r"not empty and holds no run \(found a\.txt, b\.txt, c\.txt\); choose another"):
        claim(path, CONFIG)
    assert not (path / "config.yaml").exists() and (path / "a.txt").read_text() == "mine"


def test_folder_with_inputs_alone_is_free(path: Path) -> None:
    """A model given in memory is saved there before the run is claimed."""
    with whole_folder(path / "inputs" / "model") as temporary:
        fill(temporary, weights="x")
    assert not claim(path, CONFIG)
    assert (path / "inputs" / "model" / "weights").exists()
