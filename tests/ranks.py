"""Runs of several processes on one machine, as a launcher would start them."""

from __future__ import annotations

import multiprocessing.connection
import os
import socket
from typing import Any

from tests.runs import arm, context, start

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


def run_rank(
    rank: int, count: int, port: int, sharding: Sharding, point: str | None, arguments: dict[str, Any]
) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | (sharding or {})
    if sharding:
        let_accelerate_shard_on_cpus()
    if point is not None:
        arm(point)
    start(**arguments)


def start_ranks(
    count: int, sharding: Sharding = None, kill: dict[int, str] | None = None, **arguments: Any
) -> list[Any]:
    """The processes of a run; `kill` names the point (see `tests.runs.arm`) at which a rank is killed."""
    port, points = free_port(), kill or {}
    processes = [
        context.Process(target=run_rank, args=(rank, count, port, sharding, points.get(rank), arguments))
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
