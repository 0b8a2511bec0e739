"""Runs in processes of their own that can be killed at a chosen event, and what is compared afterwards."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.preload"])

SETTINGS: dict[str, Any] = {
    "num_iterations": 2,
    "max_prompt_length": 64,
    "generation": {"max_new_tokens": 10, "batch_size": 4},
    "training": {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "save_steps": 2},
    "reward_training": {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "save_steps": 2},
    "shard_size": 8,
    "show_progress": False,
}


def start(
    model: str,
    out: Path,
    reward: Any,
    method: str = "metaapo",
    rows: int = 40,
    held_out: int = 6,
    method_settings: dict[str, Any] | None = None,
    threads: int = 1,
    data: Any = None,
    eval_data: Any = None,
    **settings: Any,
) -> Any:
    """Align a tiny model; returns the folder of the result. Without held-out prompts nothing is evaluated. `data` and
    `eval_data` stand in place of the usual rows."""
    from adaptpo import AlignmentConfig, AlignmentTrainer
    from adaptpo.distributed.quiet import quiet_libraries
    from adaptpo.methods import METHODS
    from tests.tiny import preference_rows

    quiet_libraries()
    torch.set_num_threads(threads)
    settings_of_method = {"num_generations": 4, "update_interval": 2, "meta_interval": 2}
    settings_of_method["ref_model_sync_steps"] = 1
    taken = inspect.signature(METHODS[method]).parameters
    arguments = {name: value for name, value in settings_of_method.items() if name in taken} | (method_settings or {})
    trainer = AlignmentTrainer(
        model=model,
        args=AlignmentConfig(output_dir=str(out), **(SETTINGS | settings)),
        method=METHODS[method](**arguments),
        train_dataset=data or [row | {"weight": 1 + number % 3} for number, row in enumerate(preference_rows(rows))],
        reward_funcs=reward,
        eval_dataset=eval_data or preference_rows(held_out, seed=9) or None,
    )
    return trainer.train()


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raise_defect(*_: Any) -> None:
    raise KeyError(f"a defect that quotes {os.environ['HF_TOKEN']}")


def kill_around(owner: Any, name: str, matches: Callable[..., bool], after: bool) -> None:
    """Replace a function by one that kills this process before or after its first call with matching arguments."""
    original = getattr(owner, name)

    def deadly(*args: Any, **kwargs: Any) -> Any:
        dies = matches(*args, **kwargs)
        if dies and not after:
            kill_self()
        result = original(*args, **kwargs)
        if dies:
            kill_self()
        return result

    setattr(owner, name, deadly)


def arm(point: str) -> None:
    """Points: `start:PHASE`, `done:PHASE`, `file:PART-OF-PATH` (before a shard is written), `written:PART-OF-PATH`
    (the moment before a file gets its name), `step:PHASE:N`, `saving:PHASE:N`, `saved:PHASE:N`,
    `reward-step:N`, `folder:PART-OF-PATH` (the moment before a finished folder gets its name), `looking:N` (MetaPO's
    N-th pass in changed weights of the policy). `defect`: it is not killed; its first phase raises an error."""
    from adaptpo.pipeline.phases import reward
    from adaptpo.run import directory, files, shards
    from adaptpo.training import look_ahead

    kind, _, rest = point.partition(":")
    if kind == "defect":
        directory.RunDirectory._finish = raise_defect
    elif kind in ("start", "done"):
        done = kind == "done"
        matches = lambda self, phase, facts: phase == rest and facts["done"] == done  # noqa: E731
        kill_around(directory.RunDirectory, "_record", matches, after=True)
    elif kind == "file":
        kill_around(shards, "write_table", lambda path, table: rest in str(path), after=False)
    elif kind == "written":
        kill_around(files, "flush", lambda path: rest in str(path), after=False)
    elif kind == "folder":
        kill_around(files, "flush_tree", lambda folder: rest in str(folder), after=True)
    elif kind == "reward-step":
        kill_around(reward.RewardHooks, "on_log", lambda *a, **k: a[2].global_step == int(rest), after=False)
    elif kind == "looking":
        passes = count(1)
        kill_around(look_ahead.LookAhead, "_losses_at", lambda *_: next(passes) == int(rest), after=True)
    else:
        phase, _, step = rest.rpartition(":")
        arm_training(kind, phase, int(step))


def arm_training(kind: str, phase: str, step: int) -> None:
    from adaptpo.pipeline.phases import grpo
    from adaptpo.training import prompt_group_trainer

    def in_phase(hooks: Any, args: Any, state: Any, *_: Any, **__: Any) -> bool:
        return f"/{phase}/training" in args.output_dir and state.global_step == step

    name = "on_step_end" if kind == "step" else "on_save"
    owners = (prompt_group_trainer.StepHooks,) if kind == "step" else (prompt_group_trainer.StepHooks, grpo.GroupHooks)
    for owner in owners:
        kill_around(owner, name, in_phase, after=kind == "saved")


def run_armed(point: str | None, arguments: dict[str, Any]) -> None:
    if point is not None:
        arm(point)
    start(**arguments)
    sys.stdout.flush()
    os._exit(0)  # Taking down what the libraries hold would take longer than the run.


def start_process(point: str | None = None, **arguments: Any) -> Any:
    process = context.Process(target=run_armed, args=(point, arguments))
    process.start()
    return process


def run_in_process(point: str | None = None, **arguments: Any) -> int:
    """Exit code of a run in its own process: 0, or -9 where it was killed."""
    process = start_process(point, **arguments)
    process.join()
    return process.exitcode


def tables(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Selection, responses, annotations, pairs and evaluations of a run, by file."""
    return {str(p.relative_to(out)): pq.read_table(p).to_pylist() for p in sorted(out.rglob("*.parquet"))}


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Of every model of a run, and of the heads of its critics."""
    stored = [(path, load_file(path)) for path in sorted(out.rglob("*.safetensors"))]
    stored += [(path, torch.load(path)) for path in sorted(out.rglob("value_head.pt"))]
    return {f"{path.relative_to(out)}:{name}": tensor for path, held in stored for name, tensor in held.items()}


def assert_same_run(one: Path, other: Path) -> None:
    """Same selection, responses, pairs and evaluations, and bit-identical weights of every checkpoint."""
    left, right = tables(one), tables(other)
    assert left.keys() == right.keys()
    for name, table in left.items():
        assert table == right[name], name
    left_weights, right_weights = weights(one), weights(other)
    assert left_weights.keys() == right_weights.keys()
    for name, tensor in left_weights.items():
        assert torch.equal(tensor, right_weights[name]), name
