"""`adaptpo stage`: measures a policy on a data set and writes the results."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adaptpo.config.evaluation import yaml_mapping
from adaptpo.config.recipe import Recipe, make_recipe, read_recipe
from adaptpo.errors import ConfigError
from adaptpo.methods.stages import boundary_measurement
from adaptpo.pipeline.boundary_candidates import keep_candidates
from adaptpo.pipeline.boundary_measure import FRESH, Subject, measure, summary
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.loop import do, do_once
from adaptpo.pipeline.phases.check import check_model
from adaptpo.pipeline.phases.data import prepare_data
from adaptpo.pipeline.phases.reward import train_reward_model
from adaptpo.pipeline.preflight import refuse_impossible
from adaptpo.run.files import write_json
from adaptpo.stage.diagnostics import describe, read_candidates
from adaptpo.stage.score import COMPARISONS, BoundaryScore
from adaptpo.stage.tally import Tally
from adaptpo.trainer import AlignmentTrainer
from adaptpo.types import Row

FOLDER = "stage"
PAPER_SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 50}
"""Table 7 of the paper, unless the recipe sets other values."""
DEFAULT_OUT = "runs/stage"


@dataclass(frozen=True)
class Options:
    """The command-line options; None takes the recipe's value, or the default."""

    recipe: Path | None = None
    model: str | None = None
    data: str | None = None
    reward: str | None = None
    prompts: int | None = None
    precision: float | None = None
    out: Path | None = None
    assignments: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: argparse.Namespace) -> Options:
        names = ("recipe", "model", "data", "reward", "prompts", "precision", "out")
        return cls(**{name: getattr(options, name) for name in names}, assignments=tuple(options.set))


def recipe_of(options: Options) -> Recipe:
    """The recipe of a measurement. Raises ConfigError for a missing model, data set or reward."""
    values = read_recipe(options.recipe) if options.recipe else {}
    folder = options.recipe.parent if options.recipe else Path()
    values["output_dir"] = str(options.out or out_beside(values.get("output_dir")))
    values["generation"] = PAPER_SAMPLING | section(values, "generation")
    reward = None if options.reward is None else yaml_mapping(options.reward, "--reward")
    given = {"model": options.model, "reward": reward, "data": options.data}
    values |= {name: value for name, value in given.items() if value is not None}
    looks = {"prompts": options.prompts, "precision": options.precision}
    values["stage"] = section(values, "stage") | {name: value for name, value in looks.items() if value is not None}
    values.pop("eval_data", None)
    recipe = make_recipe(values, options.assignments, folder)
    if recipe.reward is None:
        raise ConfigError(
            "the boundary measurement needs a preference model; give --reward a reward model, `train`, or "
            "python:module:function"
        )
    return recipe


def section(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"'{name}' must be a section of keys (found {found!r})")
    return found


def out_beside(output_dir: str | None) -> str:
    return f"{output_dir}-stage" if output_dir else DEFAULT_OUT


@contextmanager
def opened(recipe: Recipe) -> Iterator[Context]:
    """Opens the measurement's own run directory."""
    with AlignmentTrainer.from_recipe(recipe, boundary_measurement()).open() as context:
        yield context


def run_stage(recipe: Recipe) -> Row:
    """Measures, or resumes an interrupted measurement; returns the content of `stage.json`."""
    with opened(recipe) as context:
        context.ranks.on_first(partial(refuse_impossible, context))
        do_once(context, "data", partial(prepare_data, context))
        do_once(context, "check", partial(check_model, context))
        if context.reward == "train":
            do(context, "reward", partial(train_reward_model, context))
        subject = Subject(FOLDER, context.initial, context.offline_ids())
        do(context, FOLDER, lambda: summary(measure(context, subject)))
        do(context, "candidates", partial(keep_candidates, context, subject))
        found = report_of(context)
        context.ranks.on_first(partial(write_json, context.run.path / "stage.json", found))
        context.run.keep(context.run.path / "stage.json")
    return found


def report_of(context: Context) -> Row:
    """All results, from the folder alone."""
    comparisons = list(context.run.read_shards(f"{FOLDER}/comparisons"))
    candidates = read_candidates(list(context.run.read_shards(f"{FOLDER}/candidates")))
    tally = Tally.of(comparisons)
    settings = context.config.generation
    return {
        **findings(tally.boundary),
        "unanswered_prompts": len(tally.incomplete),
        "cost": cost(context, len(comparisons)),
        "diagnostics": describe(candidates, comparisons),
        "policy": context.initial,
        "data": context.data.description,
        "preference_model": str(context.reward),
        "sampling": {name: getattr(settings, name) for name in (*PAPER_SAMPLING, "max_new_tokens")},
        "asked": context.config.stage.model_dump(),
    }


def findings(boundary: BoundaryScore) -> Row:
    low, high = boundary.interval
    return {
        "decision": boundary.decision,
        "score": boundary.score,
        "interval": [low, high],
        "half_width": boundary.half_width,
        "prompts": boundary.prompts,
        "prompts_to_decide": boundary.prompts_to_decide,
        "v_on": boundary.won,
        "v_off": boundary.lost,
        "ties": boundary.ties,
        "counts": list(boundary.counts),
    }


def cost(context: Context, comparisons: int) -> Row:
    """The cost: responses, tokens and seconds (of the last attempt at each phase)."""
    responses = [len(row["ids"]) for row in context.run.read_shards(f"{FOLDER}/responses", ["ids"])]
    phases = context.run.state["phases"]
    return {
        "responses": len(responses),
        "tokens": sum(responses),
        "comparisons": comparisons,
        "prompts_sampled": len(responses) // FRESH,
        "comparisons_per_prompt": COMPARISONS,
        "seconds": {name: facts["seconds"] for name, facts in phases.items() if facts["done"]},
    }
