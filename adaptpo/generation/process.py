"""Generation servers: one that already runs, or one that the run starts, restarts when it dies, and ends."""

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
"""Seconds between two checks whether a server is up."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""The model is on disk: a server needs no downloads, and sends no usage statistics."""
SHOWN_OF_LOG = 1500


class Server(Protocol):
    """A generation server. `url` is its address up to `/v1`; `model` is the name of the model there."""

    @property
    def url(self) -> str: ...

    @property
    def model(self) -> str: ...

    def revive(self) -> None:
        """Restarts the server if it died. Raises GenerationError if that does not help."""
        ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class RunningServer:
    """A server that the run did not start."""

    url: str
    model: str

    def revive(self) -> None:
        """Does nothing: the server's operator restarts it."""

    def stop(self) -> None:
        """Does nothing: the server keeps running."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def words_of(command: str, model: str, port: int) -> list[str]:
    """The words of the command, with `{model}` and `{port}` filled in. Raises ConfigError if it cannot be split."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"generation.command: {error}; quote it as for a shell") from error
    return [word.replace("{model}", model).replace("{port}", str(port)) for word in words]


@dataclass
class StartedServer:
    """Runs `command` for the policy in the folder `model`, with its output in `log`.

    `start_timeout`: maximum seconds until `/health` answers. `restarts`: maximum number of restarts. The server ends
    with this process, however this process ends; see `adaptpo.generation.watch`.
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
        """Returns when the server is up. Raises GenerationError if it ends or takes too long."""
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
                    f"the generation server was not up within {self.start_timeout:g} s; set a higher "
                    f"generation.start_timeout, or correct the command; {self._end_of_log()}"
                )
            time.sleep(LOOK_EVERY)

    def _is_up(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
        except OSError:  # Refused, reset, timed out, or a status other than 200.
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
        """Ends the server and waits until it has ended."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.process = None
