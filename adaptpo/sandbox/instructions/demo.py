"""`adaptpo demo --model`: aligns a real language model and shows its answers before and after."""

from __future__ import annotations

import json
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
from adaptpo.sandbox.instructions.build import Material, build
from adaptpo.sandbox.instructions.grading import held_out_rows, judge_run, plain_text
from adaptpo.trainer import AlignmentTrainer
from adaptpo.types import Row

PROMPTS, HELD_OUT, SHOWN = 144, 64, 3
STAGES = {
    "initial": "the model as it came",
    "warmup": "after a warm-up on offline pairs",
    "iteration-0": "after MetaAPO",
}


@dataclass(frozen=True)
class Stage:
    """The judge's score of one policy's held-out answers, with the standard error over prompts, and the share of the
    answers that end by themselves."""

    name: str
    score: float
    standard_error: float
    ended: float


def run_demo(model: str, out: Path, seed: int) -> None:
    """Writes the task, aligns the model, measures it and writes the report; skips what exists already."""
    started = time.perf_counter()
    folder, run = out / "task", out / "run"
    print(f"Writing prompts and offline answers to {folder}")
    build(folder, Material(model, PROMPTS, HELD_OUT, seed))
    settings = [f"output_dir={run}", f"seed={seed}", "num_iterations=1"]
    print("Aligning the model with MetaAPO")
    AlignmentTrainer.from_recipe(load_recipe(folder / "recipe.yaml", settings)).train()
    stages = measure(folder, run)
    answers = first_answers(run)
    write_json(out / "demo.json", {"stages": [vars(stage) for stage in stages], "answers": answers})
    show_stages(stages)
    show_answers(answers)
    print(f"Report: {write_report(run)}\nTook {time.perf_counter() - started:.0f} s")


def measure(folder: Path, run: Path) -> list[Stage]:
    """The stages of a finished run, in order."""
    held_out = held_out_rows(folder)
    return [stage(name, judge_run(run, name, held_out), answers_of(run, name)) for name in STAGES]


def stage(name: str, scores: list[float], answers: list[Row]) -> Stage:
    error = stdev(scores) / len(scores) ** 0.5
    return Stage(name, fmean(scores), error, fmean(answer["ended"] for answer in answers))


def answers_of(run: Path, name: str) -> list[Row]:
    return read_rows(run / "evaluation" / f"{name}.parquet")


def first_answers(run: Path) -> list[dict[str, str]]:
    """The first held-out prompts, whatever the answers to them, before and after."""
    before, after = (answers_of(run, name)[:SHOWN] for name in ("initial", "iteration-0"))
    return [
        {"prompt": plain_text(json.loads(old["prompt"])), "before": old["response"], "after": new["response"]}
        for old, new in zip(before, after, strict=True)
    ]


def show_stages(stages: list[Stage]) -> None:
    table = Table(box=box.SIMPLE_HEAD, title=f"{HELD_OUT} held-out answers, of topics never trained on")
    table.add_column("policy")
    for title in ("judge's score", "answers that end"):
        table.add_column(title, justify="right")
    for each in stages:
        table.add_row(STAGES[each.name], f"{each.score:.1%} ± {each.standard_error:.1%}", f"{each.ended:.0%}")
    Console().print(table)
    print(
        "Judge's score: the share of an answer's rules that it keeps, 0 if it was cut, leaves its topic or has fewer "
        "than four words; ± is the standard error over prompts."
    )


def show_answers(answers: list[dict[str, str]]) -> None:
    print(f"The first {len(answers)} held-out prompts:")
    for each in answers:
        print(f"\n  {each['prompt']}\n    before: {one_line(each['before'])}\n    after:  {one_line(each['after'])}")
    print()


def one_line(text: str) -> str:
    return " ".join(text.split())
