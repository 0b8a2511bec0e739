"""`adaptpo plan`: reads a recipe and the facts that its plan needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from adaptpo.choices.method import Method
from adaptpo.config.recipe import Recipe, load_recipe
from adaptpo.config.reward import JudgeReward, ModelReward, PairwiseReward, RewardPart, reward_parts
from adaptpo.data.conventions import is_preference_row
from adaptpo.errors import ConfigError
from adaptpo.methods.build import build_method
from adaptpo.models.loading import load_tokenizer, read_config, stop_ids_of, text_mode_of
from adaptpo.pipeline.inputs import DataInput
from adaptpo.plan.arithmetic import Shape
from adaptpo.plan.data import measure_data
from adaptpo.plan.job import AnnotatorFacts, Job
from adaptpo.plan.model import bytes_per_weight, shape_of, shape_of_encoder


@dataclass(frozen=True)
class Options:
    """`sample`: maximum number of rows to tokenize. `fresh_tokens`: mean length of a fresh response; None takes that of
    the chosen ones, limited by `max_new_tokens`. `share` of prompts with fresh responses; None asks the method."""

    recipe: Path
    assignments: Sequence[str] = ()
    sample: int = 1000
    fresh_tokens: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise ConfigError(f"--sample is {self.sample}; tokenize 1 row or more")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ConfigError(f"--share is {self.share}; give a share of the prompts between 0 and 1")


def read_job(options: Options) -> Job:
    """Reads configurations, tokenizer and data; loads no model. Raises an AdaptpoError that names the remedy."""
    recipe = load_recipe(options.recipe, tuple(options.assignments))
    loading = recipe.load_options
    method, config = build_method(recipe), read_config(recipe.model, loading)
    tokenizer = load_tokenizer(recipe.model, loading)
    source = DataInput.of(recipe.data)
    if source is None:
        raise ConfigError("'data' is missing")
    rows = source.rows()
    mode, stop_ids = text_mode_of(tokenizer, source.text_format), stop_ids_of(recipe.model, tokenizer, loading)
    data = measure_data(rows, recipe, tokenizer, mode, stop_ids, options.sample, rows.description)
    longest = recipe.generation.max_new_tokens
    fresh = min(longest, float(data.chosen.mean())) if options.fresh_tokens is None else options.fresh_tokens
    held_out, with_pairs = held_out_prompts(recipe)
    weight = bytes_per_weight(config, recipe.model_init_kwargs)
    return Job(
        config=recipe,
        method=method,
        shape=shape_of(config, recipe.peft, recipe.trusts_code),
        data=data,
        fresh=fresh,
        annotator=annotator_facts(recipe, method),
        share=options.share,
        eval_prompts=held_out,
        eval_pairs=with_pairs,
        weight_bytes=weight,
        number_bytes=computing_bytes(recipe, weight),
    )


def computing_bytes(recipe: Recipe, weight: int) -> int:
    mixed = recipe.training.get("bf16") or recipe.training.get("fp16")
    return torch.bfloat16.itemsize if mixed else weight


def held_out_prompts(recipe: Recipe) -> tuple[int, bool]:
    """The number of held-out prompts, up to `max_prompts`, and whether they come with pairs."""
    source = DataInput.of(recipe.eval_data)
    if source is None or recipe.eval_data is None:
        return 0, False
    first = list(islice(source.rows(), recipe.eval_data.max_prompts))
    return len(first), bool(first) and is_preference_row(first[0])


def annotator_facts(recipe: Recipe, method: Method) -> AnnotatorFacts:
    """Facts about the annotator: a model counts by its shape, anything else takes none of the machine's time."""
    if recipe.reward is None:
        return AnnotatorFacts()
    if recipe.reward == "train":
        needed = method.pairing.num_generations > 0 or recipe.eval_data is not None
        return AnnotatorFacts(annotator_shape(recipe.model, recipe.load_options), trained=needed)
    parts = reward_parts(recipe.reward)
    models = [path for part in parts if (path := model_of(part))]
    if len(models) > 1:
        raise ConfigError("a plan supports one annotator with a model; set `reward` to the largest of them")
    shape = annotator_shape(models[0], {"trust_remote_code": recipe.trusts_code}) if models else None
    return AnnotatorFacts(shape, opponents=next(filter(None, map(opponents_of, parts)), None))


def annotator_shape(path: str, options: dict[str, Any]) -> Shape:
    return shape_of_encoder(read_config(path, options), options["trust_remote_code"])


def model_of(part: RewardPart) -> str | None:
    if isinstance(part, ModelReward):
        return part.reward_model
    return part.pairwise if isinstance(part, PairwiseReward) else None


def opponents_of(part: RewardPart) -> Literal["first", "all"] | None:
    if isinstance(part, PairwiseReward):
        return "all"
    return part.mode if isinstance(part, JudgeReward) and part.mode != "score" else None
