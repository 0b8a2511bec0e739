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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from adaptpo.config.secrets import masked_text
from adaptpo.errors import ConfigError, GenerationError
from adaptpo.generation import watch
from adaptpo.generation.lease import Lease
from adaptpo.generation.server_log import STARTED, cause
from adaptpo.generation.weights import ReloadError, Weights

LOOK_EVERY = 0.2
"""Seconds between two checks whether a server is up."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""The model is on disk: a server needs no downloads, and sends no usage statistics."""
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")
"""What torchrun and accelerate tell the processes of a run; a server would take itself for one of them."""
LONGEST_LINE = 2**16
LOG_SECONDS = 5.0
"""How long the last lines of a server that ended are waited for."""


class Server(Protocol):
    """A generation server. `url` is its address up to `/v1`; `model` is the name of the model there; `note` is why it
    did not take the weights of a policy, if it was asked to."""

    @property
    def url(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def note(self) -> str: ...

    def revive(self) -> None:
        """Restarts the server if it died. Raises GenerationError if that does not help."""
        ...

    def start_over(self) -> bool:
        """Restarts a server that took its weights while it ran; returns False for any other."""
        ...

    def rest(self) -> None:
        """Called at the end of a phase: frees the accelerator."""
        ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class RunningServer:
    """A server that the run did not start; with a `lease`, no other run of the machine loads weights into it."""

    url: str
    model: str
    note: str = ""
    lease: Lease | None = None

    def revive(self) -> None:
        """Does nothing: the server's operator restarts it."""

    def start_over(self) -> bool:
        return False

    def rest(self) -> None:
        """The server keeps running, for other runs too."""
        if self.lease is not None:
            self.lease.give_back()

    def stop(self) -> None:
        """Does nothing: the server keeps running."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables without those of the launcher of several processes."""
    return {name: value for name, value in variables.items() if not name.startswith(LAUNCHER)}


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

    `start_timeout`: maximum seconds until `/health` answers, or until new weights are loaded. `restarts`: maximum
    number of restarts. `reloads`: it is a vLLM that takes new weights while it runs. `sleeps`: it frees the accelerator
    between two phases. The server ends with this process, however this process ends; see `adaptpo.generation.watch`.
    """

    command: str
    model: str
    log: Path
    start_timeout: float
    restarts: int
    environment: Mapping[str, str] = field(default_factory=dict)
    reloads: bool = False
    sleeps: bool = False
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    loaded: str | None = None
    """The folder whose weights it took while it ran."""
    asleep: bool = False
    note: str = ""
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    logger: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    def start(self) -> None:
        """Returns when the server is up. Raises GenerationError if it ends or takes too long."""
        self.stopped = False
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = words_of(self.command, self.model, self.port)
        with self.log.open("ab") as log:
            log.write(f"{STARTED}{masked_text(shlex.join(command))}\n".encode())
        self.process = subprocess.Popen(
            [sys.executable, watch.__file__, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT | own_environment(os.environ) | dict(self.environment),
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.logger = threading.Thread(target=keep_log, args=(self.process.stdout, self.log), daemon=True)
        self.logger.start()
        try:
            self._wait_until_up()
        except BaseException:
            self._end()
            raise

    def _wait_until_up(self) -> None:
        until = time.monotonic() + self.start_timeout
        while not self._is_up():
            if not self._is_alive():
                raise GenerationError(f"the generation server ended before it was up; {self._cause()}")
            if time.monotonic() > until:
                raise GenerationError(
                    f"the generation server was not up within {self.start_timeout:g} s; set a higher "
                    f"generation.start_timeout, or correct the command; {self._cause()}"
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

    def serve(self, folder: str, log: Path, restarts: int) -> None:
        """Serves the policy in the folder from now on: with new weights if it runs and takes them, else restarted."""
        self.restarts = restarts
        if self._is_alive() and self._took(folder):
            return
        self.stop()
        self.model, self.log = folder, log
        self.start()

    def _took(self, folder: str) -> bool:
        weights, self.note = Weights(self.address, self.start_timeout), ""
        try:
            (weights.wake if self.asleep else weights.load)(folder)
        except ReloadError as error:
            self.note = str(error)
            return False
        self.loaded, self.asleep = folder, False
        return True

    def _cause(self) -> str:
        self._finish_log()
        return cause(self.log)

    def _finish_log(self) -> None:
        if self.logger is not None and not self._is_alive():
            self.logger.join(LOG_SECONDS)

    def revive(self) -> None:
        with self.lock:
            if self._is_alive():
                return
            if self.stopped:
                raise GenerationError("the run has stopped its generation server")
            if not self.restarts:
                raise GenerationError(f"the generation server keeps dying; {self._cause()}")
            self.restarts -= 1
            loaded = self.loaded
            self._end()
            self.start()
            # By its first model's name, which the open requests contain.
            if loaded is not None and not self._took(loaded):
                raise GenerationError(f"the generation server died, and did not take its weights again: {self.note}")

    def start_over(self) -> bool:
        if self.loaded is None:
            return False
        folder = self.loaded
        self.stop()
        self.model = folder
        self.start()
        return True

    def rest(self) -> None:
        if not self.reloads or (self.sleeps and not self._fell_asleep()):
            self.stop()

    def _fell_asleep(self) -> bool:
        try:
            Weights(self.address, self.start_timeout).sleep()
        except ReloadError as error:
            self.note = str(error)
            return False
        self.asleep = True
        return True

    def stop(self) -> None:
        """Ends the server and waits until it has ended."""
        self.stopped = True
        self._end()

    def _end(self) -> None:
        self.loaded, self.asleep = None, False
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self._finish_log()
        self.process = None


def keep_log(output: IO[bytes], log: Path) -> None:
    """Copies what a server says to its log, without keys: servers show the arguments that they were started with."""
    with output, log.open("ab", buffering=0) as file:
        while line := output.readline(LONGEST_LINE):
            file.write(masked_text(line.decode(errors="replace")).encode())
