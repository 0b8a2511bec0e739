"""`adaptpo demo`: aligns the sandbox's policy with MetaAPO and measures the result with the known true reward."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich import box
from rich.console import Console
from rich.table import Table

from adaptpo.config.recipe import load_recipe
from adaptpo.report import write_report
from adaptpo.run.files import read_rows, write_json
from adaptpo.sandbox.build import build
from adaptpo.sandbox.check import stage_rewards
from adaptpo.trainer import AlignmentTrainer


@dataclass(frozen=True)
class Stage:
    """The true reward of one policy's held-out responses; `win_rate` is against those of the SFT policy."""

    name: str
    true_reward: float
    standard_error: float
    win_rate: float | None
    annotated: float | None


def run_demo(out: Path, seed: int) -> None:
    """Builds the world, aligns its policy, measures it and writes the report; skips what exists already."""
    started = time.perf_counter()
    world = out / "sandbox"
    if not (world / "world.json").exists():
        print(f"Building a world with a known true reward in {world}")
        build(world, seed=seed)
    recipe = load_recipe(world / "recipe.yaml", [f"output_dir={out / 'run'}", f"seed={seed}"])
    print("Aligning its policy with MetaAPO")
    AlignmentTrainer.from_recipe(recipe).train()
    stages = measure(out / "run")
    write_json(out / "table.json", [vars(stage) for stage in stages])
    print_stages(stages)
    page = write_report(out / "run")
    print(f"{TWO_REWARDS}\nReport: {page}\nTook {time.perf_counter() - started:.0f} s")


def measure(run: Path) -> list[Stage]:
    """The stages of a finished run, in order."""
    names = ["initial", "warmup", *(f"iteration-{i}" for i in range(len(list((run / "iterations").iterdir()))))]
    rewards = {name: stage_rewards(run, name) for name in names}
    return [stage(run, name, rewards[name], rewards["initial"]) for name in names]


def stage(run: Path, name: str, rewards: list[float], baseline: list[float]) -> Stage:
    wins = [(new > old) + (new == old) / 2 for new, old in zip(rewards, baseline, strict=True)]
    iteration = int(name.removeprefix("iteration-")) if name.startswith("iteration-") else None
    return Stage(
        name=name,
        true_reward=fmean(rewards),
        standard_error=stdev(rewards) / len(rewards) ** 0.5,
        win_rate=None if name == "initial" else fmean(wins),
        annotated=None if iteration is None else selected_share(run, iteration),
    )


def selected_share(run: Path, iteration: int) -> float:
    """Share of the prompts of this iteration that got fresh, annotated responses."""
    return fmean(row["selected"] for row in read_rows(run / "iterations" / str(iteration) / "selection.parquet"))


TWO_REWARDS = (
    "The report shows the learned reward model's rewards, which the run trains on. Their scale is not that of the\n"
    "true reward above, which no real run knows."
)
TITLES = {"initial": "SFT policy", "warmup": "DPO warm-up"}


def print_stages(stages: list[Stage]) -> None:
    table = Table(box=box.SIMPLE_HEAD, title="Held-out prompts, measured with the true reward (optimum 1)")
    table.add_column("policy")
    for column in ("true reward", "win rate against SFT", "prompts annotated"):
        table.add_column(column, justify="right")
    for each in stages:
        table.add_row(
            TITLES.get(each.name, each.name.replace("iteration-", "MetaAPO iteration ")),
            f"{each.true_reward:.3f} ± {each.standard_error:.3f}",
            "" if each.win_rate is None else f"{each.win_rate:.1%}",
            "" if each.annotated is None else f"{each.annotated:.0%}",
        )
    Console().print(table)
