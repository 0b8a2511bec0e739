"""`adaptpo plan`: reads a recipe and the facts that its plan needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch

from adaptpo.choices.method import Method
from adaptpo.config.data import DataSettings
from adaptpo.config.recipe import Recipe
from adaptpo.config.reward import JudgeReward, ModelReward, PairwiseReward, RewardPart, reward_parts
from adaptpo.data.conventions import is_preference_row
from adaptpo.data.mixture import Mixture
from adaptpo.errors import ConfigError
from adaptpo.methods.build import build_method
from adaptpo.models.loading import load_tokenizer, read_config
from adaptpo.pipeline.data_inputs import DataInputs
from adaptpo.pipeline.preflight import refuse_without_pairs
from adaptpo.pipeline.reading import Reader
from adaptpo.plan.arithmetic import Shape
from adaptpo.plan.data import measure_data
from adaptpo.plan.job import AnnotatorFacts, Job
from adaptpo.plan.model import bytes_per_weight, shape_of, shape_of_encoder


@dataclass(frozen=True)
class Options:
    """`sample`: maximum number of rows to tokenize. `fresh_tokens`: mean length of a fresh response; None takes that of
    the chosen ones, limited by `max_new_tokens`, or that limit if the data has none. `share` of prompts with fresh
    responses; None asks the method."""

    sample: int = 1000
    fresh_tokens: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise ConfigError(f"--sample is {self.sample}; tokenize 1 row or more")
        if self.fresh_tokens is not None and not self.fresh_tokens > 0:
            raise ConfigError(f"--fresh-tokens is {self.fresh_tokens}; give the mean length of a response, above 0")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ConfigError(f"--share is {self.share}; give a share of the prompts between 0 and 1")


def read_job(recipe: Recipe, options: Options = Options()) -> Job:
    """Reads configurations, tokenizer and data; loads no model. Raises an AdaptpoError that names the remedy."""
    loading = recipe.load_options
    method, config = build_method(recipe), read_config(recipe.model, loading)
    annotator = annotator_facts(recipe, method)
    reader = Reader.of(recipe, recipe.model, load_tokenizer(recipe.model, loading), method, annotator.trained)
    data = measure_data(reader, mixture_of(recipe.data), recipe.seed, options.sample)
    if not data.has_pairs:
        refuse_without_pairs(method, recipe, recipe.reward)
    longest = recipe.generation.max_new_tokens
    usual = min(longest, float(data.chosen.mean())) if data.has_pairs else longest
    fresh = usual if options.fresh_tokens is None else options.fresh_tokens
    held_out, with_pairs = held_out_prompts(recipe)
    weight = bytes_per_weight(config, recipe.model_init_kwargs)
    return Job(
        config=recipe,
        method=method,
        shape=shape_of(config, recipe.peft, recipe.trusts_code),
        data=data,
        fresh=fresh,
        annotator=annotator,
        share=options.share,
        eval_prompts=held_out,
        eval_pairs=with_pairs,
        weight_bytes=weight,
        number_bytes=computing_bytes(recipe, weight),
    )


def computing_bytes(recipe: Recipe, weight: int) -> int:
    mixed = recipe.training.get("bf16") or recipe.training.get("fp16")
    return torch.bfloat16.itemsize if mixed else weight


def mixture_of(settings: DataSettings) -> Mixture:
    found = DataInputs.of(settings)
    assert found is not None
    return found.mixture()


def held_out_prompts(recipe: Recipe) -> tuple[int, bool]:
    """The number of held-out prompts, up to `max_prompts`, and whether some come with pairs."""
    if recipe.eval_data is None:
        return 0, False
    samples = mixture_of(recipe.eval_data).samples(recipe.seed)
    rows = list(islice((row for sample in samples for _, row in sample.numbered()), recipe.eval_data.max_prompts))
    firsts = [next((row for _, row in sample.numbered()), {}) for sample in samples]
    return len(rows), any(map(is_preference_row, firsts))


def annotator_facts(recipe: Recipe, method: Method) -> AnnotatorFacts:
    """Facts about the annotator: a model counts by its shape, anything else takes none of the machine's time."""
    if recipe.reward is None:
        return AnnotatorFacts()
    if recipe.reward == "train":
        needed = recipe.eval_data is not None or method.annotates(recipe.num_iterations)
        return AnnotatorFacts(annotator_shape(recipe.model, recipe.load_options), trained=needed)
    parts = reward_parts(recipe.reward)
    models = [part for part in parts if part.holds_model]
    if len(models) > 1:
        raise ConfigError("a plan supports one annotator with a model; set `reward` to the largest of them")
    facts = AnnotatorFacts(opponents=next(filter(None, map(opponents_of, parts)), None))
    if not models:
        return facts
    path, options = loaded_by(models[0])
    trusted = {"trust_remote_code": recipe.trusts_code}
    width = bytes_per_weight(read_config(path, trusted), options)
    return replace(facts, shape=annotator_shape(path, trusted), number_bytes=width)


def annotator_shape(path: str, options: dict[str, Any]) -> Shape:
    return shape_of_encoder(read_config(path, options), options["trust_remote_code"])


def loaded_by(part: RewardPart) -> tuple[str, dict[str, Any]]:
    """The folder of an annotator's model, and the arguments that it is loaded with on an accelerator."""
    if isinstance(part, ModelReward):
        return part.reward_model, {"dtype": torch.bfloat16} | part.model_init_kwargs
    assert isinstance(part, PairwiseReward)
    return part.pairwise, {}


def opponents_of(part: RewardPart) -> Literal["first", "all"] | None:
    if isinstance(part, PairwiseReward):
        return "all"
    return part.mode if isinstance(part, JudgeReward) and part.mode != "score" else None
