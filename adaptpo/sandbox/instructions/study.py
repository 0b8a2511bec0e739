"""`adaptpo sandbox study`: compares methods on a real language model, at equal optimizer steps, by a judge that trains
nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import fmean

from adaptpo.config.base import nearest
from adaptpo.config.recipe import load_recipe
from adaptpo.errors import AdaptpoError, ConfigError, RunError
from adaptpo.report.reading import RunData
from adaptpo.run.files import write_json, write_text
from adaptpo.run.history import global_step
from adaptpo.run.progress import say
from adaptpo.run.state import read_state
from adaptpo.sandbox.instructions.build import BATCH, Material, build
from adaptpo.sandbox.instructions.grading import held_out_rows, judge_run
from adaptpo.sandbox.tables.cells import opening_name
from adaptpo.sandbox.tables.docs import markdown
from adaptpo.sandbox.tables.measure import Boundary
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.view import Grid
from adaptpo.trainer import AlignmentTrainer

PHASES = 3
"""Phases that train: the warm-up and two iterations, or three iterations. Each has the same number of steps."""
FROM_SFT = ("warmup_epochs=0", f"num_iterations={PHASES}", "method.measured=true")
POOL_KTO = ("method={name: pool_kto, objective: {name: kto, beta: 0.1}}", "generation.num_generations=2")
REFERENCE = "Online DPO"
ROWS = (
    Row("DPO", ("method.name=dpo",)),
    Row("Online DPO", ("method.name=online_dpo",)),
    Row("MetaAPO", ("method.name=metaapo",)),
    Row("Online DPO, half the annotations", ("method.name=online_dpo", "generation.num_generations=2")),
    Row("SELM", ("method.name=selm",)),
    Row("MetaPO", ("method.name=metapo",)),
    Row("pool KTO (ours)", POOL_KTO),
    Row("offline pairs from SFT", ("method.name=off_off", *FROM_SFT)),
    Row("own pairs from SFT", ("method.name=on_on", *FROM_SFT)),
)
"""What is compared. The last two start from the SFT policy and measure its alignment stage, to see which data it needs
and which it gains from."""


@dataclass(frozen=True)
class Options:
    """`steps`: optimizer steps of each phase that trains; None: one epoch of the warm-up's. `rows`: labels, None for
    all. `settings`: further settings of every run, such as those of a GPU."""

    material: Material
    out: Path
    seeds: int = 3
    steps: int | None = None
    rows: tuple[str, ...] | None = None
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError("--seeds must be at least 1")

    @property
    def recipe(self) -> Path:
        return self.out / "task" / "recipe.yaml"

    def asked_rows(self) -> list[Row]:
        labels = [row.label for row in ROWS]
        for label in self.rows or ():
            if label not in labels:
                raise ConfigError(f"--rows: there is no row '{label}'; {nearest(label, labels)}")
        return [row for row in ROWS if self.rows is None or row.label in self.rows]


@dataclass(frozen=True)
class Measured:
    """A finished run: the judge's mean score of the held-out answers after it and of the SFT policy's, the grader's
    mean reward after it, mean tokens of an answer, optimizer steps, annotated responses, and the stage if measured."""

    score: float
    sft_score: float
    reward: float
    tokens: float
    steps: int
    annotated: int
    boundary: Boundary | None = None


Found = dict[tuple[str, int], Measured]
"""The finished runs by row and seed."""


def run_study(options: Options) -> Found:
    """Writes the task, runs every row with every seed, and writes the table as far as it got after each run; skips what
    exists already. Raises RunError if runs failed, after all others."""
    rows = options.asked_rows()
    build(options.recipe.parent, options.material)
    found: Found = {}
    errors: list[str] = []
    for seed in range(options.seeds):
        for row in rows:
            try:
                run = align(options, row, seed)
            except AdaptpoError as error:
                errors.append(f"{row.label}, seed {seed}: {error}")
                continue
            found[row.label, seed] = measured(options.recipe.parent, run)
            write_study(options, found)
    if errors:
        raise RunError("; ".join(errors))
    return found


def settings_of(options: Options, row: Row, seed: int) -> tuple[str, ...]:
    """The settings of a run: the row's, the steps that all rows have, the seed, and those of the machine."""
    steps = options.steps or -(-options.material.prompts // BATCH)
    return (*row.settings, f"training.max_steps={steps}", f"seed={seed}", *options.settings)


def align(options: Options, row: Row, seed: int) -> Path:
    """Runs what precedes the first iteration, once for all rows that share it, and then the iterations. Returns the
    run's folder."""
    settings, run = settings_of(options, row, seed), options.out / "runs" / f"{slug(row.label)}-{seed}"
    opening = options.out / "openings" / opening_name(options.recipe, settings, run)
    say(f"{row.label}, seed {seed}: {run}", visible=True)
    if not any(read_state(folder).get("opened") for folder in (run, opening)):
        trainer(options, *settings, f"output_dir={opening}").prepare()
    trainer(options, *settings, f"output_dir={run}", f"branch_of={opening}").train()
    return run


def slug(label: str) -> str:
    return "-".join(re.findall(r"\w+", label.lower()))


def trainer(options: Options, *settings: str) -> AlignmentTrainer:
    return AlignmentTrainer.from_recipe(load_recipe(options.recipe, settings))


def measured(task: Path, folder: Path) -> Measured:
    run, held_out = RunData.open(folder), held_out_rows(task)
    last = run.stages[-1]
    annotations = [run.table(f"iterations/{t}/annotations/*.parquet", "reward") for t in run.iterations]
    return Measured(
        score=fmean(judge_run(folder, last.key, held_out)),
        sft_score=fmean(judge_run(folder, "initial", held_out)),
        reward=last.value("reward/mean") or float("nan"),
        tokens=last.value("length/mean") or float("nan"),
        steps=global_step(folder),
        annotated=sum(len(each.get("reward", ())) for each in annotations),
        boundary=Boundary.of(run),
    )


def write_study(options: Options, found: Found) -> None:
    """Writes `study.json` and `study.md`, and shows the table."""
    runs = [{"row": row, "seed": seed, **asdict(each)} for (row, seed), each in found.items()]
    facts = {"date": date.today().isoformat(), "material": asdict(options.material), "settings": options.settings}
    write_json(options.out / "study.json", {**facts, "runs": runs})
    table = markdown(grid(found))
    write_text(options.out / "study.md", f"{table}\n")
    print(table, flush=True)


def grid(found: Found) -> Grid:
    sft = fmean(each.sft_score for each in found.values())
    labels = dict.fromkeys(label for label, _ in found)
    rows = [["SFT", "–", f"{sft:.3f}", *["–"] * 6], *(line(label, found) for label in labels)]
    titles = ["", "seeds", "judge", f"minus {REFERENCE}", "reward", "tokens", "steps", "annotated", "boundary score"]
    return Grid(titles, rows, [""] * len(rows))


def line(label: str, found: Found) -> list[str]:
    own = {seed: each for (row, seed), each in found.items() if row == label}
    pairs = [each.score - found[REFERENCE, seed].score for seed, each in own.items() if (REFERENCE, seed) in found]
    boundaries = [each.boundary.score for each in own.values() if each.boundary]
    return [
        label,
        str(len(own)),
        mean_and_range([each.score for each in own.values()]),
        mean_and_range(pairs, "+") if pairs and label != REFERENCE else "–",
        f"{fmean(each.reward for each in own.values()):.2f}",
        f"{fmean(each.tokens for each in own.values()):.1f}",
        " / ".join(map(str, sorted({each.steps for each in own.values()}))),
        f"{fmean(each.annotated for each in own.values()):.0f}",
        f"{fmean(boundaries):.3f}" if boundaries else "–",
    ]


def mean_and_range(values: Sequence[float], sign: str = "") -> str:
    """The mean, with the lowest and the highest value if there are several."""
    bounds = f" [{min(values):{sign}.3f}, {max(values):{sign}.3f}]" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.3f}{bounds}"
