"""Several processes end where one does: same selection, responses, losses and weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import DistributedType
from torch.utils.data import RandomSampler, SequentialSampler
from transformers import AutoConfig

from adaptpo import AlignmentConfig
from adaptpo.data.mixture import Mixture
from adaptpo.distributed.ranks import ALONE, Ranks, check_devices, join_ranks
from adaptpo.errors import ConfigError, RunError, TrainingError
from adaptpo.models.inference import autocast
from adaptpo.pipeline import generator
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases import reward
from adaptpo.run.directory import open_run
from adaptpo.run.identity import refuse_other_run
from adaptpo.run.lazy_sequence import batched
from adaptpo.training.checkpoints import Logs, mark_complete, refuse_other_layout
from adaptpo.training.dealing import Dealing
from adaptpo.training.mean_metrics import MeanMetrics
from adaptpo.training.prompt_group_trainer import GroupTrainer
from adaptpo.training.sampler import EvenOrder
from adaptpo.training.sharding import compute_by_autocast
from tests.ranks import FSDP, Sharding, assert_close_run, close, logged, note_finiteness, pair_weights, run_ranks, zero
from tests.ranks_of_methods import run_all
from tests.runs import SETTINGS, assert_same_run, run_in_process, tables, weights
from tests.runs import context as processes
from tests.tiny import preference_rows, save_policy, vowel_reward, write_jsonl

engines = pytest.mark.engines
ROWS = 38
"""In neither phase a multiple of a batch: one rank has less to do at the end."""
HELD_OUT = {"rows": 40, "held_out": 0, "method_settings": {"validation_share": 0.1}}
"""Four pairs that MetaPO learns on, two on each rank."""
SAMPLE = (
    *("kto", "tr_dpo", "selective_dpo", "selm", "ppo", "grpo", "rloo"),
    *("metaapo_multi_objective", "metaapo_metapo", "stage_blend"),
)
"""Methods of every trainer, with a filter, a reference that follows, several rewards, and a stage that is measured;
`python -m tests.ranks_of_methods` has all."""
FAILS_ON_ONE = """
import os

def reward(prompts, completions, **columns):
    if os.environ["RANK"] == "1":
        raise ValueError("the judge of process one is out")
    return [float(len(str(c))) for c in completions]
"""


def settings(processes: int, sharded: bool = False) -> dict[str, Any]:
    batch = {"per_device_train_batch_size": 4 // processes} | ({} if sharded else {"use_cpu": True})
    # Adam makes full steps of what rounding leaves of a gradient near 0, so the step bounds how far weights differ.
    training = SETTINGS["training"] | batch | {"learning_rate": 5e-4, "num_train_epochs": 1}
    run = {"rows": ROWS, "reward": vowel_reward, "training": training, "num_iterations": 1}
    return run | {"max_tokens_per_batch": 40}  # Several passes a micro-batch, in one rank more than in the other.


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def alone(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run_in_process(model=policy, out=out, **settings(1)) == 0
    return out


@pytest.fixture(scope="module")
def together(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together") / "run"
    assert run_ranks(2, model=policy, out=out, **settings(2)) == [0, 0]
    return out


@engines
def test_learner_met_pairs_of_both_sources(alone: Path) -> None:
    """What is compared below is not trivially equal."""
    assert {record["source"] for record in pair_weights(alone)} == {"offline", "online"}
    assert torch.load(alone / "iterations/0/checkpoint/method.pt")["learners"][0]["updates"] > 1


@engines
def test_two_processes_are_one(alone: Path, together: Path) -> None:
    assert_close_run(alone, together)


@engines
@pytest.mark.parametrize("sharding", [FSDP, zero(2), zero(3)], ids=["FSDP2", "ZeRO-2", "ZeRO-3"])
def test_two_processes_with_shares_of_the_model_are_one(
    sharding: dict[str, str], alone: Path, policy: str, tmp_path: Path
) -> None:
    """Killed in the middle of a step and resumed on the way."""
    if sharding is not FSDP:
        pytest.importorskip("deepspeed")
    arguments = {"model": policy, "out": tmp_path / "run", **settings(2, sharded=True)}
    codes = run_ranks(2, sharding=sharding, kill={1: "step:iterations/0:3"}, **arguments)
    assert codes[1] == -9 and codes[0] not in (0, None)
    assert run_ranks(2, sharding=sharding, **arguments) == [0, 0]
    assert_close_run(alone, tmp_path / "run")


@engines
@pytest.mark.parametrize("stage", [2, 3], ids=["ZeRO-2", "ZeRO-3"])
def test_deepspeed_in_bfloat16_keeps_float32_weights(stage: int, policy: str, tmp_path: Path) -> None:
    """Weights rounded to bfloat16 would be further from the first ones than Adam can step: its learning rate."""
    pytest.importorskip("deepspeed")
    arguments = settings(2, sharded=True) | {"rows": 8, "held_out": 0, "method": "dpo"}
    arguments["training"] |= {"learning_rate": 1e-6, "lr_scheduler_type": "constant"}
    bf16 = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    assert run_ranks(2, sharding=zero(stage) | bf16, model=policy, out=tmp_path / "run", **arguments) == [0, 0]
    steps = [line for line in logged(tmp_path / "run") if line["phase"] == "iterations/0/train"]
    assert len(steps) == 2 and abs(steps[0]["rewards/margins"]) < 1e-6
    before, after = weights(Path(policy)), weights(tmp_path / "run/final")
    moved = [(after[name] - before[name]).abs().max().item() for name in before]
    assert 1e-6 < max(moved) < 3e-6
    assert AutoConfig.from_pretrained(tmp_path / "run/final").dtype == torch.float32


@engines
@pytest.mark.parametrize("stage", [2, 3], ids=["ZeRO-2", "ZeRO-3"])
def test_gradient_that_is_not_finite_is_told_of_and_skipped_by_deepspeed(stage: int, tmp_path: Path) -> None:
    """The gradient of a weight is its input: 1, infinite, 1."""
    pytest.importorskip("deepspeed")
    process = processes.Process(target=note_finiteness, args=(stage, tmp_path / "told.json"))
    process.start()
    process.join()
    (first, one), (second, two), (third, three) = json.loads((tmp_path / "told.json").read_text())
    assert [first, second, third] == [True, False, True]
    assert one == two == pytest.approx(three + 1, abs=1e-4)


@engines
def test_zero3_trains_a_reward_model_and_writes_the_final_one_without_evaluating(policy: str, tmp_path: Path) -> None:
    """Once transformers knows of ZeRO-3, it loads shards, on all ranks together, and only where it is told not to, a
    whole model on one."""
    pytest.importorskip("deepspeed")
    arguments = settings(2, sharded=True) | {"rows": 8, "held_out": 0, "method": "online_dpo", "reward": "train"}
    assert run_ranks(2, sharding=zero(3), model=policy, out=tmp_path / "run", **arguments) == [0, 0]
    written = {"reward/model/model.safetensors:score.weight", "final/model.safetensors:model.norm.weight"}
    assert written <= weights(tmp_path / "run").keys()


@engines
@pytest.mark.parametrize("point", ["step:iterations/0:3", "file:0/responses/00001.parquet"])
def test_death_of_a_process_ends_the_run_and_the_next_launch_goes_on(
    point: str, together: Path, policy: str, tmp_path: Path
) -> None:
    arguments = {"model": policy, "out": tmp_path / "run", **settings(2)}
    codes = run_ranks(2, kill={1: point}, **arguments)
    assert codes[1] == -9 and codes[0] not in (0, None)
    assert run_ranks(2, **arguments) == [0, 0]
    assert_same_run(together, tmp_path / "run")


@engines
def test_run_goes_on_with_another_number_of_processes(alone: Path, policy: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run_ranks(2, kill={0: "step:iterations/0:3"}, model=policy, out=out, **settings(2))[0] == -9
    assert run_in_process(model=policy, out=out, **settings(1)) == 0
    assert_close_run(alone, out)


class CountedReward:
    """Rewards by vowels; notes in a file of each process for how many responses it was asked, without fresh ones."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.__name__ = folder, "counted"

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        with (self.folder / f"asked-{os.environ.get('RANK', 'alone')}").open("a") as file:
            file.write(f"{len(prompts)}\n")
        return vowel_reward(prompts, completions, **columns)


@engines
def test_held_out_prompts_are_shared_out(policy: str, tmp_path: Path) -> None:
    """Eleven of them, in two shards: six and five for two processes, before training, after the warm-up and after an
    iteration. No margin is more than 0 before training."""
    arguments = {**settings(2), "reward": CountedReward(tmp_path), "method": "dpo", "warmup_epochs": 1, "held_out": 11}
    assert run_ranks(2, model=policy, out=tmp_path / "two", **arguments) == [0, 0]
    asked = [(tmp_path / f"asked-{rank}").read_text().split() for rank in range(2)]
    assert asked == [["6"] * 3, ["5"] * 3]
    assert run_in_process(model=policy, out=tmp_path / "one", **arguments | settings(1) | {"reward": vowel_reward}) == 0
    one, two = (held_out_results(tmp_path / out) for out in ("one", "two"))
    assert len(one) == 3 + 3 + 2 and close(one, two)
    assert one["evaluate/initial"]["eval_rewards/accuracies"] == 0


def held_out_results(out: Path) -> dict[str, Any]:
    """The tables of the evaluations, those of the reference's log-probs, and the means in the metrics."""
    means = {line["phase"]: line for line in logged(out) if line["phase"].startswith("evaluate")}
    return {name: table for name, table in tables(out).items() if "evaluation" in name} | means


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The runs of a sample of methods by one process and by two."""
    policy = save_policy(tmp_path_factory.mktemp("small"), num_hidden_layers=1)
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    assert run_all(SAMPLE, policy, one, 1) == [0]
    assert run_all(SAMPLE, policy, two, 2) == [0, 0]
    return one, two


@engines
@pytest.mark.parametrize("name", SAMPLE)
def test_method_on_two_processes_is_that_on_one(name: str, sampled: tuple[Path, Path]) -> None:
    one, two = sampled
    assert_close_run(one / name, two / name)


@pytest.fixture(scope="module")
def metapo_alone(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("metapo") / "run"
    assert run_in_process(model=policy, out=out, method="metapo", **settings(1) | HELD_OUT) == 0
    return out


@engines
@pytest.mark.parametrize("sharding", [None, FSDP], ids=["whole", "FSDP2"])
def test_metapo_looks_ahead_on_two_processes_as_on_one(
    sharding: Sharding, metapo_alone: Path, policy: str, tmp_path: Path
) -> None:
    """Held-out pairs are shared out, and the shards of the weights are moved and put back."""
    arguments = settings(2, sharded=sharding is not None) | HELD_OUT
    assert run_ranks(2, sharding=sharding, model=policy, out=tmp_path / "run", method="metapo", **arguments) == [0, 0]
    assert torch.load(metapo_alone / "iterations/0/checkpoint/method.pt")["learners"][0]["updates"] == 4
    assert_close_run(metapo_alone, tmp_path / "run")


@engines
def test_failing_process_says_why_and_its_launcher_ends_the_run(policy: str, tmp_path: Path) -> None:
    (tmp_path / "judging.py").write_text(FAILS_ON_ONE)
    data = write_jsonl(tmp_path / "pairs.jsonl", preference_rows(ROWS))
    changes = [f"model={policy}", f"data.path={data}", f"output_dir={tmp_path / 'run'}", "method=online_dpo"]
    changes += ["reward=python:judging:reward", "warmup_epochs=0", "generation.max_new_tokens=4", "shard_size=8"]
    changes += ["training.use_cpu=true", "max_prompt_length=64"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {policy}\ndata: {{path: {data}}}\noutput_dir: {tmp_path / 'run'}\n")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "adaptpo", "train", str(recipe), *(f"--set={change}" for change in changes)]
    path = os.pathsep.join([str(tmp_path), str(Path.cwd())])
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert ended.returncode != 0
    assert "adaptpo (process 1 of 2): " in ended.stderr and "the judge of process one is out" in ended.stderr


# Parts, in one process


@pytest.mark.parametrize(("size", "together", "length"), [(38, 4, 40), (40, 4, 40), (1, 16, 16)])
def test_order_is_that_of_one_process_filled_up_with_what_counts_nothing(size: int, together: int, length: int) -> None:
    order = EvenOrder(SequentialSampler(range(size)), size, together)
    assert len(order) == length
    assert list(order) == [*range(size), *[size] * (length - size)]


def test_order_is_another_one_in_every_epoch_and_the_same_again_in_the_same() -> None:
    def epoch(number: int) -> list[int]:
        order = EvenOrder.of(RandomSampler(range(20)), 20, 8, data_seed=3)
        order.set_epoch(number)
        return list(order)

    assert sorted(epoch(0)[:20]) == list(range(20)) and epoch(0)[20:] == [20] * 4
    assert epoch(0) != epoch(1) and epoch(1) == epoch(1)


def hh_like_lengths(prompts: int) -> np.ndarray:
    """Tokens of prompts with two responses: log-normal as in HH-RLHF, with a median of 250 and a tail to 2,000."""
    lengths = np.random.default_rng(0).lognormal(np.log(250), 0.7, prompts)
    return lengths.clip(20, 2000).astype(np.int64)


def utilisation(costs: np.ndarray, order: list[int], ranks: int, batch: int, micro_batches: int) -> float:
    """The share of their time that ranks compute, if they wait for the slowest one at the end of every step."""
    by_rank = costs[order].reshape(-1, micro_batches, ranks, batch).sum(axis=(1, 3))
    return by_rank.sum() / (ranks * by_rank.max(axis=1).sum())


@pytest.mark.parametrize(("batch", "micro_batches"), [(32, 1), (8, 4)])
def test_eight_ranks_are_busy_99_percent_of_the_time(batch: int, micro_batches: int) -> None:
    together = 8 * batch * micro_batches
    costs = hh_like_lengths(20 * together)
    order = EvenOrder.of(RandomSampler(costs), len(costs), 8 * batch, 3)
    dealt = EvenOrder.of(RandomSampler(costs), len(costs), 8 * batch, 3, Dealing(costs, 8, batch, micro_batches))
    assert utilisation(costs, list(order), 8, batch, micro_batches) < 0.9
    assert utilisation(costs, list(dealt), 8, batch, micro_batches) > 0.99
    steps = zip(batched(order, together), batched(dealt, together), strict=True)
    assert all(sorted(one) == sorted(other) for one, other in steps)


def test_each_micro_batch_is_dealt_evenly_too() -> None:
    """Ranks that share the weights wait for one another at every pass."""
    costs = hh_like_lengths(8 * 8 * 4)
    dealt = costs[Dealing(costs, 8, 8, 4).order(range(len(costs)))].reshape(4, 8, 8).sum(axis=2)
    assert dealt.sum() / (8 * dealt.max(axis=1).sum()) > 0.9


def test_padding_is_dealt_as_prompts_without_tokens() -> None:
    """On two ranks with micro-batches of two: 5 + 2 and 9 + 1 tokens, then 7 and 3, each with a filler."""
    costs = np.array([5, 1, 9, 2, 7, 3])
    order = list(EvenOrder(SequentialSampler(costs), 6, 4, Dealing(costs, ranks=2, batch=2, micro_batches=1)))
    assert order == [0, 3, 2, 1, 4, 6, 5, 6]


def test_means_are_over_all_values_however_they_were_batched() -> None:
    """Three values with mean 1 and one of 5: (3 + 5) / 4."""
    means = MeanMetrics()
    means.add({"margin": (1.0, 3)})
    means.add({"margin": (5.0, 1), "weight": (2.0, 2)})
    assert means.drain(ALONE) == {"margin": 2.0, "weight": 2.0}
    assert means.drain(ALONE) == {}


def test_every_item_is_the_share_of_one_process() -> None:
    shares = [Ranks(index, 3).share(range(10)) for index in range(3)]
    assert [list(share) for share in shares] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


@pytest.mark.parametrize("items", [0, 1, 5, 6])
def test_shares_come_back_in_order(items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [[10 * item for item in Ranks(index, 3).share(range(items))] for index in range(3)]
    monkeypatch.setattr(Ranks, "gather", lambda self, own: shares)
    assert Ranks(1, 3).gather_shares(shares[1]) == [10 * item for item in range(items)]


@pytest.mark.parametrize(("engine", "asked"), [("transformers", [[0, 2, 4], [1, 3]]), ("vllm", [[0, 1, 2, 3, 4], []])])
def test_held_out_prompts_go_to_every_process_or_to_one_server(
    engine: str, asked: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process samples its share; a server is asked by process 0, once both have left the accelerator."""
    events: list[Any] = []

    @contextmanager
    def recording(*_: Any) -> Iterator[Any]:
        yield SimpleNamespace(
            generate=lambda prompts, count, seeds: events.append([*prompts]) or [[p] for p in prompts]
        )

    monkeypatch.setattr(generator, "generating", recording)
    monkeypatch.setattr(Ranks, "wait", lambda self: events.append("waits"))
    monkeypatch.setattr(Ranks, "on_first", lambda self, work: work() if self.is_first else [])
    monkeypatch.setattr(Ranks, "gather_shares", lambda self, own: own)
    for index, own in enumerate(asked):
        events.clear()
        slot = SimpleNamespace(clear=lambda: events.append("leaves"))
        config = SimpleNamespace(generation=SimpleNamespace(engine=engine))
        context: Any = SimpleNamespace(config=config, ranks=Ranks(index, 2), slot=slot)
        found = generator.generate_one_each(context, "policy", "evaluate/initial", range(5), range(5))  # type: ignore[arg-type]
        assert found == [[number] for number in own]
        left = ["leaves", "waits"] if engine == "vllm" else []
        assert events == [*left, *([own] if own else [])]


def test_process_alone_needs_no_other() -> None:
    ALONE.wait()
    assert (ALONE.gather(5), ALONE.on_first(lambda: 6)) == ([5], 6)


def config(size: int, passes: int, processes: int) -> dict[str, Any]:
    training = {"per_device_train_batch_size": size, "gradient_accumulation_steps": passes}
    return {"reward": None, "training": training, "processes": processes}


def test_resuming_compares_what_an_optimizer_step_takes(tmp_path: Path) -> None:
    refuse_other_run(tmp_path, config(2, 8, 4), config(4, 16, 1))
    with pytest.raises(RunError, match="batch of an optimizer step: 64 in the run, 32 now"):
        refuse_other_run(tmp_path, config(2, 8, 4), config(2, 8, 2))


def test_optimizer_state_of_another_layout_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    mark_complete(checkpoint, Logs(tmp_path / "metrics.jsonl", "train"), "FSDP")
    refuse_other_layout(checkpoint, "FSDP")
    with pytest.raises(RunError, match="written by training with FSDP, and this is training with whole models"):
        refuse_other_layout(checkpoint, "")


def test_reward_training_refuses_an_optimizer_state_of_another_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = SimpleNamespace(output_dir=str(tmp_path / "reward/training"))
    trainer = SimpleNamespace(args=args, accelerator=SimpleNamespace(distributed_type=DistributedType.MULTI_GPU))
    monkeypatch.setattr(reward, "reward_trainer", lambda context: trainer)
    (tmp_path / "reward/training/checkpoint-2").mkdir(parents=True)
    with open_run(tmp_path) as run:
        context = Context(
            run, AlignmentConfig(output_dir=str(tmp_path)), None, initial="", reward="train", data=Mixture(())
        )
        hooks = reward.RewardHooks(context)
        hooks.layout = "FSDP"
        hooks.on_save(args, SimpleNamespace(global_step=2))
        with pytest.raises(RunError, match="written by training with FSDP, and this is training with whole models"):
            reward.train_reward_model(context)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (zero(2) | {"ACCELERATE_MIXED_PRECISION": "fp16"}, "round the weights to float16"),
        (zero(0), "set zero_stage to 1, 2 or 3"),
        (zero(3) | {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "false"}, "set zero3_save_16bit_model"),
        (FSDP | {"FSDP_VERSION": "1"}, "fsdp_version: 1; runs need 2"),
        (FSDP | {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "runs need FULL_STATE_DICT"),
        (FSDP | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "runs need false"),
    ],
)
def test_sharding_that_would_go_wrong_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process that a launcher starts shards as well."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        join_ranks({})


@pytest.mark.parametrize("environment", [FSDP, zero(3)])
def test_sharding_on_cpus_is_refused(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_devices("MULTI_GPU")
    with pytest.raises(ConfigError, match="neither FSDP nor DeepSpeed on CPUs"):
        check_devices("MULTI_CPU")


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_activations_are_recomputed_by_one_of_two(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would refuse both when the first trainer is made, after the data was read and scored."""
    for variable, value in (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}).items():
        monkeypatch.setenv(variable, value)
    join_ranks({name: False}, {name: False})
    for sections in ({name: True}, {}), ({}, {name: True}):
        with pytest.raises(ConfigError, match=r"fsdp_activation_checkpointing .* set the latter to false"):
            join_ranks(*sections)


@pytest.mark.parametrize(
    ("recipe", "launcher", "precision"), [({}, "bf16", "bf16"), ({"bf16": True}, "no", "bf16"), ({}, "no", "no")]
)
def test_precision_of_the_launcher_is_that_of_the_whole_run(
    recipe: dict[str, Any], launcher: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate would train in it; what is compared with training must be computed in it too."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    config = AlignmentConfig(output_dir=str(tmp_path), training={"use_cpu": True, **recipe})
    with open_run(tmp_path) as run:
        args = Context(run, config, method=None, initial="", reward=None, data=Mixture(())).inference_arguments
    assert (args.mixed_precision, args.bf16) == (precision, precision == "bf16")
    with autocast(args):
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")


@pytest.mark.parametrize("key", ["fsdp", "deepspeed"])
def test_sharding_by_the_training_section_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{key} is not taken .* accelerate launch's file"):
        AlignmentConfig(output_dir="x", training={key: "auto"})


def test_deepspeed_of_another_precision_than_the_run_is_refused() -> None:
    """Its own file may set one, which accelerate takes over."""
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, mixed_precision="bf16")
    with pytest.raises(ConfigError, match="own file has the precision bf16"):
        compute_by_autocast(accelerator, SimpleNamespace(bf16=False, mixed_precision="no"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("overflow", "norm"), [(True, 1.0), (False, -1.0), (False, float("inf")), (False, 1.0)])
def test_step_that_deepspeed_skipped_ends_the_training(overflow: bool, norm: float) -> None:
    engine = SimpleNamespace(optimizer=SimpleNamespace(overflow=overflow), get_global_grad_norm=lambda: norm)
    trainer: Any = object.__new__(GroupTrainer)
    trainer.accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    trainer.args, trainer.state = SimpleNamespace(fp16=False), SimpleNamespace(global_step=7)
    trainer.deepspeed = engine
    with nullcontext() if norm == 1 and not overflow else pytest.raises(TrainingError, match=r"gradient .* step 7"):
        trainer.check_gradients()
