"""Whoever computes the shards of a run, the run is the same; what workers cannot do is said before, or raised here."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from adaptpo import AlignmentConfig
from adaptpo.config.executor import ExecutorSettings
from adaptpo.config.recipe import Recipe, make_recipe
from adaptpo.data.mixture import Mixture, Source
from adaptpo.data.source import Rows
from adaptpo.distributed.executor import HERE, ThisProcess, executor_of
from adaptpo.distributed.ranks import Ranks
from adaptpo.errors import AnnotationError, ConfigError, GenerationError, RunError
from adaptpo.pipeline import request
from adaptpo.pipeline.context import Context, ModelSlot
from adaptpo.pipeline.preflight import check_executor
from adaptpo.run.directory import RunDirectory, open_run
from adaptpo.run.files import read_rows
from adaptpo.run.identity import refuse_other_run
from tests.ranks import free_port
from tests.runs import assert_same_run, run_in_process, start
from tests.tiny import save_policy, save_reward_model, vowel_reward

engines = pytest.mark.engines
CPU = torch.device("cpu")
RAY: dict[str, Any] = {"kind": "ray", "workers": 2}
VALUES = range(10)
"""Of ten shards."""


def test_threads_finish_what_is_in_progress_before_a_failure_is_raised() -> None:
    """Shard 1 fails while 0 and 2 are computed; 3 never begins."""
    failed, begun, found = threading.Event(), list[int](), dict[int, int]()

    def work(number: int) -> int:
        begun.append(number)
        if number == 1:
            failed.set()
            raise GenerationError("no answer")
        assert failed.wait(20)
        time.sleep(0.05)
        return number * number

    with pytest.raises(GenerationError, match="no answer"):
        found.update(HERE.compute(work, range(5), at_once=3))
    assert sorted(begun) == [0, 1, 2] and found == {0: 0, 2: 4}


def test_threads_yield_results_as_they_finish() -> None:
    others = threading.Event()

    def work(number: int) -> int:
        assert number != 0 or others.wait(20)
        return number * number

    found = []
    for number, result in HERE.compute(work, range(6), at_once=2):
        found.append((number, result))
        if len(found) == 5:
            others.set()
    assert found[-1] == (0, 0) and sorted(found) == [(n, n * n) for n in range(6)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


# --- what a recipe may say -------------------------------------------------------------------------------------------


def config_with(executor: Any) -> AlignmentConfig:
    return AlignmentConfig(output_dir="run", executor=executor)


def test_kind_alone_is_a_section() -> None:
    assert config_with("ray").executor == ExecutorSettings(kind="ray")
    assert config_with("local") == AlignmentConfig(output_dir="run")


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        ("rey", "'executor.kind': Input should be 'local' or 'ray'"),
        ({"kind": "ray", "adress": "auto"}, "unknown key 'executor.adress': did you mean 'address'?"),
        ({"workers": 2}, "workers is read only by executor ray; set kind to ray"),
        ({"kind": "ray", "address": "ray://head:10001"}, "'executor.address': String should match pattern"),
        ({"kind": "ray", "workers": 0}, "'executor.workers': Input should be greater than 0"),
    ],
)
def test_wrong_executor_is_one_message(executor: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config_with(executor)
    assert message in str(raised.value)


def test_executor_can_be_set_key_by_key(tmp_path: Path) -> None:
    values = {"model": "m", "data": "d", "output_dir": "o", "executor": "ray"}
    recipe: Recipe = make_recipe(values, ["executor.address=auto", "executor.workers=3"], tmp_path)
    assert recipe.executor == ExecutorSettings(kind="ray", address="auto", workers=3)


def test_run_goes_on_with_another_executor(tmp_path: Path) -> None:
    stored, wanted = (config_with(kind).model_dump() for kind in ("local", RAY | {"address": "auto"}))
    assert stored != wanted
    refuse_other_run(tmp_path, stored, wanted)


def test_missing_ray_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "adaptpo.distributed.ray_executor", raising=False)
    with pytest.raises(ConfigError, match=r"executor ray needs Ray .*pip install 'adaptpo\[ray\]'"):
        executor_of(ExecutorSettings(kind="ray"))


def context_of(run: RunDirectory, **settings: Any) -> Context:
    config = AlignmentConfig(output_dir=str(run.path), training={"use_cpu": True}, **settings)
    return Context(run, config, method=None, initial="", reward=None, data=Mixture(()))


class Idle(ThisProcess):
    """An executor with nothing to do."""

    def compute(self, *_: Any) -> Any:
        raise AssertionError("a shard was given to a worker")


def test_a_server_is_asked_by_this_process_and_not_by_workers(tmp_path: Path) -> None:
    """Each worker would start its own."""
    with open_run(tmp_path, executor=Idle()) as run:
        run.shards("here", range(3), 2, lambda shard: pa.table({"item": [*shard]}), by_first=True)
        assert [row["item"] for row in run.read_shards("here")] == [0, 1, 2]


class OtherRank(Ranks):
    """Rank 1 of two, to which rank 0 has told that two shards are missing."""

    def on_first(self, work: Any) -> Any:
        return [0, 1]

    def wait(self) -> None:
        pass


def test_a_server_is_asked_by_the_first_rank_alone(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.ranks = OtherRank(1, 2)
        run.shards("here", range(3), 2, lambda shard: pa.table({"item": [*shard]}), by_first=True)
        assert not (tmp_path / "here").exists()
        run.ranks = Ranks()


def test_several_processes_have_no_workers(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.ranks = Ranks(0, 2)
        with pytest.raises(ConfigError, match="executor ray needs a single process"):
            check_executor(context_of(run, executor="ray"))


# --- what leaves the process -----------------------------------------------------------------------------------------


class Packed(ThisProcess):
    """Computes what a worker of Ray would get, in this process: pickled and unpickled, and without its models."""

    def start(self, device: torch.device, release: Callable[[], None]) -> None:
        self.release = release
        self.sizes: list[int] = []

    def compute(
        self, work: Callable[[int], Any], numbers: Sequence[int], at_once: int = 1
    ) -> Iterator[tuple[int, Any]]:
        from adaptpo.distributed.ray_executor import pack, unpack

        self.release()
        packed = pack(work)
        self.sizes.append(len(packed))
        return super().compute(unpack(packed), numbers)


@pytest.mark.parametrize("method", ["ppo", "two_stage"])
def test_phases_need_nothing_of_this_process(
    method: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even weights: no parcel is as large as the smallest model's."""
    pytest.importorskip("ray")
    arguments: dict[str, Any] = {"model": policy, "method": method, "reward": vowel_reward, "rows": 8}
    arguments |= {"held_out": 0, "num_iterations": 1, "warmup_epochs": 0, "shard_size": 4}
    start(out=tmp_path / "here", **arguments)
    packed = Packed()
    monkeypatch.setattr(request, "executor_of", lambda settings: packed)
    start(out=tmp_path / "packed", **arguments)
    assert_same_run(tmp_path / "here", tmp_path / "packed")
    assert len(packed.sizes) >= 4
    assert max(packed.sizes) < (Path(policy) / "model.safetensors").stat().st_size / 2


def test_context_leaves_models_and_data_behind(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.claim({})
        context = context_of(run)
        context.slot = ModelSlot(("policy", "x"), torch.nn.Linear(2, 2))
        context.data = Mixture([Source(Rows("a generator", lambda: iter([{}])))])
        state = context.__getstate__()
    assert state["slot"] == ModelSlot() and state["data"] == Mixture(())
    assert state["config"] is context.config and context.slot.key == ("policy", "x")


def test_folder_that_a_machine_does_not_see_is_said(tmp_path: Path) -> None:
    pickle = pytest.importorskip("ray.cloudpickle")
    with open_run(tmp_path / "run") as run:
        run.claim({})
        sent = pickle.dumps(run)
    assert pickle.loads(sent).path == tmp_path / "run"
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(
        RunError, match=r"no run at .*run on .*; output_dir must lie on a file system that all machines"
    ):
        pickle.loads(sent)


def test_executor_ends_its_work_when_a_shard_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the traceback still refers to the generator, as in a notebook."""
    ended = []

    class Workers(ThisProcess):
        def compute(self, *_: Any) -> Generator[tuple[int, Any]]:
            try:
                yield 0, pa.table({})
            finally:
                ended.append(True)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with open_run(tmp_path, executor=Workers()) as run:
        run.claim({})
        monkeypatch.setattr(run, "write_shard", full)
        with pytest.raises(OSError, match="No space"):
            run.shards("shards", VALUES, 1, lambda _: pa.table({}), show_progress=False)
        assert ended


# --- two workers of Ray ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Started here, as a notebook may have done; executors join it and leave it."""
    ray = pytest.importorskip("ray")
    from adaptpo.distributed.quiet import turn_off_telemetry

    turn_off_telemetry()
    ray.init(address="local", num_cpus=2, object_store_memory=10**8, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@contextmanager
def run_with_ray(folder: Path, workers: int | None = 2) -> Iterator[RunDirectory]:
    executor = executor_of(ExecutorSettings(kind="ray", workers=workers))
    with open_run(folder, executor=executor) as run:
        run.claim({})
        executor.start(CPU, lambda: None)
        yield run


def compute(folder: Path, work: Callable[[Sequence[int]], pa.Table], workers: int | None = 2) -> list[int]:
    """Ten shards of one value each by workers of Ray; what is then on disk."""
    with run_with_ray(folder, workers) as run:
        run.shards("shards", VALUES, 1, work, show_progress=False)
        return [row["value"] for row in run.read_shards("shards")]


def kept(folder: Path) -> list[int]:
    return [row["value"] for path in sorted(folder.glob("shards/*.parquet")) for row in read_rows(path)]


@engines
def test_lost_worker_is_replaced_and_the_rest_computed_once(ray: Any, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()

    def work(shard: Sequence[int]) -> pa.Table:
        (seen / f"{shard[0]}-{os.getpid()}").touch()
        if shard[0] == 4 and len(list(seen.glob("4-*"))) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return pa.table({"value": [10 * value for value in shard]})

    assert compute(tmp_path / "run", work) == [10 * value for value in VALUES]
    assert [len(list(seen.glob(f"{value}-*"))) for value in VALUES] == [2 if value == 4 else 1 for value in VALUES]
    assert str(os.getpid()) not in {path.name.partition("-")[2] for path in seen.iterdir()}
    (tmp_path / "run/shards/00007.parquet").unlink()
    for path in seen.iterdir():
        path.unlink()
    assert compute(tmp_path / "run", work) == [10 * value for value in VALUES]
    assert [path.name.partition("-")[0] for path in seen.iterdir()] == ["7"]
    assert ray.is_initialized()


@engines
def test_shard_that_ends_every_worker_ends_the_run_and_keeps_the_others(ray: Any, tmp_path: Path) -> None:
    def work(shard: Sequence[int]) -> pa.Table:
        if shard[0] == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return pa.table({"value": list(shard)})

    lost = pytest.raises(RunError, match=r"lost a worker 3 times .*worker process has died")
    with run_with_ray(tmp_path) as run, lost:
        run.shards("shards", VALUES, 1, work, show_progress=False)
    assert kept(tmp_path) == list(range(9))


@engines
def test_error_of_a_worker_is_raised_here_as_what_it_is(ray: Any, tmp_path: Path) -> None:
    def work(shard: Sequence[int]) -> pa.Table:
        if shard[0] == 9:
            raise AnnotationError("the judge is out; ask another")
        return pa.table({"value": list(shard)})

    with pytest.raises(AnnotationError, match=r"^the judge is out; ask another$"):
        compute(tmp_path, work)


@engines
def test_nothing_begins_after_an_error(ray: Any, tmp_path: Path) -> None:
    def work(shard: Sequence[int]) -> pa.Table:
        (tmp_path / f"begun-{shard[0]}").touch()
        if shard[0] == 2:
            raise AnnotationError("the judge is out; ask another")
        return pa.table({"value": list(shard)})

    with run_with_ray(tmp_path / "run", workers=1) as run, pytest.raises(AnnotationError):
        run.shards("shards", VALUES, 1, work, show_progress=False)
    assert sorted(path.name for path in tmp_path.glob("begun-*")) == ["begun-0", "begun-1", "begun-2"]
    assert kept(tmp_path / "run") == [0, 1]


@engines
def test_unforeseen_error_of_a_worker_keeps_its_traceback(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(ray.exceptions.RayTaskError, match=r"(?s)test_executor.py.*ZeroDivisionError: .*by zero"):
        compute(tmp_path, lambda shard: pa.table({"value": [1 / shard[0]]}))


def test_address_without_a_cluster_is_said() -> None:
    """At once: Ray itself tries for minutes."""
    connect = pytest.importorskip("adaptpo.distributed.ray_executor").connect
    with pytest.raises(ConfigError, match=r"cannot join Ray at executor\.address 127.*refused.*docs/scale\.md"):
        connect(ExecutorSettings(kind="ray", address=f"127.0.0.1:{free_port()}"))


@engines
def test_what_cannot_be_sent_is_said(ray: Any, tmp_path: Path) -> None:
    file = (tmp_path / "open").open("w")
    with pytest.raises(ConfigError, match=r"part of it cannot be sent: .*name a reward function as python:module"):
        compute(tmp_path / "run", lambda shard: pa.table({"value": [file.write(str(shard))]}))


@engines
def test_more_workers_than_there_is_room_for_are_refused(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Ray has room for 2 workers with 1 CPU each; lower executor\.workers"):
        compute(tmp_path, lambda shard: pa.table({"value": list(shard)}), workers=3)


@engines
def test_run_of_two_workers_is_that_of_one_process(policy: str, tmp_path: Path) -> None:
    """A Ray of its own; killed on the way, together with it, and ended without."""
    pytest.importorskip("ray")
    reward = save_reward_model(tmp_path / "reward")
    arguments: dict[str, Any] = {"model": policy, "method": "online_dpo", "reward": reward, "rows": 16}
    arguments |= {"held_out": 0, "num_iterations": 1, "warmup_epochs": 0}
    assert run_in_process(out=tmp_path / "here", **arguments) == 0
    killed = run_in_process("file:0/annotations/00001.parquet", out=tmp_path / "run", executor=RAY, **arguments)
    assert killed == -9
    assert run_in_process(out=tmp_path / "run", **arguments) == 0
    assert_same_run(tmp_path / "here", tmp_path / "run")
