"""`adaptpo train` in processes of its own, forked from one that has imported everything and computed nothing.

Importing takes five times as long as a run of a tiny model. The forked process calls what the command line calls, with
the same arguments, is in a process group of its own, and dies of real signals.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from adaptpo.cli import main
from adaptpo.methods import METHODS
from tests.runs import SETTINGS, arm, context
from tests.tiny import preference_rows, save_policy, write_jsonl

ROOT = Path(__file__).parents[2]
TINIEST = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
QUICK_METHOD = {"num_generations": 4, "update_interval": 2, "meta_interval": 2, "ref_model_sync_steps": 1}
UNUSABLE = {"prompt": "said twice", "chosen": "the same", "rejected": "the same"}
"""A row that every run leaves out, so that it has something to record."""


def save_tiniest(folder: Path) -> str:
    return save_policy(folder, **TINIEST)


def write_recipe(folder: Path, model: str, rows: int, held_out: int, method: str = "metaapo", **settings: Any) -> Path:
    """A recipe and its data, in a new folder."""
    folder.mkdir(parents=True)
    pairs = [row | {"weight": 1 + number % 3} for number, row in enumerate(preference_rows(rows))]
    taken = inspect.signature(METHODS[method]).parameters
    recipe = SETTINGS | {
        "model": model,
        "data": {"path": write_jsonl(folder / "pairs.jsonl", [*pairs, UNUSABLE | {"weight": 1}])},
        "reward": "python:tests.tiny:vowel_reward",
        "method": {"name": method} | {name: value for name, value in QUICK_METHOD.items() if name in taken},
        **settings,
    }
    if held_out:
        recipe["eval_data"] = write_jsonl(folder / "held-out.jsonl", preference_rows(held_out, seed=9))
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML.
    return folder / "recipe.yaml"


@dataclass(frozen=True)
class Train:
    """One start of `adaptpo train`. `point`: the event at which it is killed (`tests.runs.arm`); `moment`: the seconds
    of its own CPU time after which the kernel kills it, or after which it gets the `signals`."""

    recipe: Path
    out: Path
    log: Path
    sets: tuple[str, ...] = ()
    threads: int = 1
    variables: dict[str, str] = field(default_factory=dict)
    point: str | None = None
    moment: float | None = None
    signals: tuple[int, ...] = ()

    @property
    def arguments(self) -> list[str]:
        return ["train", str(self.recipe), *(part for one in (f"output_dir={self.out}", *self.sets)
                                             for part in ("--set", one))]  # fmt: skip

    def forked(self) -> Any:
        """The process, started."""
        process = context.Process(target=self.run)
        process.start()
        return process

    def anew(self, **variables: str) -> int:
        """Exit status of a new interpreter, as a user starts it."""
        places = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(self.threads)}
        command = [sys.executable, "-m", "adaptpo", *self.arguments]
        with self.log.open("a") as log:
            environ = os.environ | places | self.variables | variables
            return subprocess.run(command, env=environ, stdout=log, stderr=log).returncode

    def run(self) -> None:
        """Runs in this process, and ends it."""
        os.setsid()
        os.environ |= self.variables
        gc.disable()
        gc.collect = lambda *_: 0  # Runs collect before each model that they load; here that is half of them.
        with self.log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        torch.set_num_threads(self.threads)
        if self.point is not None:
            arm(self.point)
        if self.signals:
            signal.signal(signal.SIGPROF, lambda *_: [os.kill(os.getpid(), number) for number in self.signals])
        if self.moment is not None:
            signal.setitimer(signal.ITIMER_PROF, max(self.moment, 1e-4))
        os._exit(status_of(lambda: main(self.arguments)))


def status_of(command: Callable[[], None]) -> int:
    """The exit status that Python ends with."""
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - that nothing else gets here is what is tested.
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def train(one: Train, longest: float = 300.0) -> int:
    """Exit status of a forked run; a negative one is the signal that ended it. One that takes longer is killed."""
    process = one.forked()
    process.join(longest)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode
