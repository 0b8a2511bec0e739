"""Whatever is damaged in a run is found before it is used, and made again or named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adaptpo.cli import main
from adaptpo.cli.verify import verify
from adaptpo.errors import RunError
from adaptpo.run.checked_files import DamageError
from adaptpo.run.damage import Damage, decide, find_damage, mend
from adaptpo.run.directory import open_run
from adaptpo.run.files import JsonLines
from adaptpo.run.manifest import NEVER_READ, sealed, unsealed
from adaptpo.run.state import read_state, write_state
from adaptpo.training.checkpoints import Logs, damage_of, last_complete
from adaptpo.training.preference_trainer import PreferenceTrainer
from adaptpo.training.prompt_group_trainer import StepHooks
from tests.damage import DAMAGES, damage
from tests.runs import assert_same_run, start
from tests.tiny import save_policy, vowel_reward

OWN = ("config.yaml", "state.json", "manifest.jsonl", "metrics.jsonl", "dropped.jsonl")
NOT_CHECKED = ("lock", "repairs.jsonl")
"""Files that decide nothing."""


def arguments(policy: str, out: Path, **more: Any) -> dict[str, Any]:
    return {"model": policy, "out": out, "reward": vowel_reward, "rows": 18, "num_iterations": 1, **more}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def finished(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    start(**arguments(policy, out))
    return out


@pytest.fixture(scope="module")
def another(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("another") / "run"
    start(**arguments(policy, out, seed=1))
    return out


@pytest.fixture(scope="module")
def in_training(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after it had saved a checkpoint."""
    out, save = tmp_path_factory.mktemp("training") / "run", StepHooks.on_save

    def last_save(self: StepHooks, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        save(self, args, state, *rest, **more)
        if "iterations/0" in args.output_dir:
            raise InterruptedError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(StepHooks, "on_save", last_save)
        start(**arguments(policy, out))
    return out


@pytest.fixture
def out(finished: Path) -> Iterator[Path]:
    """The finished run, to be damaged: its folder is as before afterwards."""
    with as_before(finished):
        yield finished


@pytest.fixture
def begun(in_training: Path) -> Iterator[Path]:
    with as_before(in_training):
        yield in_training


@contextmanager
def as_before(folder: Path) -> Iterator[None]:
    saved = folder.with_name("saved")
    shutil.copytree(folder, saved)
    yield
    shutil.rmtree(folder)
    saved.rename(folder)


def files(out: Path) -> list[str]:
    found = (p.relative_to(out).as_posix() for p in sorted(out.rglob("*")) if p.is_file() and p.stat().st_size)
    return [name for name in found if name not in NOT_CHECKED and Path(name).name not in NEVER_READ]


def damaged(out: Path) -> set[str]:
    """The files that `adaptpo verify` names; a damaged state is the whole message."""
    try:
        return {fault.split()[0] if name.phase else name.name for name in verify(out) for fault in name.faults}
    except RunError as error:
        assert "adaptpo repair" in str(error)
        return {"state.json"}


def test_every_file_of_a_finished_run_is_checked(finished: Path) -> None:
    listed = {JsonLines(finished / "manifest.jsonl").read()[i]["file"] for i in range(3)}
    assert listed <= set(files(finished))
    with open_run(finished) as run:
        run.manifest.refresh()
        assert set(files(finished)) == set(run.manifest.places) | set(OWN)
    assert damaged(finished) == set()


@pytest.mark.parametrize("kind", DAMAGES)
def test_verify_names_the_damaged_file(kind: str, finished: Path, another: Path) -> None:
    """Each file of the run in turn: that one is named, and no other."""
    changed = 0
    for name in files(finished):
        path = finished / name
        before = path.read_bytes()
        if not damage(kind, path, another / name):
            continue
        changed += 1
        foreign_state = name == "state.json" and kind == "another run"
        expected = {"config.yaml" if foreign_state else name}
        assert expected <= damaged(finished), name
        if name not in OWN:
            assert damaged(finished) == expected, name
        path.write_bytes(before)
    assert changed > 25
    assert damaged(finished) == set()


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_file_is_not_read(kind: str, finished: Path, another: Path) -> None:
    """By the process that read it before, undamaged, as well."""
    with open_run(finished) as run:
        for name in (name for name in files(finished) if name not in OWN):
            path = run.path / name
            assert run.checked(path) == path
            before = path.read_bytes()
            if damage(kind, path, another / name):
                with pytest.raises(DamageError, match=r"Start the same command again.*adaptpo verify"):
                    run.checked(path)
                assert not run.intact(path)
            path.write_bytes(before)


def test_shards_of_another_number_or_length_are_not_read(out: Path) -> None:
    with open_run(out) as run:
        count = len(list(run.read_shards("reference")))
        shutil.copyfile(out / "reference/00000.parquet", out / "reference/00009.parquet")
        assert len(list(run.read_shards("reference"))) == count
        (out / "reference/00001.parquet").unlink()
        with pytest.raises(DamageError, match=r"reference/00001\.parquet is missing"):
            list(run.read_shards("reference"))


# --- what follows -----------------------------------------------------------------------------------------------------


def phases(*names: str, running: str | None = None) -> dict[str, Any]:
    facts = {name: {"done": True, "artefacts": {}} for name in names}
    return facts | ({running: {"done": False}} if running else {})


IN_TWO = ("data", "evaluate/initial", "iterations/0/score", "iterations/0/train", "iterations/1/score")


@pytest.mark.parametrize(
    ("damaged", "repeatable", "again", "after", "left"),
    [
        ("data", False, ["data"], [], 0),
        ("iterations/0/train", True, ["iterations/0/train"], [], 0),
        ("iterations/0/train", False, ["iterations/0/train"], ["iterations/1/score", "iterations/1/train"], 0),
        ("iterations/1/score", False, ["iterations/1/score"], ["iterations/1/train"], 0),
        ("iterations/0/score", True, ["iterations/0/score"], [], 0),
        ("iterations/0/score", False, [], [], 1),
        ("evaluate/initial", False, ["evaluate/initial"], [], 0),
    ],
)
def test_what_follows_from_damage(damaged: str, repeatable: bool, again: list, after: list, left: int) -> None:
    """On a machine that is not repeatable, what was read must not change; what nobody reads any more may stay."""
    found = [Damage("x", "is missing", damaged, "x")]
    decision = decide(phases(*IN_TWO, running="iterations/1/train"), found, repeatable)
    assert (decision.again, decision.after, len(decision.left)) == (again, after, left)


WEIGHTS = "iterations/0/checkpoint/model.safetensors"


@pytest.mark.parametrize(
    ("repeatable", "later", "again", "left"),
    [
        (False, "iterations/1/train", [], 1),
        (True, "iterations/1/train", ["iterations/0/train"], 0),
        (False, "iterations/1/score", ["iterations/0/train"], 0),
    ],
)
def test_weights_that_the_next_iteration_was_trained_from_stop_no_run(
    repeatable: bool, later: str, again: list, left: int
) -> None:
    found = [Damage(WEIGHTS, "is missing", "iterations/0/train", "iterations/0/checkpoint")]
    decision = decide(phases(*IN_TWO, later), found, repeatable)
    assert (decision.again, len(decision.left)) == (again, left)


@pytest.mark.parametrize(("name", "left"), [("config.json", 1), ("reference.pt", 1), ("method.pt", 0)])
def test_of_an_older_checkpoint_only_the_state_of_the_method_is_read(name: str, left: int) -> None:
    file = f"iterations/0/checkpoint/{name}"
    found = [Damage(file, "is missing", "iterations/0/train", "iterations/0/checkpoint")]
    assert len(decide(phases(*IN_TWO, "iterations/1/train"), found, repeatable=False).left) == left


def test_weights_that_no_phase_loads_are_compared_at_a_start(tmp_path: Path) -> None:
    """A run that resumes ends without damage that nobody was told of."""
    with open_run(tmp_path / "run") as run:

        def write() -> dict[str, Any]:
            (run.path / WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
            (run.path / WEIGHTS).write_text("weights")
            run.keep(run.path / "iterations/0/checkpoint")
            return {}

        run.phase("iterations/0/train", write)
        run.phase("iterations/1/train", dict)
        (run.path / WEIGHTS).write_text("weightz")
        mend(run, repeatable=True)
        assert not run.done("iterations/0/train") and run.done("iterations/1/train")


def test_damaged_metrics_stop_no_run() -> None:
    found = [Damage("metrics.jsonl", "has 1 of the 2 records of data", "data")]
    decision = decide(phases(*IN_TWO), found, repeatable=False)
    assert (decision.again, decision.after, decision.left) == ([], [], found)


REPAIRED = [
    *("final/model.safetensors", "final/config.json", "data/offline.arrow", "reference/00001.parquet"),
    *("warmup/checkpoint/model.safetensors", "iterations/0/selection.parquet", "iterations/0/responses/00000.parquet"),
    *("iterations/0/pairs.parquet", "iterations/0/checkpoint/method.pt", "evaluation/initial.parquet"),
    *("snapshots/start.json", "manifest.jsonl", "config.yaml", "dropped.jsonl"),
]


def test_damage_everywhere_is_undone_with_the_same_result(
    policy: str, out: Path, another: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One start makes again whatever was damaged in a finished run, and says so."""
    before = {name: (out / name).read_bytes() for name in files(out) if name not in OWN}
    for name, kind in zip(REPAIRED, [*DAMAGES, *DAMAGES, *DAMAGES], strict=False):
        damage(kind, out / name, another / name)
    shutil.copytree(out, out.with_name("copy"))
    start(**arguments(policy, out))
    said = capsys.readouterr().out
    assert "iterations/0/generate is made again" in said and "final is made again" in said
    assert damaged(out) == set()
    shutil.rmtree(out / "final-damaged", ignore_errors=True)
    assert {name: (out / name).read_bytes() for name in before if name != "warnings.json"} == {
        name: data for name, data in before.items() if name != "warnings.json"
    }


def test_finished_run_without_its_result_makes_it_again(policy: str, out: Path, finished: Path) -> None:
    before = (out / "final/model.safetensors").read_bytes()
    shutil.rmtree(out / "final")
    start(**arguments(policy, out))
    assert (out / "final/model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["snapshots/iteration-0.json", "warnings.json"])
@pytest.mark.parametrize("kind", ["deleted", "half"])
def test_records_of_a_finished_run_are_written_again(
    kind: str, name: str, policy: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (out / name).read_bytes()
    damage(kind, out / name, out / name)
    start(**arguments(policy, out))
    assert f"{name} " in (said := capsys.readouterr().out) and "written again" in said
    assert (out / name).read_bytes() == before
    assert damaged(out) == set()


@pytest.mark.parametrize("name", ["optimizer.pt", "method.pt", "model.safetensors", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("kind", ["deleted", "one bit"])
def test_damaged_checkpoint_within_training_is_not_resumed(kind: str, name: str, begun: Path) -> None:
    (checkpoint,) = begun.glob("iterations/0/training/checkpoint-*")
    logs = Logs(begun / "metrics.jsonl", "iterations/0/train", begun / "iterations/0/pair_weights.jsonl")
    assert damage_of(checkpoint, logs) is None
    damage(kind, checkpoint / name, checkpoint / name)
    told: list[str] = []
    assert last_complete(checkpoint.parent, logs, lambda path, fault: told.append(path.name)) is None
    assert told == [name] and not checkpoint.exists()


@pytest.mark.parametrize("log", ["metrics.jsonl", "iterations/0/pair_weights.jsonl"])
def test_checkpoint_vouches_for_the_logs(log: str, begun: Path) -> None:
    (checkpoint,) = begun.glob("iterations/0/training/checkpoint-*")
    logs = Logs(begun / "metrics.jsonl", "iterations/0/train", begun / "iterations/0/pair_weights.jsonl")
    JsonLines(begun / log).append({"phase": "iterations/0/train", "step": 3})
    assert damage_of(checkpoint, logs) is None
    JsonLines(begun / log).discard(lambda record: record.get("step") == 2)
    found = damage_of(checkpoint, logs)
    assert found is not None and found[0] == begun / log


def test_training_that_starts_again_does_not_read_its_damaged_weights(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "pair_weights.jsonl")
    trainer: Any = SimpleNamespace(pair_log=log, ranks=SimpleNamespace(is_first=True))
    log.path.write_bytes(b'{"\xf3tep": 1}\n')
    with pytest.raises(RunError, match="damaged record"):
        PreferenceTrainer.forget_after(trainer, 1)
    PreferenceTrainer.forget_after(trainer, 0)
    assert log.read() == []


def test_run_with_a_damaged_checkpoint_ends_like_any_other(policy: str, begun: Path, finished: Path) -> None:
    (checkpoint,) = begun.glob("iterations/0/training/checkpoint-*")
    (checkpoint / "optimizer.pt").unlink()
    start(**arguments(policy, begun))
    assert_same_run(finished, begun)
    assert JsonLines(begun / "repairs.jsonl").read()[0]["file"].endswith("optimizer.pt")


def test_where_the_result_cannot_be_had_again_nothing_is_lost_unasked(begun: Path, capsys: Any) -> None:
    """As on an accelerator: the start is refused, `repair` names the phases, `--apply` removes them and no others."""
    damage("one bit", begun / "iterations/0/scores/00000.parquet", begun)
    with open_run(begun) as run, pytest.raises(RunError, match=r"(?s)scores/00000\.parquet .*repair .* --apply"):
        mend(run, repeatable=False)
    main_exits(["repair", str(begun)], 0)
    assert "to be made again: iterations/0/score, iterations/0/select" in capsys.readouterr().out
    main_exits(["repair", str(begun), "--apply"], 0)
    left = read_state(begun)["phases"]
    assert [name for name, facts in left.items() if not facts["done"]] == [
        f"iterations/0/{name}" for name in ("score", "select", "generate", "annotate", "pair", "reference", "train")
    ]
    assert not list((begun / "iterations/0").rglob("*.parquet")) or [
        path.name for path in (begun / "iterations/0").rglob("*.parquet")
    ] == ["00001.parquet", "00002.parquet"]
    main_exits(["verify", str(begun)], 0)
    with open_run(begun) as run:
        mend(run, repeatable=False)


def main_exits(arguments: list[str], status: int) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == status


def test_verify_exits_with_1_and_says_which(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_exits(["verify", str(out)], 0)
    assert "Nothing is damaged." in capsys.readouterr().out
    damage("half", out / "final/model.safetensors", out)
    main_exits(["verify", str(out)], 1)
    said = capsys.readouterr().out
    assert "damaged  final" in said and "bytes were written" not in said and "1 of" in said
    main_exits(["verify", str(out), "--json"], 1)
    rows = json.loads(capsys.readouterr().out)
    assert [row["artefact"] for row in rows if row["faults"]] == ["final"]


def test_phase_that_comes_out_differently_is_refused(tmp_path: Path) -> None:
    """What later phases have read is not replaced by something else."""
    with open_run(tmp_path / "run") as run:

        def write(text: str) -> dict[str, Any]:
            (run.path / "a.txt").write_text(text)
            run.keep(run.path / "a.txt")
            return {}

        run.phase("one", lambda: write("first"))
        run.phase("two", dict)
        (run.path / "a.txt").write_text("damaged")
        mend(run, repeatable=True)
        assert not run.done("one") and run.done("two")
        with pytest.raises(RunError, match=r"one was made again and differs from what two have read.*--apply"):
            run.phase("one", lambda: write("second"))
    main_exits(["repair", str(run.path), "--apply"], 0)
    with open_run(run.path) as run:
        assert run.done("one") and not run.done("two")
        run.phase("two", dict)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_state_is_refused_and_can_be_emptied(kind: str, out: Path, another: Path) -> None:
    damage(kind, out / "state.json", another / "state.json")
    if kind == "another run":
        with open_run(out) as run:
            assert find_damage(run) or run.config_fault()
        return
    for command in (["verify"], ["repair"]):
        main_exits([*command, str(out)], 2)
    main_exits(["repair", str(out), "--apply"], 0)
    assert read_state(out)["phases"] == {}


def test_run_of_a_version_without_checksums_resumes(
    policy: str, begun: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = read_state(begun)
    kept = {name: {k: v for k, v in facts.items() if k != "artefacts"} for name, facts in state["phases"].items()}
    (begun / "state.json").write_text(json.dumps({"phases": kept, "opened": True}))
    (begun / "manifest.jsonl").unlink()
    (checkpoint,) = begun.glob("iterations/0/training/checkpoint-*")
    (checkpoint / "complete.json").unlink()
    (checkpoint / "complete").write_text("")
    start(**arguments(policy, begun))
    assert "an older version of adaptpo wrote" in capsys.readouterr().out
    assert_same_run(finished, begun)


def test_line_of_the_manifest_says_whether_it_is_damaged() -> None:
    line = json.dumps(sealed({"file": "a", "size": 3}))
    assert unsealed(line.encode()) == {"file": "a", "size": 3}
    for place in range(len(line)):
        for bit in range(7):
            changed = bytearray(line.encode())
            changed[place] ^= 1 << bit
            assert unsealed(bytes(changed)) in (None, {"file": "a", "size": 3})


def test_state_is_written_with_its_checksum(tmp_path: Path) -> None:
    state = {"phases": {"data": {"done": True, "artefacts": {}}}, "opened": True}
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    text = (tmp_path / "state.json").read_text()
    (tmp_path / "state.json").write_text(text.replace("true", "false", 1))
    with pytest.raises(RunError, match="does not have the checksum"):
        read_state(tmp_path)
