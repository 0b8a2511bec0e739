"""The task on a real language model as a world of the tables: drawn from its seed, measured by the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar

from adaptpo.config.recipe import load_recipe
from adaptpo.errors import ConfigError, RunError
from adaptpo.report.reading import RunData, Stage
from adaptpo.run.files import read_rows
from adaptpo.sandbox.instructions.build import Material, build
from adaptpo.sandbox.instructions.grading import held_out_rows, judge_run
from adaptpo.sandbox.tables.measure import Measurement, Responses, measure
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.world import Score, folder_of

OWN = {
    "seed": "--first and --seeds choose worlds, --runs repeats rows with other seeds",
    "output_dir": "--out is the folder of all runs",
    "training.max_steps": "all rows take an epoch's steps in each phase, so --prompts decides",
}
"""Keys of a recipe that belong to the comparison, and the options that decide them."""


@dataclass(frozen=True)
class JudgedMeasurement(Measurement):
    """The judge's score of the held-out responses is the true reward. `reward`: the grader's mean reward of the same
    responses, which training raises; `tokens`: their mean length."""

    metrics: ClassVar[tuple[str, ...]] = (*Measurement.metrics, "reward", "tokens", "boundary_score")

    reward: float | None = None
    tokens: float | None = None

    @property
    def boundary_score(self) -> float | None:
        return None if self.boundary is None else self.boundary.score


@dataclass(frozen=True)
class InstructionsWorld:
    """The task with the prompts and drafts of its seed. `settings`: further settings of every run, such as those of a
    GPU. Raises ConfigError if they set what the comparison sets."""

    material: Material
    settings: tuple[str, ...] = ()

    score: ClassVar[Score] = Score(
        "judge's score", "of one response to each held-out prompt after the last iteration (at most 1)"
    )
    measurement: ClassVar[type[Measurement]] = JudgedMeasurement
    runs_are_units: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for setting in self.settings:
            if (key := setting.partition("=")[0]) in OWN:
                raise ConfigError(f"--set {setting}: a study sets {key} itself; {OWN[key]}")

    @property
    def seed(self) -> int:
        return self.material.seed

    @property
    def name(self) -> str:
        """A name from the model's and the sizes: `SmolLM2-135M-Instruct_prompts-96_heldout-48_flipped-0.1/seed-0`."""
        of = self.material
        sizes = f"prompts-{of.prompts}_heldout-{of.heldout}_flipped-{of.flipped}"
        return f"{model_name(of.model)}_{sizes}/seed-{of.seed}"

    @property
    def key(self) -> str:
        """The name and the settings of every run, which may round differently."""
        return " ".join((self.name, *self.settings))

    def varied(self, seed: int, changes: Mapping[str, Any]) -> InstructionsWorld:
        return replace(self, material=replace(self.material, **changes, seed=seed))

    def command(self, table: str, options: str) -> str:
        of = self.material
        further = "".join(f" --set {quote(each)}" for each in self.settings)
        sizes = f"--prompts {of.prompts} --heldout {of.heldout}"
        return f"adaptpo sandbox study --model {quote(of.model)} {options} {sizes}{further}"

    def build(self, out: Path, rows: Sequence[Row]) -> None:
        build(folder_of(out, self), self.material, progress=False)

    def assignments(self, recipe: Path, row: Row) -> tuple[str, ...]:
        """The row's settings, those of the machine, and for each iteration the steps of an epoch over all prompts, as a
        warm-up takes them."""
        settings = (*row.settings, *self.settings)
        training = load_recipe(recipe, settings).training
        batch = training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1)
        return (*settings, f"training.max_steps={ceil(self.material.prompts / batch)}")

    def respond(self, out: Path, run: Path) -> None:
        """Nothing is left to sample: a run evaluates its policy on the held-out prompts."""

    def measure(self, out: Path, run: Path, start: Path | None) -> JudgedMeasurement:
        """The run's last evaluation against its first."""
        found, held_out = RunData.open(run), held_out_rows(folder_of(out, self))
        last = last_stage(found)
        new, old = (judged_responses(run, stage, held_out) for stage in (last.key, "initial"))
        reward, tokens = last.value("reward/mean"), last.value("length/mean")
        return JudgedMeasurement(**vars(measure(found, new, old)), reward=reward, tokens=tokens)


def last_stage(run: RunData) -> Stage:
    if not run.stages:
        raise RunError(f"{run.root} has no evaluations, which the judge measures; leave eval_data as the recipe has it")
    return run.stages[-1]


def judged_responses(run: Path, stage: str, held_out: Mapping[str, Mapping[str, str]]) -> Responses:
    texts = [row["response"] for row in read_rows(run / "evaluation" / f"{stage}.parquet")]
    return Responses(judge_run(run, stage, held_out), [len(text.split()) for text in texts])


def model_name(model: str) -> str:
    """The last part of a folder or a hub id."""
    return Path(model).name
