"""Faults of the machine and signals: one message with the phase, the state kept, the documented exit status."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from adaptpo.errors import ConfigError, MachineError, RunError
from adaptpo.run.directory import RunDirectory
from adaptpo.run.files import JsonLines, whole_file
from adaptpo.run.machine import fault_of
from adaptpo.run.signals import Interrupted, Signals


def wrapped(text: str, cause: BaseException) -> Exception:
    error = ValueError(text)
    error.__cause__ = cause
    return error


FAULTS: list[tuple[BaseException, str]] = [
    (MemoryError(), "memory"),
    (pa.ArrowMemoryError("malloc of size 99 failed"), "memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "accelerator memory"),
    (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), "accelerator memory"),
    (RuntimeError("CUDA error: out of memory"), "accelerator memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "accelerator memory"),
    (RuntimeError("CUDA error: device-side assert triggered"), "accelerator"),
    (RuntimeError("NCCL communicator was aborted"), "accelerator"),
    (OSError(errno.ENOSPC, "No space left on device"), "full"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "full"),
    (RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0"), "full"),
    (OSError("[Errno 28] Error writing bytes to file. Detail: No space left on device"), "full"),
    (OSError(errno.EIO, "Input/output error"), "disk"),
    (OSError(errno.ESTALE, "Stale file handle"), "disk"),
    (OSError("I/O error: Input/output error (os error 5)"), "disk"),
    (OSError(errno.EMFILE, "Too many open files"), "limits"),
    (RuntimeError("can't start new thread"), "processes"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "processes"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "killed"),
    (wrapped("cannot save", OSError(errno.EIO, "Input/output error")), "disk"),
    (RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:4: Connection reset by peer"), "peer"),
]


@pytest.mark.parametrize(("error", "kind"), FAULTS, ids=lambda value: value if isinstance(value, str) else None)
def test_a_fault_of_the_machine_names_the_phase_and_leaves_the_run_resumable(
    error: BaseException, kind: str, tmp_path: Path
) -> None:
    assert fault_of(error) == kind

    def fail() -> dict[str, int]:
        raise error

    with RunDirectory(tmp_path) as run:
        run.phase("data", lambda: {"kept": 3})
        with pytest.raises(MachineError, match=r"phase iterations/0/train: .*start the same command again"):
            run.phase("iterations/0/train", fail)
        assert run.done("data") and not run.done("iterations/0/train")
        assert run.phase("iterations/0/train", lambda: {"steps": 1})["attempts"] == 2


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("no"), KeyError("a"), RuntimeError("shapes do not fit"), OSError(errno.ENOENT, "no file")),
        *(OSError(errno.ETIMEDOUT, "Connection timed out"), wrapped("no answer", TimeoutError(110, "timed out"))),
    ],
)
def test_a_mistake_of_ours_stays_what_it_is(error: Exception, tmp_path: Path) -> None:
    def fail() -> dict[str, int]:
        raise error

    with RunDirectory(tmp_path) as run, pytest.raises(type(error)):
        run.phase("data", fail)


def test_what_a_user_can_fix_keeps_its_words(tmp_path: Path) -> None:
    def fail() -> dict[str, int]:
        raise ConfigError("set it")

    with RunDirectory(tmp_path) as run, pytest.raises(ConfigError, match=r"^set it$"):
        run.phase("data", fail)
    assert issubclass(MachineError, RunError)


# --- signals ---------------------------------------------------------------------------------------------------------


def test_a_signal_waits_for_the_write_in_progress() -> None:
    signals, seen = Signals(), []
    with pytest.raises(Interrupted) as caught, signals.kept_out():
        with signals.kept_out():
            signals._take(signal.SIGTERM, None)
            seen.append("inner")
        seen.append("outer")
    assert seen == ["inner", "outer"] and caught.value.status == 143


def test_a_signal_between_writes_ends_at_once() -> None:
    with pytest.raises(Interrupted) as caught:
        Signals()._take(signal.SIGINT, None)
    assert caught.value.status == 130 and isinstance(caught.value, KeyboardInterrupt)


def test_what_is_written_while_ending_is_not_interrupted_again() -> None:
    signals = Signals()
    with pytest.raises(Interrupted), signals.kept_out():
        signals._take(signal.SIGTERM, None)
    with signals.kept_out():
        pass


def test_writes_of_other_threads_do_not_hold_a_signal_back() -> None:
    signals, inside, leave = Signals(), threading.Event(), threading.Event()

    def write() -> None:
        with signals.kept_out():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=write)
    thread.start()
    inside.wait()
    with pytest.raises(Interrupted):
        signals._take(signal.SIGTERM, None)
    leave.set()
    thread.join()


SCRIPT = """
import os, signal, sys
from pathlib import Path
from adaptpo import cli
from adaptpo.run.files import JsonLines, whole_file

def work(options):
    out = Path(sys.argv[1])
    with whole_file(out / "whole.txt") as path:
        path.write_text("half, ")
        os.kill(os.getpid(), signal.SIG{name})
        {again}
        path.write_text("half, whole")
    JsonLines(out / "log.jsonl").append({{"not": "reached"}})

class Options:
    run_command = staticmethod(work)

class Parser:
    def parse_args(self, _): return Options()

cli.build_parser = Parser
cli.main([])
"""


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("INT", 130)])
def test_the_command_line_finishes_the_write_and_says_how_to_resume(name: str, status: int, tmp_path: Path) -> None:
    found = run_script(SCRIPT.format(name=name, again=""), tmp_path)
    assert found.returncode == status
    assert found.stderr.strip() == f"adaptpo: interrupted (SIG{name}); start the same command again to resume"
    assert (tmp_path / "whole.txt").read_text() == "half, whole" and not (tmp_path / "log.jsonl").exists()


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    found = run_script(SCRIPT.format(name="TERM", again="os.kill(os.getpid(), signal.SIGTERM)"), tmp_path)
    assert found.returncode == 143 and found.stderr == ""
    assert not (tmp_path / "whole.txt").exists()


def run_script(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_files_of_a_run_are_written_out_of_a_signal_s_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = Signals()
    monkeypatch.setattr("adaptpo.run.files.SIGNALS", signals)
    with pytest.raises(Interrupted), whole_file(tmp_path / "a") as path:
        signals._take(signal.SIGTERM, None)
        path.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"
    JsonLines(tmp_path / "b").append({"a": 1})
    assert JsonLines(tmp_path / "b").read() == [{"a": 1}]
