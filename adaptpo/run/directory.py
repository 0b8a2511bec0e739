"""The run directory: what is done, what is stored, and how a killed run resumes.

A run is a sequence of phases. A phase is done when `state.json` records it, which happens after everything that the
phase produced is on disk. Long phases write shards of a fixed composition; a shard is a file that exists whole or not
at all. Training phases write checkpoints (see `adaptpo.training.checkpoints`). What is read is first compared with what
was written (see `adaptpo.run.manifest`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from adaptpo.distributed.executor import HERE, Executor
from adaptpo.distributed.ranks import ALONE, Ranks
from adaptpo.distributed.repeatable import use_deterministic_operations
from adaptpo.errors import ConfigError, DataError, ModelError, RunError
from adaptpo.run.checked_files import RECORDS
from adaptpo.run.file_locks import SHARED_FOLDER, problem_of_shared_lock, unlockable
from adaptpo.run.files import JsonLines, write_text
from adaptpo.run.identity import flatten, plain, refuse_other_run, rounding_changes, stored_config
from adaptpo.run.left_out import LeftOut
from adaptpo.run.machine import machine_faults
from adaptpo.run.manifest import MISSING, checksum, checksum_of
from adaptpo.run.progress import caution
from adaptpo.run.shards import Shards
from adaptpo.run.state import dependents, log_digests, write_state
from adaptpo.types import Row

REFUSALS = (ConfigError, DataError, ModelError)
"""What ends a run for good: the same command would end in the same way."""
Summary = dict[str, Any]
"""What `state.json` stores about a finished phase."""


class RunDirectory(Shards):
    """One run on disk; holds the lock on it until closed.

    Among the processes that work on a run together, rank 0 locks and records; the others read, and write their shards.

    Raises RunError if another process is working on the run.
    """

    def __init__(self, path: Path, ranks: Ranks = ALONE, executor: Executor = HERE) -> None:
        super().__init__(path, ranks, executor)
        self.metrics = JsonLines(path / "metrics.jsonl")
        self.dropped = JsonLines(path / "dropped.jsonl")
        self.listeners: list[Callable[[Row], None]] = []
        """They get, on rank 0, every record of the metrics."""
        self.threads: int | None = None
        """The number of threads that the run computes with, here and on workers."""
        self.repeatable = False
        """Whether the run computes with deterministic operations, here and on workers."""
        ranks.on_first(self._lock)
        self._require_shared_lock()

    def _lock(self) -> None:
        self._created = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self._found = {file.name for file in self.path.iterdir()} if self.path.is_dir() else set()
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
        except OSError as error:
            self.close()
            raise unlockable(self.path, f"gives no locks ({error.strerror})", SHARED_FOLDER) from error
        self._lock_file.truncate(0)
        self._lock_file.write(f"process {os.getpid()}")
        self._lock_file.flush()

    def _require_shared_lock(self) -> None:
        """Raises RunError on all ranks if one of them cannot see rank 0's lock: all append to the run's records."""
        problem = None if self.ranks.is_first else problem_of_shared_lock(self.path / "lock")
        for rank, found in enumerate(self.ranks.gather(problem)):
            if found is not None:
                self.close()
                raise unlockable(self.path, f"{found} (process {rank})", SHARED_FOLDER)

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
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.repeatable:
            use_deterministic_operations()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.ranks.is_first and self._is_refused(kind):
            self._leave_nothing_new()
        self.close()

    def _is_refused(self, error: type[BaseException]) -> bool:
        """Whether this start began the run, and the error ends it before a phase is done.

        Other errors than a refusal keep a phase that has begun: the same command may finish it. So do rows that were
        left out: the reasons say what to correct.
        """
        if self.config_path.name in self._found:
            return False
        phases = self.state["phases"]
        done = any(facts.get("done") for facts in phases.values())
        return not done and (not phases or (issubclass(error, REFUSALS) and not self.dropped.read()))

    def _leave_nothing_new(self) -> None:
        for file in self.path.iterdir():
            if file.name not in self._found:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        with suppress(OSError):  # Another run has begun beside it.
            for folder in self._created:
                folder.rmdir()

    # Identity of the run

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    def claim(self, config: dict[str, Any]) -> bool:
        """Makes this the directory of the run with this resolved config; returns True if the run is being resumed.

        A run that has done no work yet can still change, because its recipe or data may just have been fixed.

        Raises RunError if the directory holds a run with another config or other inputs, files but no run, or a damaged
        `config.yaml`.
        """
        text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
        self._restore_config(text)
        if not self.config_path.exists():
            self._refuse_strangers()
        elif self._holds_work():
            self._resume(plain(config))
            return True
        shutil.rmtree(self.path / "snapshots", ignore_errors=True)
        write_text(self.config_path, text)
        write_state(self.path, self.state | {"config": checksum(self.config_path)})
        return False

    def _resume(self, wanted: dict[str, Any]) -> None:
        refuse_other_run(self.path, self.stored_config, wanted)
        changed = rounding_changes(self.stored_config, wanted)
        if changed != self.state.get("changed", {}):
            write_state(self.path, self.state | {"changed": changed})
        for key, value in changed.items():
            before = flatten(self.stored_config).get(key)
            caution(f"{key} is {value} from here on, and was {before}: results may differ by rounding", True)

    @property
    def stored_config(self) -> dict[str, Any]:
        return stored_config(self.path)

    def config_fault(self) -> str | None:
        """What is wrong with `config.yaml`; None before any work was done."""
        recorded = self.state.get("config")
        if recorded is None or not self._holds_work():
            return None
        if not self.config_path.exists():
            return MISSING
        return None if checksum(self.config_path) == recorded else "is not what the run wrote"

    def _restore_config(self, text: str) -> None:
        """Writes a damaged config again if this start has the very same one."""
        if (fault := self.config_fault()) is None:
            return
        if checksum_of(text) != self.state["config"]:
            raise RunError(
                f"{self.config_path} {fault}, and this start has other settings than those whose checksum is in "
                "state.json. Restore the file that is not this run's, or start once with the very recipe, paths and "
                "options of the first start, which writes config.yaml again"
            )
        write_text(self.config_path, text)
        self.tell("config.yaml", fault, "written again: this start has the settings whose checksum the run kept")

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
    def finished(self) -> bool:
        """Whether every phase that has begun is done, the last one too."""
        return self.done("final") and all(facts["done"] for facts in self.state["phases"].values())

    def phase(self, name: str, work: Callable[[], Row]) -> Row:
        """Runs `work` on every rank unless the phase is done. Stores rank 0's summary (counts, for instance) in
        `state.json`, with its wall and CPU time and what it wrote.

        Raises RunError if a phase that was made again differs from what later phases have read.
        """
        facts = self.state["phases"].get(name, {})
        if not facts.get("done"):
            begun = {"attempts": facts.get("attempts", 0) + 1} | {k: facts[k] for k in ("was",) if k in facts}
            self._record(name, {"done": False, **begun})
            self.current, started = name, (time.perf_counter(), time.process_time())
            with machine_faults(name):
                summary = work()
            self.ranks.wait()
            self.current = RECORDS
            spent = (time.perf_counter() - started[0], time.process_time() - started[1])
            times = {"seconds": round(spent[0], 3), "cpu_seconds": round(spent[1], 3)}
            self._finish(name, {"done": True, "attempts": begun["attempts"], **times, **summary}, begun.get("was"))
            self.ranks.wait()
        facts = self.state["phases"][name]
        if "changed" in facts:
            raise RunError(
                f"{name} was made again and differs from what {', '.join(facts['changed'])} have read; "
                f"`adaptpo repair {self.path} --apply` removes what they made of it, and the next start makes it again"
            )
        return facts

    def _finish(self, name: str, facts: Row, was: Row | None) -> None:
        """Records a finished phase, once everything that it wrote and logged is on disk."""
        if not self.ranks.is_first:
            return
        self.manifest.refresh()
        wrote = {artefact: asdict(digest) for artefact, digest in self.manifest.of_phase(name).items()}
        later = dependents(name, self.state["phases"])
        changed = {"changed": later} if was is not None and later and was != wrote else {}
        for log in (self.manifest.log, self.metrics, self.dropped):
            log.flush()
        self._record(name, facts | {"artefacts": wrote} | changed)

    def mark_opened(self) -> None:
        """Records that everything before the first iteration is done; other runs may then copy it."""
        if self.ranks.is_first:
            write_state(self.path, self.state | {"opened": True})

    def _record(self, name: str, facts: Row) -> None:
        if not self.ranks.is_first:
            return
        state = self.state
        state["phases"][name] = facts
        if facts["done"]:
            state["logs"] = {log.path.name: log_digests(log.path) for log in (self.metrics, self.dropped)}
        write_state(self.path, state)

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

    def log_anew(self, phase: str, values: Row, iteration: int | None = None) -> None:
        """Like `log`, in place of what an earlier attempt of the phase logged under these names."""
        if self.ranks.is_first:
            self.metrics.discard(lambda r: r["phase"] == phase and not values.keys().isdisjoint(r))
            self.log_own(phase, values, iteration)

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


OF_PHASES = ("done", "attempts", "seconds", "cpu_seconds", "artefacts", "changed")
"""What `state.json` has about every phase, beside its summary."""


def metrics_of(facts: Summary) -> Summary:
    """The summary of a phase in `state.json`."""
    return {name: value for name, value in facts.items() if name not in OF_PHASES}


@contextmanager
def open_run(path: Path, ranks: Ranks = ALONE, executor: Executor = HERE) -> Iterator[RunDirectory]:
    with RunDirectory(path, ranks, executor) as run:
        yield run
