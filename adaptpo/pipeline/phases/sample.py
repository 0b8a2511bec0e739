"""Select prompts, generate fresh responses, annotate them, and build the pairs of an iteration."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from adaptpo.annotation.base import Request
from adaptpo.choices.pairing import Candidates, NoPair
from adaptpo.choices.selection import ScoredPrompts
from adaptpo.models.inference import PromptedPair
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.generator import MISSING, generating
from adaptpo.pipeline.phases.features import read_features
from adaptpo.pipeline.phases.score import keep_reference
from adaptpo.run.arrow_rows import MappedRows, write_batches, write_rows
from adaptpo.run.directory import LeftOut, Row
from adaptpo.run.files import read_columns, write_table
from adaptpo.run.lazy_sequence import Lazy, Places, as_array, matched
from adaptpo.run.schemas import (
    ANNOTATIONS_SCHEMA,
    PAIRS_SCHEMA,
    RESPONSES_SCHEMA,
    SELECTION_SCHEMA,
    pair_row,
    read_generated,
    read_pair,
    response_rows,
    table,
)
from adaptpo.seeds import seed_for, uniform_for
from adaptpo.types import PreferencePair, Prompt, Response

Summary = dict[str, Any]


def select_prompts(context: Context, iteration: int) -> Summary:
    """Draw which prompts get fresh responses, each with its own uniform number."""
    ids = as_array(context.offline_ids(iteration))
    chances = context.method_in(iteration).selection.probability(scored_prompts(context, iteration, ids))
    probability = chances.detach().double().numpy()
    draws = (uniform_for(context.config.seed, "select", iteration, int(id_)) for id_ in ids)
    u = np.fromiter(draws, np.float64, len(ids))
    selected = drawn(probability, u)
    columns = (ids, probability.astype(np.float32), u, selected)
    write_table(selection_file(context, iteration), pa.Table.from_arrays(columns, schema=SELECTION_SCHEMA))
    return {"prompts": len(ids), "selected": int(selected.sum())}


def drawn(probability: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Algorithm 1's u > w, for w = 1 - p: always for p = 1, never for p = 0. The numbers u are in [0, 1)."""
    return u >= 1 - probability


def selection_file(context: Context, iteration: int) -> Path:
    return context.run.path / context.folder(iteration) / "selection.parquet"


def scored_prompts(context: Context, iteration: int, ids: NDArray[np.int64]) -> ScoredPrompts:
    prompt_id = torch.from_numpy(ids)
    if not context.method.selection.needs_margins:
        return ScoredPrompts(len(ids), prompt_id=prompt_id)
    columns = context.run.read_columns(
        f"{context.folder(iteration)}/scores", "margin", "chosen_ratio", "rejected_ratio"
    )
    margin, *ratios = (torch.from_numpy(column.astype(np.float32)) for column in columns)
    return ScoredPrompts(len(ids), margin, torch.stack(ratios, dim=1), prompt_id, read_features(context, iteration))


def selected_ids(context: Context, iteration: int) -> NDArray[np.int64]:
    ids, selected = read_columns(selection_file(context, iteration), "prompt_id", "selected")
    return ids[selected]


def generate_responses(context: Context, iteration: int) -> Summary:
    """K fresh responses to each selected prompt from the policy that starts the iteration; those that never came are
    recorded."""
    count = context.method_in(iteration).pairing.num_generations
    ids = selected_ids(context, iteration)[: None if count else 0]
    folder = responses_folder(context, iteration)

    def work(shard: Sequence[Prompt]) -> pa.Table:
        seeds = [seed_for(context.config.seed, "generate", iteration, prompt.id) for prompt in shard]
        return table(response_rows(shard, generator.generate(shard, count, seeds)), RESPONSES_SCHEMA)

    with generating(context, context.start_policy(iteration), f"{context.folder(iteration)}/generate") as generator:
        context.run.shards(folder, context.prompts_of(ids), context.config.shard_size, work, context.shows)
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
class Answered:
    """A selected prompt with its offline pair and its fresh responses; none where they never came."""

    prompt: Prompt
    offline: PreferencePair
    responses: list[Response]


def answered_prompts(context: Context, iteration: int) -> Lazy[Answered]:
    """In the order of generation."""
    folder, size = responses_folder(context, iteration), context.config.shard_size
    pairs = context.pairs_of(selected_ids(context, iteration))

    def read(places: Places) -> list[Answered]:
        responses: dict[int, list[Response]] = defaultdict(list)
        for row in context.run.read_shards_of(folder, places, size):
            responses[row["prompt_id"]].append(read_generated(row))
        return [Answered(prompt, offline, responses[prompt.id]) for prompt, offline in pairs.read(places)]

    return Lazy(len(pairs), read, size)


Judged = tuple[Prompt, list[tuple[int, Response]]]
CHOSEN, REJECTED = -2, -1
"""Indices of the offline pair's responses among those of a prompt; fresh ones count from 0."""


def judged_prompts(context: Context, iteration: int) -> Lazy[Judged]:
    """The responses to annotate with their indices: the fresh ones, and the offline ones where they are ranked too."""
    ranks_offline = context.method_in(iteration).pairing.ranks_offline

    def judged(answered: Answered) -> Judged:
        offline = [(CHOSEN, answered.offline.chosen), (REJECTED, answered.offline.rejected)]
        return answered.prompt, [*enumerate(answered.responses), *(offline if ranks_offline else [])]

    return answered_prompts(context, iteration).map(lambda some: [judged(answered) for answered in some])


def annotate_responses(context: Context, iteration: int) -> Summary:
    """One reward per response; responses without a valid one are recorded and left out."""
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
    """What annotating took, over all attempts."""
    phase = f"{context.folder(iteration)}/annotate"
    lines = (line for line in context.run.metrics.records() if line["phase"] == phase)
    counts = (Counter({k: v for k, v in line.items() if k.startswith("annotation/")}) for line in lines)
    return dict(sum(counts, Counter()))


def rewards_of(
    context: Context, iteration: int, requests: Sequence[Request]
) -> list[tuple[float | None, list[float] | None]]:
    """The reward of each response, and those of its objectives where the pairing ranks by several."""
    phase, count = f"{context.folder(iteration)}/annotate", context.method.pairing.objectives
    if not count:
        return [(reward, None) for reward in context.annotate(phase, requests)]
    several = context.annotate_objectives(phase, requests, count)
    return [(None, None) if values is None else (sum(values) / count, values) for values in several]


def build_pairs(context: Context, iteration: int) -> Summary:
    """What each prompt of this part contributes; selected prompts whose responses make no pair are recorded."""
    with context.run.dropping(f"{context.folder(iteration)}/pair") as left_out:
        rows = map(pair_row, contributed(context, iteration, left_out))
        pairs = write_rows(pairs_file(context, iteration), rows, PAIRS_SCHEMA)
    path = context.run.path / context.folder(iteration) / "pairs.parquet"
    write_batches(path, pairs.batches(), PAIRS_SCHEMA)
    sources: Counter[str] = Counter()
    for batch in pairs.batches():
        sources.update(batch["source"].to_pylist())
    return {"pairs": len(pairs), **sources, "no_pair": left_out.reasons.total()}


def pairs_file(context: Context, iteration: int) -> Path:
    return context.scratch(context.folder(iteration), "pairs")


def contributed(context: Context, iteration: int, left_out: LeftOut) -> Iterator[PreferencePair]:
    pairing = context.method_in(iteration).pairing
    candidates = read_candidates(context, iteration)
    for (prompt, offline), own in matched(context.offline(iteration), candidates, lambda i, c: i[0].id == c.prompt_id):
        outcome = pairing.pairs(replace(offline, iteration=iteration), own)
        if isinstance(outcome, NoPair):
            left_out.add({"prompt_id": prompt.id, "reason": outcome.reason})
        else:
            yield from outcome


def read_candidates(context: Context, iteration: int) -> Sequence[Candidates]:
    """Of the selected prompts, in the order of generation."""
    if not context.run.done(f"{context.folder(iteration)}/generate"):
        return []
    answered = answered_prompts(context, iteration)
    folder, size = annotations_folder(context, iteration), context.config.shard_size

    def read(places: Places) -> list[Candidates]:
        found = {(row["prompt_id"], row["index"]): row for row in context.run.read_shards_of(folder, places, size)}
        return [candidates_of(iteration, some, found) for some in answered.read(places)]

    return Lazy(len(answered), read, size)


def candidates_of(iteration: int, answered: Answered, annotations: Mapping[tuple[int, int], Row]) -> Candidates:
    """`annotations`: rows by prompt id and index of the response."""
    id_ = answered.prompt.id
    fresh = [annotations[id_, index] for index in range(len(answered.responses))]
    chosen, rejected = (annotations.get((id_, index), {}).get("reward") for index in (CHOSEN, REJECTED))
    return Candidates(
        prompt_id=id_,
        iteration=iteration,
        responses=tuple(answered.responses),
        rewards=tuple(row["reward"] for row in fresh),
        objectives=tuple(row["objectives"] for row in fresh),
        offline_rewards=(chosen, rejected),
    )


def iteration_pairs(context: Context, iteration: int) -> Lazy[PromptedPair]:
    rows = MappedRows(pairs_file(context, iteration))

    def read(places: Places) -> list[PromptedPair]:
        pairs = [read_pair(row) for row in rows.read(places)]
        ids = list(dict.fromkeys(pair.prompt_id for pair in pairs))
        prompts = dict(zip(ids, context.prompts_of(np.array(ids, dtype=np.int64)), strict=True))
        return [(prompts[pair.prompt_id], pair) for pair in pairs]

    return Lazy(len(rows), read, context.config.shard_size)


def fresh_pairs(context: Context, iteration: int) -> Lazy[PromptedPair]:
    """Those that are not the data set's own."""
    sources = [batch["source"] for batch in MappedRows(pairs_file(context, iteration)).batches()]
    fresh = [pc.not_equal(source, "offline").to_numpy(zero_copy_only=False) for source in sources]
    return iteration_pairs(context, iteration).take(np.flatnonzero(np.concatenate([np.zeros(0, bool), *fresh])))


def keep_iteration_reference(context: Context, iteration: int) -> Summary:
    """Reference log-probs of this iteration's pairs: of the online ones under the initial model (the offline ones are
    kept already), or of all, those held out included, under the policy that started the iteration."""
    folder = f"{context.folder(iteration)}/reference"
    if context.reference_choice == "previous":
        items = iteration_pairs(context, iteration) + context.validation()
        return keep_reference(context, folder, context.start_policy(iteration), items)
    return keep_reference(context, folder, context.initial, fresh_pairs(context, iteration))
