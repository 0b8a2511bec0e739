"""A server that takes new weights while it runs serves one run at a time."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import IO

from adaptpo.errors import GenerationError
from adaptpo.remote.store import content_key


@dataclass(frozen=True)
class Lease:
    """The right to load weights into a server; it ends with `give_back`, or with the process. A user's processes
    on one machine respect it."""

    file: IO[bytes]

    def give_back(self) -> None:
        self.file.close()


def lease_of(address: str) -> Lease:
    """Raises GenerationError if another process holds it."""
    file = Path(gettempdir(), f"adaptpo-{os.getuid()}-{content_key(address)[:16]}.lock").open("ab")  # noqa: SIM115 - the lease holds it.
    if not is_taken(file):
        file.close()
        raise GenerationError(
            f"another run generates with the server at {address} and loads its own policies into it; wait until that "
            "phase is over and start the same command again, or start a second server"
        )
    return Lease(file)


def is_taken(file: IO[bytes]) -> bool:
    """Whether the lock was free, and is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
