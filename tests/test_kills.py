"""Twenty kills at random moments: of a run, of one of its two processes, of the server that generates for it."""

from __future__ import annotations

import multiprocessing.connection
import random
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from adaptpo.generation import watch
from tests.chatty import save_chatty
from tests.ranks import ends, start_ranks
from tests.runs import SETTINGS, assert_same_run, start_process
from tests.tiny import save_policy, vowel_reward

pytestmark = pytest.mark.engines

KILLS_OF_RUN, KILLS_OF_RANK, KILLS_OF_SERVER = 8, 6, 6
SERVE = f"{Path(sys.executable).with_name('transformers')} serve {{model}} --device cpu --port {{port}}"

Launch = Callable[[Path], list[Any]]
"""Starts or resumes the run in this folder; its processes."""


def seconds_of(launch: Launch, out: Path) -> float:
    started = time.monotonic()
    assert set(ends(launch(out))) == {0}
    return time.monotonic() - started


def killed(processes: list[Any], moment: float, victim: int) -> bool:
    """Whether the victim still ran after `moment` seconds, and so was killed. All have ended."""
    multiprocessing.connection.wait([processes[victim].sentinel], timeout=moment)
    running = processes[victim].exitcode is None
    if running:
        processes[victim].kill()
    codes = ends(processes)
    assert set(codes) == {0} or codes[victim] == -9
    return codes[victim] == -9  # It may have ended between the look and the kill.


def finished_runs(launch: Launch, folder: Path, kills: int, longest: float) -> Iterator[Path]:
    """Runs that ended well after being killed and resumed, `kills` times between them."""
    moments = random.Random(0)
    for number in count():
        out = folder / str(number)
        while kills:
            processes = launch(out)
            if not killed(processes, moments.uniform(0, longest), moments.randrange(len(processes))):
                break
            kills -= 1
        else:
            assert set(ends(launch(out))) == {0}
        yield out
        if not kills:
            return


def settings(processes: int) -> dict[str, Any]:
    training = SETTINGS["training"] | {"per_device_train_batch_size": 4 // processes, "use_cpu": True}
    return {"rows": 38, "reward": vowel_reward, "training": training, "num_iterations": 1}


@pytest.mark.parametrize(("processes", "kills"), [(1, KILLS_OF_RUN), (2, KILLS_OF_RANK)])
def test_run_killed_at_random_moments_ends_as_if_nothing_had_happened(
    processes: int, kills: int, tmp_path: Path
) -> None:
    """Same tables, and the same bits in all weights."""
    policy = save_policy(tmp_path / "policy")

    def launch(out: Path) -> list[Any]:
        arguments = {"model": policy, "out": out, **settings(processes)}
        return [start_process(**arguments)] if processes == 1 else start_ranks(processes, **arguments)

    straight = tmp_path / "straight"
    longest = seconds_of(launch, straight)
    for out in finished_runs(launch, tmp_path, kills, longest):
        assert_same_run(straight, out)


def server_of(run: Any) -> psutil.Process | None:
    """The server that a run has started, not what watches over it, while it is there."""
    try:
        below = psutil.Process(run.pid).children(recursive=True)
        return next((process for process in below if is_server(process.cmdline())), None)
    except psutil.NoSuchProcess:
        return None


def is_server(command: list[str]) -> bool:
    return "serve" in command and watch.__file__ not in command


def kill_server(run: Any, moment: float) -> bool:
    """Whether the server of the run was killed, this long after it appeared; the run goes on, or has ended."""
    while (server := server_of(run)) is None:
        run.join(0.05)
        if run.exitcode is not None:
            return False
    run.join(moment)
    running = server.is_running()
    if running:
        server.kill()
    return running


def test_run_whose_server_is_killed_at_random_moments_gets_the_same_responses(tmp_path: Path) -> None:
    """Within the run, which starts it again; where a server dies before it is up, the run ends and is resumed."""
    policy = save_chatty(tmp_path / "policy")
    generation = {"engine": "server", "command": SERVE, "restarts": KILLS_OF_SERVER, "max_new_tokens": 10}
    arguments = {"reward": vowel_reward, "method": "online_dpo", "rows": 16, "held_out": 0, "num_iterations": 1}

    def launch(out: Path) -> list[Any]:
        return [start_process(model=policy, out=out, generation=generation, warmup_epochs=0, **arguments)]

    straight = tmp_path / "straight"
    longest = seconds_of(launch, straight)
    moments, kills = random.Random(1), 0
    for number in count():
        out = tmp_path / str(number)
        while True:
            (run,) = launch(out)
            while kills < KILLS_OF_SERVER and run.exitcode is None:
                kills += kill_server(run, moments.uniform(0, longest))
            run.join()
            if run.exitcode == 0:
                break
        assert_same_run(straight, out)
        if kills == KILLS_OF_SERVER:
            return
