"""Runs tasks in separate processes, a few at a time, one thread each. A task that fails or dies stops no other."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from tqdm import tqdm

from adaptpo.config.secrets import masked_text
from adaptpo.errors import AdaptpoError


def start_method() -> str:
    """How processes start. A fork of a process that has touched CUDA cannot use it, and the preloaded libraries do."""
    return "spawn" if torch.cuda.is_available() else "forkserver"


context: Any = multiprocessing.get_context(start_method())
context.set_forkserver_preload(["adaptpo.sandbox.tables.work", "adaptpo.sandbox.tables.sandbox_world"])
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Task:
    work: Callable[..., None]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Finished:
    """A task's number, its error (None if it succeeded) and its wall time."""

    number: int
    error: str | None
    seconds: float


@dataclass(frozen=True)
class Running:
    number: int
    process: Any
    started: float


def run_tasks(tasks: Sequence[Task], jobs: int) -> Generator[Finished, None, None]:
    """Yields each task when it ends. Closing the generator terminates running tasks, as Ctrl-C does."""
    waiting = deque(enumerate(tasks))
    running: dict[Connection, Running] = {}
    with environment(ONE_THREAD):
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    start(*waiting.popleft(), running)
                for connection in wait(list(running)):
                    assert isinstance(connection, Connection)
                    yield finish(connection, running.pop(connection))
        finally:
            stop(running.values())


def start(number: int, task: Task, running: dict[Connection, Running]) -> None:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=report_of, args=(task, sender))
    process.start()
    sender.close()  # The process's copy is then the only one: closing it ends `recv` here.
    running[receiver] = Running(number, process, time.perf_counter())


def report_of(task: Task, sender: Connection) -> None:
    """Runs a task in its process; sends None, or the error."""
    tqdm.set_lock(threading.RLock())  # Its own is a semaphore, which a terminated process leaves behind.
    try:
        task.work(*task.arguments)
        sender.send(None)
    except KeyboardInterrupt:
        return  # The listening process was interrupted as well.
    except AdaptpoError as error:
        sender.send(masked_text(str(error)))
    except Exception as error:  # noqa: BLE001 (the other tasks must continue)
        print(masked_text(traceback.format_exc()), file=sys.stderr)
        sender.send(masked_text(f"{type(error).__name__}: {error}"))


def finish(connection: Connection, task: Running) -> Finished:
    try:
        error = connection.recv()
    except EOFError:
        task.process.join()
        error = f"its process ended with exit code {task.process.exitcode}; start the same command again to resume"
    connection.close()
    task.process.join()
    return Finished(task.number, error, time.perf_counter() - task.started)


def stop(tasks: Iterable[Running]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.process.terminate()
    for task in tasks:
        task.process.join()


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Sets variables for the processes started here; libraries read them on import."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})
