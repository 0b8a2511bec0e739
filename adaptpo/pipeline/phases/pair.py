"""Builds the pairs of an iteration from offline pairs and annotated responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adaptpo.choices.pairing import Candidates, NoPair
from adaptpo.models.inference import PromptedPair
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases.annotate import CHOSEN, REJECTED, annotations_folder
from adaptpo.pipeline.phases.generate import AnsweredPrompt, answered_prompts
from adaptpo.run.arrow_rows import BATCH, MappedRows, write_batches, write_rows
from adaptpo.run.directory import Summary
from adaptpo.run.lazy_sequence import Indices, Lazy, matched
from adaptpo.run.left_out import LeftOut
from adaptpo.run.schemas import PAIRS_SCHEMA, pair_row, read_pair
from adaptpo.types import PreferencePair, Row


def build_pairs(context: Context, iteration: int) -> Summary:
    """Writes the pairs from the prompts of this part; records selected prompts whose responses make no pair."""
    with context.run.dropping(f"{context.folder(iteration)}/pair") as left_out:
        rows = map(pair_row, contributed(context, iteration, left_out))
        pairs = write_rows(scratch_file(context, iteration), rows, PAIRS_SCHEMA)
    write_batches(pairs_file(context, iteration), pairs.batches(), PAIRS_SCHEMA)
    context.run.keep_scratch(scratch_file(context, iteration))
    context.run.keep(pairs_file(context, iteration))
    sources: Counter[str] = Counter()
    for batch in pairs.batches():
        sources.update(batch["source"].to_pylist())
    return {"pairs": len(pairs), **sources, "no_pair": left_out.reasons.total()}


def pairs_file(context: Context, iteration: int) -> Path:
    return context.run.path / context.folder(iteration) / "pairs.parquet"


def scratch_file(context: Context, iteration: int) -> Path:
    return context.scratch(context.folder(iteration), "pairs")


def pair_rows(context: Context, iteration: int) -> MappedRows:
    """The pairs for random access; where that file is gone or damaged, it is made of `pairs.parquet` again."""
    path = scratch_file(context, iteration)

    def write() -> None:
        if not context.run.intact(path):
            stored = pq.ParquetFile(context.run.checked(pairs_file(context, iteration)))
            write_rows(path, (row for batch in stored.iter_batches(BATCH) for row in batch.to_pylist()), PAIRS_SCHEMA)
            context.run.keep_scratch(path)

    context.ranks.on_first(write)
    return MappedRows(context.run.checked(path))


def contributed(context: Context, iteration: int, left_out: LeftOut) -> Iterator[PreferencePair]:
    pairing = context.method_in(iteration).pairing
    candidates = read_candidates(context, iteration)
    items = context.items_of(context.prompt_ids(iteration))
    for (prompt, pair), own in matched(items, candidates, lambda i, c: i[0].id == c.prompt_id):
        outcome = pairing.pairs(None if pair is None else replace(pair, iteration=iteration), own)
        if isinstance(outcome, NoPair):
            left_out.add({"prompt_id": prompt.id, "reason": outcome.reason})
        else:
            yield from outcome


def read_candidates(context: Context, iteration: int) -> Sequence[Candidates]:
    """The candidates of the selected prompts, in the order of generation."""
    if not context.run.done(f"{context.folder(iteration)}/generate"):
        return []
    answered = answered_prompts(context, iteration)
    folder, size = annotations_folder(context, iteration), context.config.shard_size

    def read(indices: Indices) -> list[Candidates]:
        found = {(row["prompt_id"], row["index"]): row for row in context.run.read_shards_of(folder, indices, size)}
        return [candidates_of(iteration, some, found) for some in answered.read(indices)]

    return Lazy(len(answered), read, size)


def candidates_of(iteration: int, answered: AnsweredPrompt, annotations: Mapping[tuple[int, int], Row]) -> Candidates:
    """The candidates of a prompt. `annotations` are rows by prompt id and response index."""
    id_ = answered.prompt.id
    fresh = [annotations[id_, index] for index in range(len(answered.responses))]
    chosen, rejected = (annotations.get((id_, index), {}).get("reward") for index in (CHOSEN, REJECTED))
    return Candidates(
        prompt_id=id_,
        iteration=iteration,
        responses=tuple(answered.responses),
        rewards=tuple(row["reward"] for row in fresh),
        reward_vectors=tuple(row["objectives"] for row in fresh),
        offline_rewards=(chosen, rejected),
    )


def iteration_pairs(context: Context, iteration: int) -> Lazy[PromptedPair]:
    rows = pair_rows(context, iteration)

    def read(indices: Indices) -> list[PromptedPair]:
        pairs = [read_pair(row) for row in rows.read(indices)]
        ids = list(dict.fromkeys(pair.prompt_id for pair in pairs))
        prompts = dict(zip(ids, context.prompts_of(np.array(ids, dtype=np.int64)), strict=True))
        return [(prompts[pair.prompt_id], pair) for pair in pairs]

    return Lazy(len(rows), read, context.config.shard_size)


def fresh_pairs(context: Context, iteration: int) -> Lazy[PromptedPair]:
    """The pairs of the iteration that are not from the data set."""
    sources = [batch["source"] for batch in pair_rows(context, iteration).batches()]
    fresh = [pc.not_equal(source, "offline").to_numpy(zero_copy_only=False) for source in sources]
    return iteration_pairs(context, iteration).take(np.flatnonzero(np.concatenate([np.zeros(0, bool), *fresh])))
