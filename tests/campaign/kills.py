"""Runs of several kinds, killed at random moments and resumed until they end: the same weights, bit for bit.

A moment is an amount of CPU time, after which the kernel ends the process (SIGPROF, which nobody handles): how busy the
machine is makes no difference. Of two ranks, one is killed.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from adaptpo.errors import AdaptpoError
from adaptpo.run.signals import SIGNALS, Interrupted
from tests.campaign.outcomes import Nonsense
from tests.ranks import assert_close_run, ends, free_port, run_rank
from tests.runs import SETTINGS, assert_same_run, context, start
from tests.tiny import save_policy, vowel_reward

LONGEST = 300
"""Seconds after which a run counts as hanging."""
KILLED = -signal.SIGPROF
SMALL: dict[str, Any] = {"rows": 14, "held_out": 2, "reward": vowel_reward}


@dataclass(frozen=True)
class Kind:
    """A kind of run: its settings beside those of `tests.runs`, and how many processes share it."""

    settings: dict[str, Any] = field(default_factory=dict)
    ranks: int = 1


TRAINING = SETTINGS["training"]
TWO_RANKS = {"training": TRAINING | {"per_device_train_batch_size": 2, "use_cpu": True}, "num_iterations": 1}
KINDS: dict[str, Kind] = {
    "plain": Kind(),
    "LoRA": Kind({"peft": {"r": 2, "target_modules": ["q_proj", "v_proj"]}}),
    "reward training": Kind({"reward": "train"}),
    "warm-up": Kind({"warmup_epochs": 1, "num_iterations": 1}),
    "PPO's critic": Kind({"method": "ppo", "num_iterations": 1}),
    "MetaPO": Kind({"method": "metapo", "num_iterations": 1}),
    "two threads": Kind({"threads": 2, "training": TRAINING | {"per_device_train_batch_size": 8}}),
    "two ranks": Kind(TWO_RANKS | {"held_out": 0}, ranks=2),
}


def run(log: Path, moment: float | None, how: str, rank: int, count: int, port: int, arguments: dict[str, Any]) -> None:
    """Runs, or resumes, in this process and ends it as the command line would; `moment` is in seconds of CPU time."""
    gc.disable()
    gc.collect = lambda *_: 0  # Runs collect before each model that they load; here that is half of them.
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if how != "kill":
        signal.signal(signal.SIGPROF, lambda *_: send(how))
    if moment is not None:
        signal.setitimer(signal.ITIMER_PROF, max(moment, 1e-4))
    together = partial(run_rank, rank, count, port, None, None, [arguments])
    os._exit(status_of(together if count > 1 else partial(start, **arguments)))


def send(how: str) -> None:
    for _ in range(2 if how == "TERM twice" else 1):
        os.kill(os.getpid(), signal.SIGINT if how == "INT" else signal.SIGTERM)


def status_of(work: Callable[[], Any]) -> int:
    try:
        with SIGNALS.taken():
            work()
    except AdaptpoError as error:
        print(f"adaptpo: {error}", flush=True)
        return 2
    except Interrupted as interruption:
        print(f"adaptpo: interrupted ({interruption})", flush=True)
        return interruption.status
    except BaseException:  # noqa: BLE001 - that nothing else gets here is what is tested.
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        return 1
    return 0


def codes_of(kind: Kind, out: Path, moment: float | None, victim: int = 0, how: str = "kill") -> list[int]:
    """Exit codes of the processes of a run, of which one is ended at a moment."""
    settings = SMALL | kind.settings | {"model": policy(out.parent), "out": out}
    port, log = free_port() if kind.ranks > 1 else 0, out.with_suffix(".log")
    processes = []
    for rank in range(kind.ranks):
        own = moment if rank == victim else None
        processes.append(context.Process(target=run, args=(log, own, how, rank, kind.ranks, port, settings)))
        processes[-1].start()
    timeout = time.monotonic() + LONGEST
    for process in processes:
        process.join(max(0.1, timeout - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            ends(processes)
            raise Nonsense(f"a process hangs\n{log.read_text(errors='replace')[-2000:]}")
    return [process.exitcode for process in processes]


@cache
def policy(folder: Path) -> str:
    return save_policy(folder / "policy")


@cache
def straight(name: str, folder: Path) -> tuple[Path, float]:
    """A run of this kind that nothing has disturbed, and the CPU time that each of its processes took."""
    out, before = folder / f"straight-{name.replace(' ', '-')}", os.times()
    codes = codes_of(KINDS[name], out, None)
    if set(codes) != {0}:
        raise Nonsense(f"undisturbed, it ends with {codes}\n{log_of(out)}")
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return out, max(spent, seconds_in(out)) / KINDS[name].ranks


def seconds_in(out: Path) -> float:
    """CPU time by the run's own account: its processes are not this one's children."""
    from adaptpo.run.state import read_state

    return sum(facts.get("cpu_seconds", 0.0) for facts in read_state(out)["phases"].values()) + 0.5


def log_of(out: Path) -> str:
    return out.with_suffix(".log").read_text(errors="replace")[-2000:]


def disturbed(name: str, how: str, rng: random.Random, folder: Path) -> int:
    """One run from its start to its end; the number of times that it was ended on the way."""
    kind = KINDS[name]
    reference, longest = straight(name, folder)
    out, times = folder / f"run-{rng.randrange(10**9)}", 0
    while True:
        moment = rng.uniform(0, longest if times else longest / 2) if times < 12 else None
        codes = codes_of(kind, out, moment, rng.randrange(kind.ranks), how)
        if set(codes) == {0}:
            break
        if not ended_as_asked(codes, how):
            raise Nonsense(f"{how}: it ends with {codes}\n{log_of(out)}")
        times += 1
    (assert_close_run if kind.ranks > 1 else assert_same_run)(reference, out)
    remove(out)
    return times


def ended_as_asked(codes: list[int], how: str) -> bool:
    """Whether one process was ended, and the others, if any, noticed."""
    expected = {"kill": KILLED, "INT": 130}.get(how, 143)
    others = list(codes)
    if expected not in others:
        return False
    others.remove(expected)
    return all(code not in (0, None) for code in others)


def remove(out: Path) -> None:
    import shutil

    shutil.rmtree(out)
    out.with_suffix(".log").unlink()


def two_at_once(rng: random.Random, folder: Path) -> None:
    """Two processes on one folder: one has the run, the other is refused or finds it finished."""
    reference, longest = straight("plain", folder)
    out = folder / f"both-{rng.randrange(10**9)}"
    settings = SMALL | {"model": policy(folder), "out": out}
    processes = []
    for _ in range(2):
        processes.append(context.Process(target=run, args=(out.with_suffix(".log"), None, "kill", 0, 1, 0, settings)))
        processes[-1].start()
        time.sleep(rng.uniform(0, longest / 2))
    codes = ends(processes)
    if sorted(codes) not in ([0, 0], [0, 2]):
        raise Nonsense(f"two at once end with {codes}\n{log_of(out)}")
    assert_same_run(reference, out)
    remove(out)
