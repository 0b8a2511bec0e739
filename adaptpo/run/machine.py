"""Faults of the machine, by what libraries raise for them: memory, accelerator, descriptors, disks, peers."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from adaptpo.errors import MachineError

RESUME = "Everything finished before is kept; start the same command again to resume"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
DISK = frozenset({errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EROFS})
LIMITS = frozenset({errno.EMFILE, errno.ENFILE})
NUMBER = re.compile(r"\[Errno (\d+)\]|\(?os error (\d+)")
WORDS = {
    "accelerator memory": re.compile(r"(CUDA|HIP|XPU|MPS backend)( error:)? out of memory|CUBLAS_STATUS_ALLOC_FAILED"),
    "accelerator": re.compile(r"CUDA error|CUDA driver|cuDNN|cublas|HIP error|NCCL|device-side assert", re.IGNORECASE),
    "memory": re.compile(
        r"can't allocate memory|not enough memory|[Cc]annot allocate memory|malloc of size \d+ failed"
    ),
    "peer": re.compile(r"gloo/transport|Connection closed by peer"),
    "killed": re.compile(r"DataLoader worker .*(killed|exited unexpectedly)"),
    "full": re.compile(r"No space left on device|Disk quota exceeded|unexpected pos|file write failed"),
    "limits": re.compile(r"Too many open files"),
    "processes": re.compile(r"can't start new thread|Resource temporarily unavailable"),
    "disk": re.compile(r"Input/output error|Stale file handle"),
}
SAID = {
    "accelerator memory": "the accelerator's memory is used up. Lower max_tokens_per_batch or set "
    "training.activation_checkpointing; in a phase that generates, lower generation.memory_gb or batch_size. None of "
    "these changes the result by more than rounding",
    "accelerator": "the accelerator failed. If it happens again, test the device",
    "memory": "the machine's memory is used up. Lower max_tokens_per_batch, or end other processes",
    "peer": "another process of this run ended, or the network between them failed; its own message says why",
    "killed": "a data loader's process was killed, probably for its memory. Lower training.dataloader_num_workers",
    "full": "the disk is full: free some space. Nothing half-written counts as done",
    "limits": "too many files are open. Raise the limit (ulimit -n), or lower concurrency",
    "processes": "the machine starts no more threads or processes. Raise the limit (ulimit -u), or end other processes",
    "disk": "the disk or its connection failed. Check it before you resume",
}


def fault_of(error: BaseException) -> str | None:
    """What failed of the machine, by the keys of `SAID`; None if the error is none of its faults."""
    for part in chain_of(error):
        if kind := own_fault(part):
            return kind
    return None


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that caused it; libraries wrap the system's own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def own_fault(error: BaseException) -> str | None:
    name, text = type(error).__name__, str(error)[:2000]
    if name == "OutOfMemoryError":
        return "accelerator memory"
    if isinstance(error, MemoryError):
        return "memory"
    if not isinstance(error, OSError | RuntimeError) and name not in ("SafetensorError", "ArrowException"):
        return None
    found = by_number(error, text) or next((kind for kind, words in WORDS.items() if words.search(text)), None)
    return "accelerator" if found is None and name == "AcceleratorError" else found


def by_number(error: BaseException, text: str) -> str | None:
    found = NUMBER.search(text)
    number = getattr(error, "errno", None) or (int(found[1] or found[2]) if found else None)
    kinds = {"full": FULL, "disk": DISK, "limits": LIMITS, "memory": {errno.ENOMEM}, "processes": {errno.EAGAIN}}
    return next((kind for kind, numbers in kinds.items() if number in numbers), None)


def explained(error: BaseException, kind: str) -> MachineError:
    reason = " ".join(str(error).split())[:300]
    return MachineError(f"{SAID[kind]} ({type(error).__name__}: {reason}). {RESUME}.")


@contextmanager
def machine_faults(phase: str) -> Iterator[None]:
    """Turns a fault of the machine into one message that names the phase."""
    try:
        yield
    except MachineError as error:
        raise MachineError(f"phase {phase}: {error}") from error
    except Exception as error:
        if kind := fault_of(error):
            raise MachineError(f"phase {phase}: {explained(error, kind)}") from error
        raise
