"""What only several accelerators, several machines or a launcher's settings bring about, shown on CPUs."""

from __future__ import annotations

import errno
import fcntl
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from adaptpo import AlignmentConfig, methods
from adaptpo.config.reward import ModelReward, reward_parts
from adaptpo.data.mixture import Mixture
from adaptpo.distributed.ranks import Ranks, check_parallelism
from adaptpo.errors import ConfigError, RunError
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases import filter as filtering
from adaptpo.pipeline.phases import grpo, reward
from adaptpo.pipeline.phases.grpo import reference_place
from adaptpo.pipeline.preflight import announce_devices, check_look_ahead
from adaptpo.run import file_locks
from adaptpo.run.directory import open_run
from adaptpo.run.file_locks import problem_of_shared_lock
from adaptpo.training import prompt_group_trainer
from tests.ranks import FSDP, logged, run_ranks
from tests.runs import SETTINGS
from tests.tiny import save_policy, vowel_reward

BF16 = {"ACCELERATE_MIXED_PRECISION": "bf16"}


@pytest.mark.engines
def test_first_margin_is_zero_where_fsdp2_converts_the_weights(tmp_path: Path) -> None:
    """Without autocast, residual stream, norms and logits are in bfloat16; so are the reference's. Each group is
    computed alone in both, because a CPU may round a row as its batch has it (1.5e-5 with two groups on one machine,
    where the reference under autocast was 9.3e-5 off)."""
    policy, training = save_policy(tmp_path / "policy"), SETTINGS["training"] | {"per_device_train_batch_size": 1}
    settings = {"method": "dpo", "rows": 16, "held_out": 0, "num_iterations": 1, "training": training}
    settings |= {"max_tokens_per_batch": 1}
    out = tmp_path / "run"
    assert run_ranks(2, sharding=FSDP | BF16, model=policy, out=out, reward=vowel_reward, **settings) == [0, 0]
    first = next(line for line in logged(out) if line["phase"] == "iterations/0/train")
    assert first["step"] == 1 and abs(first["rewards/margins"]) < 1e-5
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)


class OnEight(TrainingArguments):
    """Those of one process that sees eight accelerators."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._n_gpu = 8


def context_of(run: Any, **settings: Any) -> Context:
    config = AlignmentConfig(output_dir=str(run.path), training={"use_cpu": True}, **settings)
    return Context(run, config, method=methods.dpo(), initial="", reward=None, data=Mixture(()))


def test_one_process_computes_on_one_device(tmp_path: Path) -> None:
    """transformers would divide a batch between the eight."""
    with open_run(tmp_path) as run:
        args = context_of(run).arguments("train", OnEight, per_device_train_batch_size=4)
    assert (args.n_gpu, args.train_batch_size) == (1, 4)


def test_idle_devices_are_told(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with open_run(tmp_path) as run:
        context = context_of(run)
        announce_devices(context)  # On the CPU.
        assert capsys.readouterr().out == ""
        context.inference_arguments = SimpleNamespace(device=torch.device("cuda"))  # type: ignore[assignment]
        announce_devices(context)
    assert "one of 8 GPUs; to use all, start `accelerate launch" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["tp", "cp", "sp"])
def test_processes_that_would_share_a_row_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{kind.upper()}_SIZE", "2")
    check_parallelism()  # Accelerate does not read it alone.
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(ConfigError, match=f"parallelism_config_{kind}_size: 2.*Set it to 1"):
        check_parallelism()


def test_several_copies_of_shards_are_refused_where_all_weights_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "2")
    check_parallelism()
    with pytest.raises(ConfigError, match=r"method 'metapo' adds up over all weights.*set it to 1"):
        check_look_ahead(SimpleNamespace(method=methods.metapo()), "central")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        lambda options: AlignmentConfig(output_dir="x", model_init_kwargs=options),
        lambda options: reward_parts({"reward_model": "r", "model_init_kwargs": options}),
    ],
    ids=["policy", "reward"],
)
def test_a_device_map_is_refused(given: Callable[[dict[str, Any]], object]) -> None:
    """The model would be moved to the run's own device after accelerate had spread it."""
    given({"dtype": "bfloat16"})
    with pytest.raises(ConfigError, match=r"device_map: a run places its models itself.*leave it out"):
        given({"device_map": "auto"})


def test_the_older_name_of_dtype_holds_for_a_reward_model_too() -> None:
    (part,) = reward_parts({"reward_model": "r", "model_init_kwargs": {"torch_dtype": "float32"}})
    assert isinstance(part, ModelReward) and part.model_init_kwargs == {"dtype": "float32"}


def test_trl_loads_its_reference_onto_the_run_s_device() -> None:
    """By itself, TRL spreads it over all GPUs that one process sees."""
    assert reference_place(torch.device("cpu")) == {}
    assert reference_place(torch.device("cuda", 0)) == {"device_map": {"": "cuda:0"}}


class Halves(Ranks):
    """The first of two ranks, which hears nothing of the other."""

    def gather_shares(self, own: Any) -> Any:
        return list(own)


def test_ranks_share_out_what_a_filter_reads() -> None:
    context: Any = SimpleNamespace(ranks=Halves(0, 2), config=SimpleNamespace(shard_size=2))
    found = filtering.in_pieces(context, list(range(7)), lambda some: torch.tensor(some, dtype=torch.float32))  # type: ignore[arg-type]
    assert found.tolist() == [0, 1, 4, 5]


# The lock of a run on several machines


def test_lock_that_another_process_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lock"
    monkeypatch.setattr(file_locks, "SEEN_WITHIN", 0.0)
    assert "does not show lock" in str(problem_of_shared_lock(file))
    with file.open("a+") as held:
        assert problem_of_shared_lock(file) == "gives one lock to two processes at once"
        fcntl.flock(held, fcntl.LOCK_EX)
        assert problem_of_shared_lock(file) is None
    file.unlink()
    file.mkdir()
    assert "gives no lock on lock (Is a directory)" in str(problem_of_shared_lock(file))


def test_folder_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(RunError, match=r"gives no locks .*choose an output_dir on a file system"), open_run(tmp_path):
        pass


class Told(Ranks):
    """The first of two ranks, and what it hears from the other."""

    def on_first(self, work: Any) -> Any:
        return work()

    def gather(self, value: Any) -> Any:
        return [value, "gives one lock to two processes at once"]


def test_rank_that_does_not_see_the_lock_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"gives one lock to two processes at once \(process 1\)"):
        open_run(tmp_path, Told(0, 2)).__enter__()
    with open_run(tmp_path):
        pass  # It was let go.


# What rank 0 does alone


HOOKS = [
    (prompt_group_trainer, lambda told: prompt_group_trainer.StepHooks(told)),
    (reward, lambda told: reward.RewardHooks(told)),
    (grpo, lambda told: grpo.GroupHooks(told, 0)),
]


@pytest.mark.parametrize(("module", "hooks"), HOOKS, ids=["pairs", "reward", "groups"])
def test_ranks_wait_until_a_checkpoint_is_whole(module: Any, hooks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they wait in a collective of the training, which gives up after half an hour."""
    events: list[str] = []
    ranks = SimpleNamespace(wait=lambda: events.append("wait"), is_first=True)
    run = SimpleNamespace(metrics=SimpleNamespace(path=Path("m")))
    told = SimpleNamespace(ranks=ranks, run=run, logs=1, layout="", save_beside=lambda _: None, folder=str)
    monkeypatch.setattr(module, "mark_complete", lambda *_: events.append("mark"))
    hooks(told).on_save(SimpleNamespace(output_dir="x"), SimpleNamespace(global_step=2))
    assert events == ["wait", "mark", "wait"]


@pytest.fixture
def as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("repeatable", [True, False])
def test_workers_compute_as_the_run(repeatable: bool, tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.claim({})
        run.repeatable = repeatable
        pickle.loads(pickle.dumps(run))
        assert torch.are_deterministic_algorithms_enabled() == repeatable
