"""Annotates the fresh responses of an iteration with rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa

from adaptpo.annotation.base import Request
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases.generate import AnsweredPrompt, answered_prompts
from adaptpo.run.directory import Summary
from adaptpo.run.lazy_sequence import Lazy
from adaptpo.run.schemas import ANNOTATIONS_SCHEMA, table
from adaptpo.types import Prompt, Response, Row

Judged = tuple[Prompt, list[tuple[int, Response]]]


CHOSEN, REJECTED = -2, -1
"""Indices of the offline pair's responses among a prompt's responses; fresh ones count from 0."""


def judged_prompts(context: Context, iteration: int) -> Lazy[Judged]:
    """The responses to annotate, with their indices: the fresh ones, and the offline ones if they are ranked too."""
    ranks_offline = context.method_in(iteration).pairing.ranks_offline

    def judged(answered: AnsweredPrompt) -> Judged:
        pair = answered.offline if ranks_offline else None
        offline = [] if pair is None else [(CHOSEN, pair.chosen), (REJECTED, pair.rejected)]
        return answered.prompt, [*enumerate(answered.responses), *offline]

    return answered_prompts(context, iteration).map(lambda some: [judged(answered) for answered in some])


def annotate_responses(context: Context, iteration: int) -> Summary:
    """Stores one reward per response; responses without a valid reward are recorded and left out."""
    folder = annotations_folder(context, iteration)

    def work(shard: Sequence[Judged]) -> pa.Table:
        requests = [(prompt, response) for prompt, responses in shard for _, response in responses]
        places = [(prompt.id, index) for prompt, responses in shard for index, _ in responses]
        names = ("prompt_id", "index", "reward", "objectives")
        judged = zip(places, rewards_of(context, iteration, requests), strict=True)
        return table([dict(zip(names, (*place, *found), strict=True)) for place, found in judged], ANNOTATIONS_SCHEMA)

    judged = judged_prompts(context, iteration)
    context.run.shards(folder, judged, context.config.shard_size, work, context.shows)
    left_out = context.run.drop(f"{context.folder(iteration)}/annotate", without_reward(context, folder))
    (indices,) = context.run.read_columns(folder, "index")
    usage = annotation_usage(context, iteration)
    return {"annotated": len(indices), "invalid": left_out.reasons.total(), **usage}


def annotations_folder(context: Context, iteration: int) -> str:
    return f"{context.folder(iteration)}/annotations"


def without_reward(context: Context, folder: str) -> Iterator[Row]:
    reason = "no valid reward (missing, NaN or infinite, too long for the reward model, or without a valid verdict)"
    for row in context.run.read_shards(folder, ["prompt_id", "index", "reward"]):
        if row["reward"] is None:
            yield {"prompt_id": row["prompt_id"], "index": row["index"], "reason": reason}


def annotation_usage(context: Context, iteration: int) -> Summary:
    """The usage counts of annotation, summed over all attempts."""
    phase = f"{context.folder(iteration)}/annotate"
    lines = (line for line in context.run.metrics.records() if line["phase"] == phase)
    counts = (Counter({k: v for k, v in line.items() if k.startswith("annotation/")}) for line in lines)
    return dict(sum(counts, Counter()))


def rewards_of(
    context: Context, iteration: int, requests: Sequence[Request]
) -> list[tuple[float | None, list[float] | None]]:
    """The reward of each response, and its reward per objective if the pairing ranks by several."""
    phase, count = f"{context.folder(iteration)}/annotate", context.method.pairing.num_rewards
    if not count:
        return [(reward, None) for reward in context.annotate(phase, requests)]
    several = context.annotate_objectives(phase, requests, count)
    return [(None, None) if values is None else (sum(values) / count, values) for values in several]
