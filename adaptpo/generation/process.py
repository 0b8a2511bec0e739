"""Generation servers: one that runs somewhere, or one that we start, restart when it dies, and end."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from adaptpo.errors import ConfigError, GenerationError
from adaptpo.generation import watch

LOOK_EVERY = 0.2
"""Seconds between two looks whether a server is up."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""The model lies on disk, and nobody needs to hear of it."""
SHOWN_OF_LOG = 1500


class Server(Protocol):
    """`url` is its address up to `/v1`; `model` the name of the model there."""

    @property
    def url(self) -> str: ...

    @property
    def model(self) -> str: ...

    def revive(self) -> None:
        """Bring it back where it died. Raises GenerationError when that does not help."""
        ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class RunningServer:
    """A server that others run."""

    url: str
    model: str

    def revive(self) -> None:
        """Whoever runs it does that."""

    def stop(self) -> None:
        """It goes on."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def words_of(command: str, model: str, port: int) -> list[str]:
    """The command with its places filled. Raises ConfigError where it cannot be taken apart."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"generation.command: {error}; quote it as for a shell") from error
    return [word.replace("{model}", model).replace("{port}", str(port)) for word in words]


@dataclass
class StartedServer:
    """Runs `command` for the policy in the folder `model`, with its output in `log`.

    `start_timeout`: seconds until `/health` answers. `restarts`: how often it may be started again. The server ends
    with this process, however that ends; see `adaptpo.generation.watch`.
    """

    command: str
    model: str
    log: Path
    start_timeout: float
    restarts: int
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    def start(self) -> None:
        """Returns when the server is up. Raises GenerationError where it ends or takes too long."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = words_of(self.command, self.model, self.port)
        with self.log.open("ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [sys.executable, watch.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT | os.environ,
                start_new_session=True,
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self) -> None:
        until = time.monotonic() + self.start_timeout
        while not self._is_up():
            if not self._is_alive():
                raise GenerationError(f"the generation server ended before it was up; {self._end_of_log()}")
            if time.monotonic() > until:
                raise GenerationError(
                    f"the generation server was not up within {self.start_timeout:g} s; set generation.start_timeout "
                    f"higher, or mend the command; {self._end_of_log()}"
                )
            time.sleep(LOOK_EVERY)

    def _is_up(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
        except OSError:  # Refused, reset, timed out, or a state that is not 200.
            return False
        return self._is_alive()

    def _is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _end_of_log(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace").strip()
        return f"the end of {self.log}:\n{text[-SHOWN_OF_LOG:]}"

    def revive(self) -> None:
        with self.lock:
            if self._is_alive():
                return
            if not self.restarts:
                raise GenerationError(f"the generation server keeps dying; {self._end_of_log()}")
            self.restarts -= 1
            self.stop()
            self.start()

    def stop(self) -> None:
        """End it and wait for that."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.process = None
