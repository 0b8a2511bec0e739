"""Generates fresh responses to the selected prompts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adaptpo.generation.base import Generator
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.generator import MISSING, generate_shards
from adaptpo.pipeline.phases.select import selected_ids
from adaptpo.run.directory import Summary
from adaptpo.run.lazy_sequence import Indices, Lazy
from adaptpo.run.schemas import RESPONSES_SCHEMA, read_generated, response_rows, table
from adaptpo.seeds import seed_for
from adaptpo.types import PreferencePair, Prompt, Response, Row


def generate_responses(context: Context, iteration: int) -> Summary:
    """Generates K fresh responses to each selected prompt with the policy that starts the iteration, and records the
    missing ones."""
    count = context.method_in(iteration).pairing.num_generations
    ids = selected_ids(context, iteration)[: None if count else 0]
    folder = responses_folder(context, iteration)

    def work(generator: Generator, shard: Sequence[Prompt]) -> pa.Table:
        seeds = [seed_for(context.config.seed, "generate", iteration, prompt.id) for prompt in shard]
        return table(response_rows(shard, generator.generate(shard, count, seeds)), RESPONSES_SCHEMA)

    policy, phase = context.start_policy(iteration), f"{context.folder(iteration)}/generate"
    generate_shards(context, policy, phase, folder, context.prompts_of(ids), work)
    (ended,) = context.run.read_columns(folder, "ended")
    context.run.drop(f"{context.folder(iteration)}/generate", incomplete(context, folder, ids, count))
    missing = len(ids) * count - len(ended)
    counts = {"prompts": len(ids), "responses": len(ended), "truncated": len(ended) - int(ended.sum())}
    return counts | ({"missing": missing} if missing else {})


def responses_folder(context: Context, iteration: int) -> str:
    return f"{context.folder(iteration)}/responses"


def incomplete(context: Context, folder: str, ids: NDArray[np.int64], count: int) -> Iterator[Row]:
    """Records of the prompts with fewer than `count` responses."""
    for start in range(0, len(ids), context.config.shard_size):
        rows = context.run.read_shards_of(folder, [start], context.config.shard_size, ["prompt_id"])
        received = Counter(row["prompt_id"] for row in rows)
        for id_ in ids[start : start + context.config.shard_size].tolist():
            if received[id_] < count:
                yield {"prompt_id": id_, "missing": count - received[id_], "reason": MISSING}


@dataclass(frozen=True)
class AnsweredPrompt:
    """A selected prompt with its offline pair, if it has one, and its fresh responses; the list is empty if all are
    missing."""

    prompt: Prompt
    offline: PreferencePair | None
    responses: list[Response]


def answered_prompts(context: Context, iteration: int) -> Lazy[AnsweredPrompt]:
    """The selected prompts with their responses, in the order of generation."""
    folder, size = responses_folder(context, iteration), context.config.shard_size
    items = context.items_of(selected_ids(context, iteration))

    def read(indices: Indices) -> list[AnsweredPrompt]:
        responses: dict[int, list[Response]] = defaultdict(list)
        for row in context.run.read_shards_of(folder, indices, size):
            responses[row["prompt_id"]].append(read_generated(row))
        return [AnsweredPrompt(prompt, offline, responses[prompt.id]) for prompt, offline in items.read(indices)]

    return Lazy(len(items), read, size)
