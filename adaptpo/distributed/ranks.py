"""Runs over several processes: which rank decides, which ranks wait, and what they exchange.

Every rank goes through the same phases. Each decides from the files of the run or receives decisions from rank 0, so
all decide alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from adaptpo.distributed.launch import is_set, is_sharded, parallel_size, process_count, saves_parts
from adaptpo.errors import ConfigError, RunError

Value = TypeVar("Value")

LONGEST_WAIT = timedelta(hours=24)
"""One rank may annotate or evaluate for hours while the others wait. A rank that dies is still noticed at once:
its connections close, and the launcher ends the others."""
TRAINING_TIMEOUT = 1800
"""In seconds, like transformers' `ddp_timeout`; no training step takes that long."""


@dataclass(frozen=True)
class Ranks:
    """This process as one of the `count` ranks of a run; rank 0 owns the run directory.

    Every method except `share` is collective: all ranks must call it at the same point, or they wait for one another.
    """

    index: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def share(self, items: Sequence[Value]) -> Sequence[Value]:
        """This rank's share of the items."""
        return items[self.index :: self.count]

    def wait(self) -> None:
        """Waits until all ranks have arrived."""
        if self.count > 1:
            dist.barrier(self.group)

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in rank order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, self.group)
        return values

    def gather_shares(self, own: Sequence[Value]) -> list[Value]:
        """What every rank made of its `share`, one value for each item, in the order of the items."""
        shares = self.gather(list(own))
        return [shares[place % self.count][place // self.count] for place in range(sum(map(len, shares)))]

    def on_first(self, work: Callable[[], Value]) -> Value:
        """Runs `work` on rank 0 alone and returns its result on every rank.

        If it fails, rank 0 raises its error and the others raise a RunError.
        """
        if self.count == 1:
            return work()
        if self.is_first:
            return self._told(work)
        outcome: list[Any] = [None, None]
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        succeeded, value = outcome
        if not succeeded:
            raise RunError("stopped, because process 0 failed; its message has the reason")
        return value

    def _told(self, work: Callable[[], Value]) -> Value:
        outcome: list[Any] = [False, None]
        try:
            outcome = [True, work()]
        finally:
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        return outcome[1]


ALONE = Ranks()


def join_ranks(training: dict[str, Any], reward_training: dict[str, Any] | None = None) -> Ranks:
    """This process among those that the launcher started; the arguments are the recipe's sections of these names.

    Raises ConfigError if accelerate would let each process train separately, or would not train as requested.
    """
    count = process_count()
    check_parallelism()
    for section in (training, reward_training or {}):
        check_sharding(section)
    if count == 1:
        return ALONE
    from accelerate import PartialState

    timeout = timedelta(seconds=training.get("ddp_timeout", TRAINING_TIMEOUT))
    cpu = bool(training.get("use_cpu")) or is_set("ACCELERATE_USE_CPU")
    try:
        state = PartialState(cpu=cpu, timeout=timeout)
    except ImportError as error:
        raise ConfigError(f"the launcher needs a package that is not installed: {error}") from error
    if state.num_processes != count:
        raise ConfigError(
            f"{count} processes were started without an accelerator to connect them; set training.use_cpu to true "
            "to train on CPUs, or start one process"
        )
    check_devices(state.distributed_type.value)
    return Ranks(state.process_index, count, dist.new_group(backend="gloo", timeout=LONGEST_WAIT))


def check_parallelism() -> None:
    """Raises ConfigError if the ranks would share out a row or a layer: each trains on its own prompts."""
    for kind in ("tp", "cp", "sp"):
        if parallel_size(kind) > 1:
            raise ConfigError(
                f"accelerate's configuration has parallelism_config_{kind}_size: {parallel_size(kind)}; here every "
                "process trains on prompts of its own. Set it to 1, and share out the weights with FSDP2 "
                "(recipes/accelerate/fsdp2.yaml)"
            )


def check_devices(kind: str) -> None:
    """Raises ConfigError if accelerate would not shard weights as requested."""
    if is_sharded() and kind == "MULTI_CPU":
        raise ConfigError(
            "accelerate has neither FSDP nor DeepSpeed on CPUs and would train with DDP; use accelerators, or turn "
            "sharding off"
        )


def check_sharding(training: dict[str, Any]) -> None:
    """Raises ConfigError if the launcher's sharding would round weights, if ranks would score with weights that they do
    not have, or if checkpoints would not be ordinary model folders. `training`: a section of the recipe."""
    if is_set("ACCELERATE_USE_DEEPSPEED") and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "0":
        raise ConfigError(
            "DeepSpeed's stage 0 shares out nothing, and takes steps whose gradients are not finite; set zero_stage to "
            "1, 2 or 3 in accelerate launch's file, or start without DeepSpeed"
        )
    launched_in_fp16 = os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16" and not training.get("bf16")
    if is_set("ACCELERATE_USE_DEEPSPEED") and (training.get("fp16") or launched_in_fp16):
        raise ConfigError(
            "DeepSpeed would round the weights to float16 and save them so; train in bf16, or with FSDP2 "
            "(recipes/accelerate/fsdp2.yaml)"
        )
    if is_set("ACCELERATE_USE_DEEPSPEED") and saves_parts():
        raise ConfigError(
            "DeepSpeed's stage 3 would save each process's part of the weights apart; set zero3_save_16bit_model, "
            "as in recipes/accelerate/zero3.yaml (in a DeepSpeed file: stage3_gather_16bit_weights_on_model_save)"
        )
    if not is_set("ACCELERATE_USE_FSDP"):
        return
    wanted = {"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
    for name, value in wanted.items():
        if os.environ.get(name, "").lower() != value.lower():
            raise ConfigError(
                f"accelerate's configuration has {name.lower()}: {os.environ.get(name, 'nothing')}; runs need {value}, "
                "as in recipes/accelerate/fsdp2.yaml"
            )
    recomputes = training.get("gradient_checkpointing") or training.get("activation_checkpointing")
    if recomputes and is_set("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ConfigError(
            "training.gradient_checkpointing and fsdp_activation_checkpointing of accelerate's configuration would "
            "both recompute activations; set the latter to false, as in recipes/accelerate/fsdp2.yaml"
        )
