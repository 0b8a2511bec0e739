"""Runs of several kinds, as they lie on disk at the moments at which their files are damaged."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign.commands import Train, save_tiniest, train, write_recipe
from tests.runs import SETTINGS

ENDED = "ended"
SMALL: dict[str, Any] = {
    "rows": 10,
    "held_out": 2,
    "shard_size": 4,
    "training": SETTINGS["training"] | {"per_device_train_batch_size": 2},
}
UNCHECKED = ("lock", "repairs.jsonl", "final-damaged")
"""What decides nothing: who holds the lock, and the record of repairs."""


@dataclass(frozen=True)
class Variant:
    """A kind of run, and the moments at which it is killed (see `tests.runs.arm`), one after the other."""

    settings: dict[str, Any]
    moments: tuple[str, ...]


PLAIN = Variant(
    {},
    (
        "done:data",
        "file:reference/00002.parquet",
        "start:evaluate/initial",
        "saved:warmup:2",
        "done:warmup",
        "file:0/scores/00001.parquet",
        "done:iterations/0/select",
        "file:0/annotations/00000.parquet",
        "done:iterations/0/annotate",
        "done:iterations/0/pair",
        "saved:iterations/0:2",
        "done:iterations/0/train",
        "file:1/responses/00000.parquet",
        "saved:iterations/1:2",
        "done:iterations/1/train",
        "folder:.writing-final",
    ),
)
LORA = {"peft": {"r": 2, "target_modules": ["q_proj", "v_proj"]}}
TRACKED = {"training": SMALL["training"] | {"report_to": "tensorboard"}, "num_iterations": 1}
TRAINING = ("saved:warmup:2", "done:warmup", "done:iterations/0/annotate", "saved:iterations/0:2")
OTHERS = {
    "LoRA": Variant(LORA, (*TRAINING, "done:iterations/0/train", "saved:iterations/1:2", "folder:.writing-final")),
    "reward training": Variant(
        {"reward": "train", "reward_training": SETTINGS["reward_training"] | {"per_device_train_batch_size": 2}},
        ("reward-step:4", "done:reward", "file:0/annotations/00000.parquet"),
    ),
    "PPO's critic": Variant(
        {"method": "ppo"},
        ("file:rollouts/values/00001", "done:iterations/0/rollouts", "saved:iterations/0:2", "done:iterations/0/train"),
    ),
    "MetaPO": Variant({"method": "metapo"}, ("done:validation", "saved:iterations/0:2", "done:iterations/0/train")),
    "hidden states": Variant(
        {"method": "metaapo_hidden_state"},
        ("file:features/hidden_state/00001", "done:iterations/0/features/hidden_state", "done:iterations/0/select"),
    ),
    "gradient norms": Variant(
        {"method": "metaapo_gradient_norm"},
        ("file:features/gradient_norm/00001", "done:iterations/0/features/gradient_norm", "done:iterations/0/select"),
    ),
    "stage": Variant(
        {"method": "two_stage"},
        ("file:stage/comparisons/00001", "done:iterations/0/stage", "done:iterations/0/train", "saved:iterations/1:2"),
    ),
    "tracker": Variant(TRACKED, ("done:warmup", "saved:iterations/0:2", "done:iterations/0/train")),
}
"""Each has files that the plain one lacks."""


@dataclass(frozen=True)
class Prepared:
    """The runs of a kind in a folder: `straight`, undisturbed and by a new interpreter; `another`, of another seed; and
    copies of `run` at every moment and at its end."""

    folder: Path
    moments: dict[str, Path]

    def start(self, name: str = "run", **more: Any) -> Train:
        return start_of(self.folder, self.folder / name, **more)

    def kinds(self) -> set[str]:
        return {kind_of(name) for folder in self.moments.values() for name in files(folder)}


def prepare(folder: Path, variant: Variant) -> Prepared:
    write_recipe(folder / "recipe", save_tiniest(folder / "policy"), **(SMALL | variant.settings))
    run = Prepared(folder, {})
    assert run.start("straight").anew() == 0
    assert train(run.start("another", sets=("seed=1",))) == 0
    run.moments.update(at_moments(folder, variant.moments))
    return run


def start_of(folder: Path, out: Path, **more: Any) -> Train:
    return Train(folder / "recipe" / "recipe.yaml", out, out.with_suffix(".log"), **more)


def at_moments(folder: Path, moments: tuple[str, ...]) -> dict[str, Path]:
    """Copies of one run at every moment, and at its end."""
    found: dict[str, Path] = {}
    out = folder / "run"
    for number, point in enumerate(moments):
        assert train(start_of(folder, out, point=point)) == -9, (point, out.with_suffix(".log").read_text())
        found[point] = shutil.copytree(out, folder / "moments" / str(number))
    assert train(start_of(folder, out)) == 0
    found[ENDED] = Path(shutil.move(out, folder / "moments" / ENDED))
    out.with_suffix(".log").unlink()
    return found


def kind_of(file: str) -> str:
    """The file without its numbers."""
    return re.sub(r"\d+", "N", file)


def files(out: Path) -> list[str]:
    found = (path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file())
    return [name for name in found if not name.startswith(UNCHECKED) and "/.writing-" not in f"/{name}"]
