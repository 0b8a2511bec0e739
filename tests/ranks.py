"""Runs of several processes on one machine, as a launcher would start them."""

from __future__ import annotations

import json
import math
import multiprocessing.connection
import os
import socket
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from adaptpo.run.files import JsonLines
from tests.runs import arm, context, start, tables, weights

Sharding = dict[str, str] | None
"""Environment variables that share out a model's weights; None leaves them whole on every rank."""
CPU = {"use_cpu": True}
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "ACCELERATE_TORCH_DEVICE": "cpu",
}


def zero(stage: int) -> dict[str, str]:
    """DeepSpeed, as `accelerate launch` hands it on."""
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "DS_ACCELERATOR": "cpu",
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def let_accelerate_shard_on_cpus() -> None:
    """Accelerate turns FSDP and DeepSpeed on beside an accelerator alone; they shard on CPUs as well."""
    from accelerate.state import DistributedType, PartialState

    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


def let_deepspeed_compile_nothing() -> None:
    """On CPUs it would compile a kernel for shared memory, for a minute or more, and wait for ever on the lock of a
    killed compilation; without it, gloo reduces."""
    import deepspeed.ops

    import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def run_rank(
    rank: int, count: int, port: int, sharding: Sharding, point: str | None, runs: Sequence[dict[str, Any]]
) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | (sharding or {})
    if sharding:
        let_accelerate_shard_on_cpus()
    if sharding and "ACCELERATE_USE_DEEPSPEED" in sharding:
        let_deepspeed_compile_nothing()
    if point is not None:
        arm(point)
    for arguments in runs:
        start(**arguments)


def start_ranks(
    count: int, sharding: Sharding = None, kill: dict[int, str] | None = None, **arguments: Any
) -> list[Any]:
    """The processes of a run; `kill` names the point (see `tests.runs.arm`) at which a rank is killed."""
    return start_runs(count, [arguments], sharding, kill)


def start_runs(
    count: int, runs: Sequence[dict[str, Any]], sharding: Sharding = None, kill: dict[int, str] | None = None
) -> list[Any]:
    """The processes that go through several runs, one after the other."""
    port, points = free_port(), kill or {}
    processes = [
        context.Process(target=run_rank, args=(rank, count, port, sharding, points.get(rank), runs))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def ends(processes: list[Any]) -> list[int]:
    """Exit codes of the ranks. Where one is killed the others are left alone: a launcher would end them, and they have
    to notice without it."""
    multiprocessing.connection.wait([process.sentinel for process in processes])
    for process in processes:
        process.join(600)
    return [process.exitcode for process in processes]


def run_ranks(count: int, **arguments: Any) -> list[int]:
    return ends(start_ranks(count, **arguments))


def note_finiteness(stage: int, path: Path) -> None:
    """Takes three steps of DeepSpeed by itself, the second with a gradient that is not finite; writes what is told of
    their gradients, and the weight after each."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"} | zero(stage)
    os.environ["MASTER_PORT"] = str(free_port())
    let_accelerate_shard_on_cpus()
    let_deepspeed_compile_nothing()
    import deepspeed

    from adaptpo.training.sharding import has_finite_gradients

    model = torch.nn.Linear(1, 1, bias=False)
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    settings |= {"zero_allow_untested_optimizer": True}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    told = []
    for value in (1.0, math.inf, 1.0):
        engine.backward(engine(torch.tensor([[value]])).sum())
        engine.step()
        told.append((has_finite_gradients(engine), float(deepspeed.utils.safe_get_full_fp32_param(model.weight))))
    path.write_text(json.dumps(told))


# What is compared


def close(one: Any, other: Any) -> bool:
    """Equal, or numbers that agree to 1e-5 of their size or of 1."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-5)
    return one == other


def logged(out: Path) -> list[dict[str, Any]]:
    volatile = ("time", "train_runtime", "train_samples_per_second", "train_steps_per_second")
    lines = JsonLines(out / "metrics.jsonl").read()
    return [{key: value for key, value in line.items() if key not in volatile + undecided(line)} for line in lines]


def undecided(line: dict[str, Any]) -> tuple[str, ...]:
    """Where policy and reference are one model, rounding decides whether a margin of 0 is a correct one."""
    return ("rewards/accuracies",) if abs(line.get("rewards/margins", 1.0)) < 1e-6 else ()


def pair_weights(out: Path) -> list[dict[str, Any]]:
    """By step and pair: within a step, similar lengths come together, in each process by itself."""
    records = JsonLines(out / "iterations" / "0" / "pair_weights.jsonl").read()
    return sorted(records, key=lambda record: (record["step"], record["prompt_id"], record["source"]))


def assert_close_rows(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        differing = {
            key: (one.get(key), other.get(key)) for key in one | other if not close(one.get(key), other.get(key))
        }
        assert not differing, (one.get("phase"), one["step"], differing)


def assert_close_run(one: Path, other: Path) -> None:
    left, right = tables(one), tables(other)
    assert left.keys() == right.keys()
    for name, table in left.items():
        assert close(table, right[name]), name
    assert_close_rows(logged(one), logged(other))
    assert_close_rows(pair_weights(one), pair_weights(other))
    left_weights, right_weights = weights(one), weights(other)
    assert left_weights.keys() == right_weights.keys()
    for name, tensor in left_weights.items():
        torch.testing.assert_close(tensor, right_weights[name], rtol=1e-5, atol=1e-5, msg=name)
