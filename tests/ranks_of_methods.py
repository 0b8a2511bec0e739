"""Every method of the table over two processes: it ends where one process does, to 1e-5.

`python -m tests.ranks_of_methods [METHOD...]` prints a line for each; without names, for all. The methods share one
launch of one process and one of two, so that what is imported is imported once.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from adaptpo.methods import METHODS
from tests.ranks import Sharding, assert_close_run, ends, start_runs
from tests.runs import SETTINGS
from tests.tiny import save_policy, two_rewards, vowel_reward

ROWS = 22
"""Eleven in each of two iterations: three optimizer steps of four prompts, the last of three."""


def settings(name: str, policy: str, folder: Path, processes: int) -> dict[str, Any]:
    """The arguments of `tests.runs.start` for a small run of the method."""
    # Adam would make full steps of what rounding leaves of a gradient near 0.
    batch = {"per_device_train_batch_size": 4 // processes, "adam_epsilon": 1e-5, "use_cpu": True}
    reward = two_rewards if METHODS[name]().pairing.num_rewards else vowel_reward
    training = SETTINGS["training"] | batch
    generation = {"max_new_tokens": 6, "batch_size": 4}
    run = {"rows": ROWS, "held_out": 0, "reward": reward, "training": training, "generation": generation}
    # Adam's steps magnify rounding by the learner's rate as well.
    special = {"encoder": policy, "meta_learning_rate": 1e-4}
    taken = {key: value for key, value in special.items() if key in signature(METHODS[name]).parameters}
    return run | {"method": name, "model": policy, "out": folder / name, "warmup_epochs": 0, "method_settings": taken}


def run_all(names: Sequence[str], policy: str, folder: Path, processes: int, sharding: Sharding = None) -> list[int]:
    """Exit codes of the processes that run these methods one after the other, each into a folder of its name."""
    runs = [settings(name, policy, folder, processes) for name in names]
    return ends(start_runs(processes, runs, sharding))


def compare(names: Sequence[str], one: Path, two: Path) -> dict[str, str]:
    """Where the two runs of each method differ, by name; empty where they agree to 1e-5."""
    found = {}
    for name in names:
        try:
            assert_close_run(one / name, two / name)
            found[name] = ""
        except (AssertionError, OSError) as error:
            found[name] = f"{type(error).__name__}: {str(error)[:300]}"
    return found


def main(names: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        policy = save_policy(Path(scratch) / "policy")
        one, two = Path(scratch) / "one", Path(scratch) / "two"
        print("exit codes:", run_all(names, policy, one, 1), run_all(names, policy, two, 2), flush=True)
        found = compare(names, one, two)
    for name, problem in found.items():
        print(f"{name}: {problem or 'equal'}")
    print(f"{list(found.values()).count('')} of {len(found)} methods are equal to 1e-5")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(METHODS)))
