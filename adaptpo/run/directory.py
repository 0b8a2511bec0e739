"""The run directory: what is done, what is stored, and how a killed run resumes.

A run is a sequence of phases. A phase is done when `state.json` records it, which happens after everything that the
phase produced is on disk. Long phases write shards of a fixed composition; a shard is a file that exists whole or not
at all. Training phases write checkpoints (see `adaptpo.training.preference_trainer`).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import yaml

from adaptpo.config.executor import ExecutorSettings
from adaptpo.config.secrets import masked
from adaptpo.config.strict_yaml import read_yaml
from adaptpo.distributed.executor import HERE, Executor
from adaptpo.distributed.ranks import ALONE, Ranks
from adaptpo.errors import RunError
from adaptpo.run.files import JsonLines, read_columns, read_rows, write_json, write_table, write_text
from adaptpo.run.machine import machine_faults
from adaptpo.run.progress import progress_bar
from adaptpo.types import Row

Item = TypeVar("Item")
Summary = dict[str, Any]
"""What `state.json` stores about a finished phase."""

NOT_COMPARED = frozenset(
    {
        "output_dir",
        "branch_of",
        "model",
        "ref_model",
        "reward",
        "data.path",
        "eval_data.path",
        "show_progress",
        "annotation_cache",
    }
    | {"adaptpo", "training"}
    | {f"executor.{name}" for name in ExecutorSettings.model_fields}
    | {f"generation.{name}" for name in ("base_url", "command", "served_model", "api_key_env", "arguments")}
    | {f"generation.{name}" for name in ("program", "reload")}
    | {f"generation.{name}" for name in ("concurrency", "retries", "timeout", "start_timeout", "restarts")}
    | {f"generation.{name}" for name in ("tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization")}
    | {f"training.{name}" for name in ("report_to", "logging_steps", "disable_tqdm", "run_name", "save_steps")}
    | {f"training.{name}" for name in ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "project")}
    | {f"training.{name}" for name in ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")}
)
"""Keys that may change between attempts: where inputs lie and what is shown. The content of inputs is compared by hash.

`training` stands for an empty section; the keys of a section that has any are compared one by one.
"""

DEFAULT_BATCH = 8
"""`per_device_train_batch_size` if a recipe does not set it, as in transformers."""

WRITTEN_TOGETHER = 1024
"""Number of records of dropped items that are buffered and written together."""


class RunDirectory:
    """One run on disk; holds the lock on it until closed.

    Among the processes that work on a run together, rank 0 locks and records; the others read, and write their shards.

    Raises RunError if another process is working on the run.
    """

    def __init__(self, path: Path, ranks: Ranks = ALONE, executor: Executor = HERE) -> None:
        self.path, self.ranks, self.executor = path, ranks, executor
        self._missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        self.metrics = JsonLines(path / "metrics.jsonl")
        self.dropped = JsonLines(path / "dropped.jsonl")
        self.listeners: list[Callable[[Row], None]] = []
        """They get, on rank 0, every record of the metrics."""
        ranks.on_first(self._lock)

    def _lock(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock_file = (self.path / "lock").open("a+")
        except OSError as error:
            raise RunError(f"cannot use the folder {self.path}: {error.strerror}; choose another output_dir") from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock_file.seek(0)
            owner = self._lock_file.read().strip() or "another process"
            self.close()
            raise RunError(f"{owner} is working on {self.path}; wait for it, or choose another output_dir") from error
        self._lock_file.truncate(0)
        self._lock_file.write(f"process {os.getpid()}")
        self._lock_file.flush()

    def close(self) -> None:
        self.executor.close()
        if self.ranks.is_first:
            self._lock_file.close()

    def __getstate__(self) -> dict[str, Any]:
        """The state sent to a worker of the executor, which reads and logs but holds no lock."""
        kept = {name: value for name, value in vars(self).items() if name != "_lock_file"}
        return kept | {"executor": HERE, "listeners": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if not self.config_path.exists():
            raise RunError(
                f"no run at {self.path.absolute()} on {socket.gethostname()}; output_dir must lie on a file system "
                "that all machines share"
            )

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._leave_nothing()
        self.close()

    def _leave_nothing(self) -> None:
        """Removes the folders that this run made, if it was refused before its first phase."""
        if not self.ranks.is_first or not self._missing or (self.path / "state.json").exists():
            return
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):  # Another run has begun beside it.
            for folder in self._missing[1:]:
                folder.rmdir()

    # Identity of the run

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    def claim(self, config: dict[str, Any]) -> bool:
        """Makes this the directory of the run with this resolved config; returns True if the run is being resumed.

        A run that has done no work yet can still change, because its recipe or data may just have been fixed.

        Raises RunError if the directory holds a run with another config or other inputs, or files but no run.
        """
        if not self.config_path.exists():
            self._refuse_strangers()
        elif self._holds_work():
            refuse_other_run(self.path, stored_config(self.path), plain(config))
            return True
        shutil.rmtree(self.path / "snapshots", ignore_errors=True)
        write_text(self.config_path, yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))
        return False

    def _holds_work(self) -> bool:
        done = any(facts["done"] for facts in self.state["phases"].values())
        return done or any(self.path.rglob("*.parquet"))

    def _refuse_strangers(self) -> None:
        strangers = sorted(p.name for p in self.path.iterdir() if p.name not in ("lock", "inputs"))
        if strangers:
            raise RunError(
                f"{self.path} is not empty and holds no run (found {', '.join(strangers[:3])}); "
                "choose another output_dir"
            )

    # Phases

    @property
    def state(self) -> dict[str, Any]:
        return read_state(self.path)

    def done(self, phase: str) -> bool:
        return bool(self.state["phases"].get(phase, {}).get("done"))

    def phase(self, name: str, work: Callable[[], Row]) -> Row:
        """Runs `work` on every rank unless the phase is done. Stores rank 0's summary (counts, for instance) in
        `state.json`, with its wall and CPU time."""
        if not self.done(name):
            attempts = self.state["phases"].get(name, {}).get("attempts", 0) + 1
            self._record(name, {"done": False, "attempts": attempts})
            started = (time.perf_counter(), time.process_time())
            with machine_faults(name):
                summary = work()
            self.ranks.wait()
            spent = (time.perf_counter() - started[0], time.process_time() - started[1])
            times = {"seconds": round(spent[0], 3), "cpu_seconds": round(spent[1], 3)}
            self._record(name, {"done": True, "attempts": attempts, **times, **summary})
            self.ranks.wait()
        return self.state["phases"][name]

    def mark_opened(self) -> None:
        """Records that everything before the first iteration is done; other runs may then copy it."""
        if self.ranks.is_first:
            write_json(self.path / "state.json", self.state | {"opened": True})

    def _record(self, name: str, facts: Row) -> None:
        if not self.ranks.is_first:
            return
        state = self.state
        state["phases"][name] = facts
        write_json(self.path / "state.json", state)

    # What phases write: rank 0 alone, except for shards and each rank's usage

    def log(self, phase: str, values: Row, iteration: int | None = None, step: int | None = None) -> None:
        if self.ranks.is_first:
            self.log_own(phase, values, iteration, step)

    def log_own(self, phase: str, values: Row, iteration: int | None = None, step: int | None = None) -> None:
        """Like `log`, but on every rank, for values that the other ranks do not know."""
        where = {"phase": phase, "iteration": iteration, "step": step, "time": round(time.time(), 3)}
        self.metrics.append(where | values)
        for listener in self.listeners:
            listener(where | values)

    def forget_after(self, phase: str, step: int) -> None:
        """Discards what a phase logged after this step (0: all of it), because it is about to be repeated."""
        if self.ranks.is_first:
            self.metrics.discard(lambda r: r["phase"] == phase and (r["step"] or 0) >= (step + 1 if step else 0))

    def drop(self, phase: str, records: Iterable[Row]) -> LeftOut:
        """Records what the phase left out; a repeated phase replaces its records."""
        with self.dropping(phase) as left_out:
            for record in records:
                left_out.add(record)
        return left_out

    @contextmanager
    def dropping(self, phase: str) -> Iterator[LeftOut]:
        """Like `drop`, for a phase that adds records as it runs."""
        left_out = LeftOut(self.dropped if self.ranks.is_first else None, phase)
        try:
            yield left_out
        finally:
            left_out.write()

    def shards(
        self,
        folder: str,
        items: Sequence[Item],
        size: int,
        work: Callable[[Sequence[Item]], pa.Table],
        show_progress: bool = True,
        at_once: int = 1,
    ) -> None:
        """Applies `work` to consecutive shards of `size` items and stores each result as one Parquet file.

        Ranks take the missing shards in turn, and the executor computes them, in this process up to `at_once` at a
        time in threads. Each is stored when it is complete. The composition of a shard depends only
        on `items` and `size`. A resumed run, or one with more ranks or workers, therefore computes each shard exactly
        like an uninterrupted run.
        """
        starts = range(0, len(items), size)
        missing = self.ranks.on_first(
            lambda: [number for number in range(len(starts)) if not self._shard(folder, number).exists()]
        )
        own = self.ranks.share(missing)

        def compute(number: int) -> pa.Table:
            return work(items[starts[number] : starts[number] + size])

        prompts = {number: min(size, len(items) - starts[number]) for number in own}
        with progress_bar(folder, sum(prompts.values()), "prompt", show_progress) as bar:
            for number, table in self.executor.compute(compute, own, at_once):
                write_table(self._shard(folder, number), table)
                bar.update(prompts[number])
        self.ranks.wait()

    def _shard(self, folder: str, number: int) -> Path:
        return self.path / folder / f"{number:05d}.parquet"

    def _shards(self, folder: str) -> list[Path]:
        # By number, because beyond 100,000 shards the names do not sort alphabetically.
        return sorted((self.path / folder).glob("[0-9]*.parquet"), key=lambda path: int(path.stem))

    def read_shards(self, folder: str, columns: list[str] | None = None) -> Iterator[Row]:
        for path in self._shards(folder):
            yield from read_rows(path, columns)

    def read_shards_of(
        self, folder: str, items: Iterable[int], size: int, columns: list[str] | None = None
    ) -> Iterator[Row]:
        """Yields the rows of the shards that hold the items with these numbers."""
        for number in dict.fromkeys(int(item) // size for item in items):
            yield from read_rows(self._shard(folder, number), columns)

    def read_columns(self, folder: str, *names: str) -> tuple[np.ndarray, ...]:
        """Numeric columns of all shards."""
        return read_columns(self._shards(folder), *names)


class LeftOut:
    """What a phase leaves out, written in batches; `reasons` counts the records by reason."""

    def __init__(self, log: JsonLines | None, phase: str) -> None:
        self.log, self.phase = log, phase
        self.reasons: Counter[str] = Counter()
        self.waiting: list[Row] = []
        if log is not None:
            log.discard(lambda record: record["phase"] == phase)

    def add(self, record: Row) -> None:
        """Adds a record, which must have a `reason`."""
        self.reasons[record["reason"]] += 1
        self.waiting.append({"phase": self.phase, **record})
        if len(self.waiting) == WRITTEN_TOGETHER:
            self.write()

    def write(self) -> None:
        if self.log is not None:
            self.log.append(*self.waiting)
        self.waiting = []


OF_PHASES = ("done", "attempts", "seconds", "cpu_seconds")
"""What `state.json` has about every phase, beside its summary."""


def metrics_of(facts: Summary) -> Summary:
    """The summary of a phase in `state.json`."""
    return {name: value for name, value in facts.items() if name not in OF_PHASES}


def read_state(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"phases": {}}


def stored_config(folder: Path) -> dict[str, Any]:
    """The settings of the run in this folder. Raises RunError if the file cannot be read."""
    path = folder / "config.yaml"
    try:
        return masked(dict(read_yaml(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise RunError(f"{path} cannot be read ({error}); restore it, or choose another output_dir") from error


@contextmanager
def open_run(path: Path, ranks: Ranks = ALONE, executor: Executor = HERE) -> Iterator[RunDirectory]:
    with RunDirectory(path, ranks, executor) as run:
        yield run


def plain(value: Any) -> Any:
    """The value without keys, after a round trip through YAML: what a run stores and compares."""
    return yaml.safe_load(yaml.safe_dump(masked(value), sort_keys=False, allow_unicode=True))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    parts = (flatten(part, f"{prefix}.{name}" if prefix else name) for name, part in value.items())
    return {key: leaf for part in parts for key, leaf in part.items()}


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """One line for each of the first keys in which two flat mappings differ; empty if they are equal."""
    differing = [key for key in sorted(stored.keys() | wanted.keys()) if stored.get(key) != wanted.get(key)]
    lines = [f"  {key}: {stored.get(key)!r} in the run, {wanted.get(key)!r} now" for key in differing]
    return "\n".join(lines[:12]) + ("\n  ..." if len(lines) > 12 else "")


def compared(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that identify a run, flat. Batch size, accumulation passes and processes count only as a product:
    the batch of an optimizer step."""
    settings = {key: value for key, value in flatten(config).items() if key not in NOT_COMPARED}
    processes = settings.pop("processes", 1)
    sections = ("training", "reward_training") if config.get("reward") == "train" else ("training",)
    for section in sections:
        size = settings.pop(f"{section}.per_device_train_batch_size", DEFAULT_BATCH)
        passes = settings.pop(f"{section}.gradient_accumulation_steps", 1)
        settings[f"{section}: batch of an optimizer step"] = size * passes * processes
    return settings


def refuse_other_run(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    if lines := differences(compared(stored), compared(wanted)):
        raise RunError(
            f"{path} holds a different run:\n{lines}\n"
            "Start with the run's own settings and inputs to resume it, or choose another output_dir."
        )
