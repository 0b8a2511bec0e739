"""Runs of several kinds, killed at random moments and resumed until they end: the same weights, bit for bit.

A moment is an amount of CPU time, after which the kernel ends the process (SIGPROF, which nobody handles): how busy the
machine is makes no difference. Of two ranks, one is killed.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tests.campaign.commands import Train, save_tiniest, write_recipe
from tests.campaign.outcomes import Nonsense
from tests.ranks import assert_close_run, ends, free_port
from tests.runs import SETTINGS, assert_same_run

LONGEST = 300
"""Seconds after which a run counts as hanging."""
KILLED = -signal.SIGPROF
SIGNALS = {"kill": (), "TERM": (signal.SIGTERM,), "INT": (signal.SIGINT,), "TERM twice": (signal.SIGTERM,) * 2}
MOST = 12
"""Times that one run is ended; then it is left to finish."""
SHARES = (0.25, 0.5, 1.0)
"""A run is ended within one of these shares of its length, so that some get far and some are ended often."""
LISTENING = 0.1
"""Seconds of CPU time after which the command line has taken the signals over; before, Python's defaults end it."""
MET = 0.3
"""Seconds of CPU time after which two ranks have met. For one that is lost before, PyTorch's rendezvous waits minutes,
unless a launcher ends the other."""


@dataclass(frozen=True)
class Kind:
    """A kind of run: its settings beside those of `tests.runs`, its threads, and how many processes share it."""

    settings: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    ranks: int = 1
    held_out: int = 2


TRAINING = SETTINGS["training"]
TWO_RANKS = {"training": TRAINING | {"per_device_train_batch_size": 2, "use_cpu": True}, "num_iterations": 1}
KINDS: dict[str, Kind] = {
    "plain": Kind(),
    "LoRA": Kind({"peft": {"r": 2, "target_modules": ["q_proj", "v_proj"]}}),
    "reward training": Kind({"reward": "train"}),
    "warm-up": Kind({"warmup_epochs": 1, "num_iterations": 1}),
    "PPO's critic": Kind({"method": "ppo", "num_iterations": 1}),
    "MetaPO": Kind({"method": "metapo", "num_iterations": 1}),
    "two threads": Kind({"training": TRAINING | {"per_device_train_batch_size": 8}}, threads=2),
    "two ranks": Kind(TWO_RANKS, ranks=2, held_out=0),
}


@cache
def recipe(name: str, folder: Path) -> Path:
    kind, place = KINDS[name], folder / f"recipe-{name.replace(' ', '-')}"
    return write_recipe(place, policy(folder), rows=14, held_out=kind.held_out, **kind.settings)


@cache
def policy(folder: Path) -> str:
    return save_tiniest(folder / "policy")


def start_of(name: str, out: Path) -> Train:
    return Train(recipe(name, out.parent), out, out.with_suffix(".log"), threads=KINDS[name].threads)


def processes_of(name: str, out: Path) -> list[Train]:
    """The start of each process of a run."""
    one, count = start_of(name, out), KINDS[name].ranks
    if count == 1:
        return [one]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    places = ({"RANK": rank, "LOCAL_RANK": rank} | shared for rank in range(count))
    return [replace(one, variables={key: str(value) for key, value in place.items()}) for place in places]


def codes_of(name: str, out: Path, moment: float | None, victim: int = 0, how: str = "kill") -> list[int]:
    """Exit codes of the processes of a run, of which one is ended at a moment."""
    starts = processes_of(name, out)
    if moment is not None:
        earliest = max(moment, LISTENING if how != "kill" else MET if len(starts) > 1 else 0)
        starts[victim] = replace(starts[victim], moment=earliest, signals=SIGNALS[how])
    processes = [one.forked() for one in starts]
    timeout = time.monotonic() + LONGEST
    for process in processes:
        process.join(max(0.1, timeout - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            ends(processes)
            raise Nonsense(f"a process hangs\n{log_of(out)}")
    return [process.exitcode for process in processes]


@cache
def straight(name: str, folder: Path) -> tuple[Path, float]:
    """A run of this kind that nothing has disturbed, and the CPU time that each of its processes took."""
    out = folder / f"straight-{name.replace(' ', '-')}"
    codes = codes_of(name, out, None)
    if set(codes) != {0}:
        raise Nonsense(f"undisturbed, it ends with {codes}\n{log_of(out)}")
    return out, seconds_in(out)


def seconds_in(out: Path) -> float:
    """CPU time by the run's own account, and what it takes to start."""
    from adaptpo.run.state import read_state

    return sum(facts.get("cpu_seconds", 0.0) for facts in read_state(out)["phases"].values()) + 0.3


def log_of(out: Path) -> str:
    return out.with_suffix(".log").read_text(errors="replace")[-2000:]


def disturbed(name: str, how: str, rng: random.Random, folder: Path) -> int:
    """One run from its start to its end; the number of times that it was ended on the way."""
    ranks = KINDS[name].ranks
    reference, longest = straight(name, folder)
    out, times = folder / f"run-{rng.randrange(10**9)}", 0
    while True:
        moment = rng.uniform(0, longest * rng.choice(SHARES)) if times < MOST else None
        codes = codes_of(name, out, moment, rng.randrange(ranks), how)
        if set(codes) == {0}:
            break
        if not ended_as_asked(codes, how):
            raise Nonsense(f"{how}: it ends with {codes}\n{log_of(out)}")
        times += 1
    (assert_close_run if ranks > 1 else assert_same_run)(reference, out)
    remove(out)
    return times


def once_more(name: str, rng: random.Random, folder: Path) -> int:
    """The same run again, from its start to its end."""
    reference, _ = straight(name, folder)
    out = folder / f"again-{rng.randrange(10**9)}"
    if codes := set(codes_of(name, out, None)) - {0}:
        raise Nonsense(f"undisturbed, it ends with {codes}\n{log_of(out)}")
    assert_same_run(reference, out)
    remove(out)
    return 0


def ended_as_asked(codes: list[int], how: str) -> bool:
    """Whether one process was ended, and the others, if any, noticed."""
    expected = {"kill": KILLED, "INT": 130}.get(how, 143)
    others = list(codes)
    if expected not in others:
        return False
    others.remove(expected)
    return all(code not in (0, None) for code in others)


def remove(out: Path) -> None:
    shutil.rmtree(out)
    out.with_suffix(".log").unlink()


def two_at_once(rng: random.Random, folder: Path) -> None:
    """Two processes on one folder: one has the run, the other is refused or finds it finished."""
    reference, longest = straight("plain", folder)
    out = folder / f"both-{rng.randrange(10**9)}"
    processes = []
    for _ in range(2):
        processes.append(start_of("plain", out).forked())
        time.sleep(rng.uniform(0, longest / 2))
    codes = ends(processes)
    if sorted(codes) not in ([0, 0], [0, 2]):
        raise Nonsense(f"two at once end with {codes}\n{log_of(out)}")
    assert_same_run(reference, out)
    remove(out)
