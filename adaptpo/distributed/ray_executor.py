"""Ray as executor: workers that hold a phase's model, wherever Ray has room for them.

What a phase computes is a function of a shard's number. The function is sent to each worker once, with settings and
paths but without models, which the worker loads by itself. Results are sent back, and the process that owns the run
writes them. A shard that is computed twice, because a worker was given up too early, is therefore written once.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from adaptpo.config.executor import ExecutorSettings
from adaptpo.distributed.quiet import turn_off_telemetry
from adaptpo.distributed.repeatable import explained
from adaptpo.errors import AdaptpoError, ConfigError, RunError

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

RETRIES = 2
"""Maximum number of times a shard is given to another worker after one died on it; then the run ends."""
REACHED_WITHIN = 10
"""Timeout for reaching a cluster, in seconds."""
PYTHON_ERRORS = (pickle.PicklingError, TypeError, AttributeError, ImportError)
"""Errors of an object that cannot be pickled, or cannot be unpickled elsewhere."""
LOST = (
    "Ray lost a worker {} times on the same shard, or could not start one: {}\nFinished shards are saved; start the "
    "same command again to resume. If a worker was killed for its memory use, lower max_tokens_per_batch or "
    "generation.memory_gb, or run fewer workers per machine (executor.workers)"
)


class RayExecutor:
    """Distributes shards to a pool of workers that ends with the phase, so that training has the machine to itself."""

    def __init__(self, settings: ExecutorSettings) -> None:
        self.settings = settings
        self.joined = False
        """Whether this executor connected to Ray, and disconnects at the end."""

    def start(self, device: torch.device, release: Callable[[], None]) -> None:
        self.release = release
        self.resource, self.share = ("GPU", 1) if device.type == "cuda" else ("CPU", self.settings.num_cpus)
        if not ray.is_initialized():
            connect(self.settings)
            self.joined = True
        room = self._room()
        self.workers = self.settings.workers or room
        if not 0 < self.workers <= room:
            raise ConfigError(
                f"Ray has room for {room} workers with {self.share} {self.resource} each; lower executor.workers or "
                "executor.num_cpus, or join a larger cluster with executor.address"
            )

    def _room(self) -> int:
        """Number of workers that fit on Ray's machines at a time."""
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(int(resources.get(self.resource, 0) // self.share) for resources in machines)

    def compute(
        self, work: Callable[[int], Result], numbers: Sequence[int], at_once: int = 1
    ) -> Generator[tuple[int, Result]]:
        if not numbers:
            return
        self.release()
        with system_failures():
            pool = WorkerPool(partial(self._start_worker, ray.put(pack(work))), min(self.workers, len(numbers)))
            try:
                yield from pool.compute(numbers)
            finally:
                pool.close()

    def _start_worker(self, packed: ray.ObjectRef) -> Any:
        options = {f"num_{self.resource.lower()}s": self.share, "scheduling_strategy": "SPREAD"}
        # In a list, because Ray would otherwise pass the content itself to the worker.
        return ray.remote(**options)(Worker).remote([packed], str(Path.cwd()))

    def close(self) -> None:
        if self.joined:
            ray.shutdown()
            self.joined = False


class Worker:
    """Computes shards in a Ray process, and keeps what the first one loaded for the others."""

    def __init__(self, packed: list[ray.ObjectRef], folder: str) -> None:
        self.packed, self.folder = packed[0], folder

    @cached_property
    def work(self) -> Callable[[int], Any]:
        enter(self.folder)
        return unpack(ray.get(self.packed))

    def ready(self) -> None:
        """Returns once the worker has its place on a machine."""

    def compute(self, number: int) -> bytes:
        """The pickled result, or the pickled error with which the work ended."""
        try:
            with explained():
                outcome: Any = self.work(number)
        except AdaptpoError as error:
            outcome = error
        return pickle.dumps(outcome)


class WorkerPool:
    """Workers, of which whichever is free computes the next shard. One that dies is replaced, and its shard computed
    first by any other."""

    def __init__(self, start: Callable[[], Any], count: int) -> None:
        self.start = start
        self.asked: dict[ray.ObjectRef, tuple[Any, int | None]] = {}
        """What workers were asked for: the result of a shard, or None: to say that they have started."""
        self.workers = list[Any]()
        self.free = deque[Any]()
        self.losses = Counter[int | None]()
        self.failures = list[Exception]()
        for _ in range(count):
            self._start_worker()

    def compute(self, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Yields each number with its result, as they finish. After a failure nothing new begins, what is in progress
        is still yielded, and then the failure is raised."""
        self.waiting = deque(numbers)
        while self.waiting or any(number is not None for _, number in self.asked.values()):
            [done], _ = ray.wait([*self.asked])
            worker, number = self.asked.pop(done)
            try:
                outcome = ray.get(done)
                result = None if number is None else opened(outcome)
            except RayActorError as error:
                self._replace_worker(worker, number, error)
            except (RayError, AdaptpoError) as error:
                self._fail(error)
            else:
                self.free.append(worker)
                self._ask()
                if number is not None:
                    yield number, result
        for failure in self.failures:
            raise failure

    def _start_worker(self) -> None:
        worker = self.start()
        self.workers.append(worker)
        self.asked[worker.ready.remote()] = worker, None

    def _ask(self) -> None:
        while self.waiting and self.free:
            worker, number = self.free.popleft(), self.waiting.popleft()
            self.asked[worker.compute.remote(number)] = worker, number

    def _replace_worker(self, worker: Any, number: int | None, error: Exception) -> None:
        ray.kill(worker)
        self.losses[number] += 1
        if self.losses[number] > RETRIES:
            self._fail(error)
        elif not self.failures:
            self.waiting.extendleft([] if number is None else [number])
            self._start_worker()
            self._ask()

    def _fail(self, error: Exception) -> None:
        self.failures.append(error)
        self.waiting.clear()

    def close(self) -> None:
        for worker in self.workers:
            ray.kill(worker)


def enter(folder: str) -> None:
    """Enters the folder that the run was started in, because the run's paths may be relative to it."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise RunError(
            f"a worker on {socket.gethostname()} cannot enter {folder} ({error.strerror}); start the run in a folder "
            "that all machines share"
        ) from error


def opened(outcome: bytes) -> Any:
    """The result of a worker. Raises the error with which the worker ended, if any."""
    value = pickle.loads(outcome)
    if isinstance(value, AdaptpoError):
        raise value
    return value


def pack(work: Callable[[int], Any]) -> bytes:
    """Pickles the work. Raises ConfigError if it holds something that cannot leave this process."""
    try:
        return ray.cloudpickle.dumps(work)
    except PYTHON_ERRORS as error:
        raise ConfigError(
            f"executor ray sends the computation to workers, but part of it cannot be sent: {error}; name a reward "
            "function as python:module:function, or set executor to local"
        ) from error


def unpack(packed: bytes) -> Callable[[int], Any]:
    """Unpickles the work. Raises RunError if this machine lacks a module that it needs."""
    try:
        return ray.cloudpickle.loads(packed)
    except PYTHON_ERRORS as error:
        raise RunError(
            f"a worker on {socket.gethostname()} cannot import what the run needs: {error}; install it there, "
            "or put it into the folder where the run is started"
        ) from error


def connect(settings: ExecutorSettings) -> None:
    """Starts Ray here, or joins the cluster at the address. Raises ConfigError if that fails."""
    turn_off_telemetry()
    # Otherwise Ray's core warns about each pool of workers.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    own = {"address": "local", "include_dashboard": False, "num_cpus": settings.cores}
    options = {"address": settings.address} if settings.address else own
    try:
        reach(settings.address)
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"join Ray at executor.address {settings.address}" if settings.address else "start Ray here"
        raise ConfigError(f"cannot {where}: {error}; docs/scale.md has the commands for a cluster") from error


def reach(address: str | None) -> None:
    """Raises OSError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    if address not in (None, "auto"):
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=REACHED_WITHIN).close()


@contextmanager
def system_failures() -> Iterator[None]:
    """Turns a lost worker into a RunError; an error in the work itself passes through with the worker's traceback."""
    try:
        yield
    except RayTaskError:
        raise
    except RayError as error:
        raise RunError(LOST.format(RETRIES + 1, " ".join(str(error).split()))) from error
