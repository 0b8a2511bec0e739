"""Algorithm 1 in a run directory: two fresh responses per prompt, four comparisons, one score. It works in shards, so
a killed measurement resumes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from adaptpo.config.recipe import StageSettings
from adaptpo.generation.base import Generator
from adaptpo.models.inference import PromptedPair
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.generator import generate_shards
from adaptpo.run.directory import Summary
from adaptpo.run.lazy_sequence import Indices, Lazy, as_array
from adaptpo.run.schemas import COMPARISONS_SCHEMA, RESPONSES_SCHEMA, read_generated, response_rows, table
from adaptpo.seeds import seed_for, uniform_for
from adaptpo.stage.preference import AnnotatorPreference, Comparison, PreferenceModel
from adaptpo.stage.tally import Tally
from adaptpo.types import PreferencePair, Prompt, Response, Row

FRESH = 2
OFFLINE_SIDES = ("chosen", "rejected")
SHARDS_PER_LOOK = 4
"""Shards between two checks of the interval's width. Policy and preference model swap in memory once per check."""
NO_ANSWER = (
    "no answer from the preference model to {} of 4 comparisons (missing or invalid reward, too long for it, or a "
    "missing response)"
)


@dataclass(frozen=True)
class Subject:
    """The subject of a measurement: the policy at this path, the prompts with these ids, and a folder of the run."""

    folder: str
    policy: str
    ids: Indices


def draw(context: Context, subject: Subject) -> Lazy[PromptedPair]:
    """The prompts to measure on, in random order, so that any prefix is a random sample."""
    ids = as_array(subject.ids)
    numbers = (uniform_for(context.config.seed, subject.folder, int(id_)) for id_ in ids)
    order = np.fromiter(numbers, np.float64, len(ids)).argsort(kind="stable")
    return context.pairs_of(ids[order[: context.config.stage.prompts]])


def measure(context: Context, subject: Subject) -> Tally:
    """Samples and compares until all prompts are used, or the interval is as narrow as `stage.precision` requires.

    Prompts without an answer to all four comparisons are recorded and left out.
    """
    drawn = draw(context, subject)
    tally = Tally({}, {}, 0)
    for end in looks(len(drawn), context.config.stage, context.config.shard_size):
        seen = drawn.take(range(end))
        sample(context, subject, seen)
        compare(context, subject, seen)
        tally = Tally.of(context.run.read_shards(f"{subject.folder}/comparisons"))
        if is_narrow(tally, context.config.stage):
            break
    reasons = [(prompt, NO_ANSWER.format(4 - answered)) for prompt, answered in tally.incomplete.items()]
    context.run.drop(subject.folder, [{"prompt_id": prompt, "reason": reason} for prompt, reason in reasons])
    return tally


def looks(prompts: int, settings: StageSettings, shard_size: int) -> Iterator[int]:
    """Numbers of prompts after which the interval is checked; whole shards except for the last."""
    if settings.precision is not None:
        yield from range(SHARDS_PER_LOOK * shard_size, prompts, SHARDS_PER_LOOK * shard_size)
    yield prompts


def is_narrow(tally: Tally, settings: StageSettings) -> bool:
    return settings.precision is not None and tally.boundary.half_width <= settings.precision


def sample(context: Context, subject: Subject, items: Sequence[PromptedPair]) -> None:
    def work(generator: Generator, shard: Sequence[PromptedPair]) -> pa.Table:
        prompts = [prompt for prompt, _ in shard]
        seeds = [seed_for(context.config.seed, "generate", subject.folder, prompt.id) for prompt in prompts]
        return table(response_rows(prompts, generator.generate(prompts, FRESH, seeds)), RESPONSES_SCHEMA)

    generate_shards(context, subject.policy, subject.folder, f"{subject.folder}/responses", items, work)


def fresh_responses(context: Context, subject: Subject) -> dict[int, list[Response]]:
    """The fresh responses by prompt id."""
    fresh: dict[int, list[Response]] = defaultdict(list)
    for row in context.run.read_shards(f"{subject.folder}/responses"):
        fresh[row["prompt_id"]].append(read_generated(row))
    return fresh


def compare(context: Context, subject: Subject, items: Sequence[PromptedPair]) -> None:
    fresh = fresh_responses(context, subject)

    def work(shard: Sequence[PromptedPair]) -> pa.Table:
        contests = [(prompt, pair, fresh[prompt.id]) for prompt, pair in shard]
        with context.annotating(subject.folder) as annotator:
            return table(compared(AnnotatorPreference(annotator), contests), COMPARISONS_SCHEMA)

    folder = f"{subject.folder}/comparisons"
    context.run.shards(folder, items, context.config.shard_size, work, context.shows)


Contest = tuple[Prompt, PreferencePair, Sequence[Response]]
"""A prompt, its offline pair, and the policy's two responses."""


def compared(model: PreferenceModel, contests: Sequence[Contest]) -> list[Row]:
    """Compares each fresh response with each offline one; `preference` is the probability that the fresh one wins."""
    places: list[Row] = []
    comparisons: list[Comparison] = []
    for prompt, pair, fresh in contests:
        for index, response in enumerate(fresh):
            for side in OFFLINE_SIDES:
                places.append({"prompt_id": prompt.id, "fresh": index, "offline": side})
                comparisons.append(Comparison(prompt, response, getattr(pair, side)))
    preferences = model.preferences(comparisons)
    rows = [place | {"preference": value} for place, value in zip(places, preferences, strict=True)]
    return rows + [row for prompt, _, fresh in contests for row in unanswered(prompt.id, len(fresh))]


def unanswered(prompt_id: int, received: int) -> list[Row]:
    """The comparisons of missing responses, which have no preference."""
    missing = [(index, side) for index in range(received, FRESH) for side in OFFLINE_SIDES]
    return [{"prompt_id": prompt_id, "fresh": index, "offline": side, "preference": None} for index, side in missing]


def summary(tally: Tally) -> Summary:
    """The summary of a measurement in `state.json`."""
    boundary = tally.boundary
    low, high = boundary.interval
    return {
        "measured": boundary.prompts,
        "unanswered": len(tally.incomplete),
        "boundary_score": boundary.score,
        "low": low,
        "high": high,
        "decision": boundary.decision,
        "injection": boundary.leans_to_injection,
        "v_on": boundary.won,
        "v_off": boundary.lost,
        "ties": boundary.ties,
    }
