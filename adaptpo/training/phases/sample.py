"""Select prompts, generate fresh responses, annotate them, and build the pairs of an iteration."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch

from adaptpo.annotation.base import Request
from adaptpo.files import read_rows, write_table
from adaptpo.pairing import Candidates, NoPair
from adaptpo.records import (
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
from adaptpo.run import Row
from adaptpo.seeds import seed_for, uniform_for
from adaptpo.selection import ScoredPrompts
from adaptpo.training.context import Context
from adaptpo.training.generating import MISSING, generating
from adaptpo.training.passes import PromptedPair
from adaptpo.training.phases.features import read_features
from adaptpo.training.phases.score import keep_reference
from adaptpo.types import PreferencePair, Prompt, Response

Summary = dict[str, Any]


def select_prompts(context: Context, iteration: int) -> Summary:
    """Draw which prompts get fresh responses, each with its own uniform number."""
    prompts = [prompt for prompt, _ in context.offline(iteration)]
    probabilities = context.method_in(iteration).selection.probability(scored_prompts(context, iteration, prompts))
    rows = [
        selection_row(prompt.id, probability, uniform_for(context.config.seed, "select", iteration, prompt.id))
        for prompt, probability in zip(prompts, probabilities.tolist(), strict=True)
    ]
    write_table(context.run.path / context.folder(iteration) / "selection.parquet", table(rows, SELECTION_SCHEMA))
    return {"prompts": len(rows), "selected": sum(row["selected"] for row in rows)}


def scored_prompts(context: Context, iteration: int, prompts: Sequence[Prompt]) -> ScoredPrompts:
    ids = torch.tensor([prompt.id for prompt in prompts], dtype=torch.long)
    if not context.method.selection.needs_margins:
        return ScoredPrompts(len(prompts), prompt_id=ids)
    names = ["margin", "chosen_ratio", "rejected_ratio"]
    rows = context.run.read_shards(f"{context.folder(iteration)}/scores", names)
    margin, *ratios = torch.tensor([[row[name] for name in names] for row in rows], dtype=torch.float32).view(-1, 3).T
    return ScoredPrompts(len(prompts), margin, torch.stack(ratios, dim=1), ids, read_features(context, iteration))


def selection_row(prompt_id: int, probability: float, u: float) -> Row:
    # u >= 1 - p is Algorithm 1's u > w, and holds always for p = 1 and never for p = 0.
    return {"prompt_id": prompt_id, "probability": probability, "u": u, "selected": u >= 1 - probability}


def selected_prompts(context: Context, iteration: int) -> list[Prompt]:
    rows = read_rows(context.run.path / context.folder(iteration) / "selection.parquet")
    selected = {row["prompt_id"] for row in rows if row["selected"]}
    return [prompt for prompt, _ in context.offline(iteration) if prompt.id in selected]


def generate_responses(context: Context, iteration: int) -> Summary:
    """K fresh responses to each selected prompt from the policy that starts the iteration; those that never came are
    recorded."""
    count = context.method_in(iteration).pairing.num_generations
    prompts = selected_prompts(context, iteration) if count else []
    folder = f"{context.folder(iteration)}/responses"

    def work(shard: Sequence[Prompt]) -> pa.Table:
        seeds = [seed_for(context.config.seed, "generate", iteration, prompt.id) for prompt in shard]
        return table(response_rows(shard, generator.generate(shard, count, seeds)), RESPONSES_SCHEMA)

    with generating(context, context.start_policy(iteration), f"{context.folder(iteration)}/generate") as generator:
        context.run.shards(folder, prompts, context.config.shard_size, work, context.shows)
    rows = list(context.run.read_shards(folder, ["prompt_id", "ended"]))
    ended = [row["ended"] for row in rows]
    received = Counter(row["prompt_id"] for row in rows)
    incomplete = [prompt.id for prompt in prompts if received[prompt.id] < count]
    records = [{"prompt_id": id_, "missing": count - received[id_], "reason": MISSING} for id_ in incomplete]
    context.run.drop(f"{context.folder(iteration)}/generate", records)
    counts = {"prompts": len(prompts), "responses": len(ended), "truncated": len(ended) - sum(ended)}
    return counts | ({"missing": len(prompts) * count - len(ended)} if records else {})


Answered = tuple[Prompt, list[Response]]


def answered_prompts(context: Context, iteration: int) -> list[Answered]:
    """The selected prompts with their fresh responses, in the order of generation; a prompt whose responses never came
    has none."""
    if not context.run.done(f"{context.folder(iteration)}/generate"):
        return []
    responses: dict[int, list[Response]] = defaultdict(list)
    for row in context.run.read_shards(f"{context.folder(iteration)}/responses"):
        responses[row["prompt_id"]].append(read_generated(row))
    return [(prompt, responses[prompt.id]) for prompt in selected_prompts(context, iteration)]


Judged = tuple[Prompt, list[tuple[int, Response]]]
CHOSEN, REJECTED = -2, -1
"""Indices of the offline pair's responses among those of a prompt; fresh ones count from 0."""


def judged_prompts(context: Context, iteration: int) -> list[Judged]:
    """The responses to annotate with their indices: the fresh ones, and the offline ones where they are ranked too."""
    pairs = {prompt.id: pair for prompt, pair in context.offline(iteration)}
    judged: list[Judged] = []
    ranks_offline = context.method_in(iteration).pairing.ranks_offline
    for prompt, responses in answered_prompts(context, iteration):
        indexed = list(enumerate(responses))
        if ranks_offline:
            pair = pairs[prompt.id]
            indexed += [(CHOSEN, pair.chosen), (REJECTED, pair.rejected)]
        judged.append((prompt, indexed))
    return judged


def annotate_responses(context: Context, iteration: int) -> Summary:
    """One reward per response; responses without a valid one are recorded and left out."""
    judged = judged_prompts(context, iteration)
    folder = f"{context.folder(iteration)}/annotations"

    def work(shard: Sequence[Judged]) -> pa.Table:
        requests = [(prompt, response) for prompt, responses in shard for _, response in responses]
        places = [(prompt.id, index) for prompt, responses in shard for index, _ in responses]
        names = ("prompt_id", "index", "reward", "objectives")
        judged = zip(places, rewards_of(context, iteration, requests), strict=True)
        return table([dict(zip(names, (*place, *found), strict=True)) for place, found in judged], ANNOTATIONS_SCHEMA)

    context.run.shards(folder, judged, context.config.shard_size, work, context.shows)
    rows = list(context.run.read_shards(folder))
    invalid = [row for row in rows if row["reward"] is None]
    reason = "no valid reward (missing, NaN or infinite, too long for the reward model, or without a valid verdict)"
    records = [{"prompt_id": row["prompt_id"], "index": row["index"], "reason": reason} for row in invalid]
    context.run.drop(f"{context.folder(iteration)}/annotate", records)
    return {"annotated": len(rows), "invalid": len(invalid), **annotation_usage(context, iteration)}


def annotation_usage(context: Context, iteration: int) -> Summary:
    """What annotating took, over all attempts."""
    phase = f"{context.folder(iteration)}/annotate"
    lines = (line for line in context.run.metrics.read() if line["phase"] == phase)
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
    candidates = read_candidates(context, iteration)
    pairs: list[PreferencePair] = []
    left_out: list[Row] = []
    pairing = context.method_in(iteration).pairing
    for prompt, offline in context.offline(iteration):
        offline = replace(offline, iteration=iteration)
        outcome = pairing.pairs(offline, candidates.get(prompt.id))
        if isinstance(outcome, NoPair):
            left_out.append({"prompt_id": prompt.id, "reason": outcome.reason})
        else:
            pairs += outcome
    context.run.drop(f"{context.folder(iteration)}/pair", left_out)
    path = context.run.path / context.folder(iteration) / "pairs.parquet"
    write_table(path, table(map(pair_row, pairs), PAIRS_SCHEMA))
    sources: Summary = dict(Counter(pair.source for pair in pairs))
    return {"pairs": len(pairs), **sources, "no_pair": len(left_out)}


def read_candidates(context: Context, iteration: int) -> dict[int, Candidates]:
    rows = context.run.read_shards(f"{context.folder(iteration)}/annotations")
    rewards, several = {}, {}
    for row in rows:
        place = row["prompt_id"], row["index"]
        rewards[place], several[place] = row["reward"], row["objectives"]
    return {
        prompt.id: Candidates(
            prompt_id=prompt.id,
            iteration=iteration,
            responses=tuple(responses),
            rewards=tuple(rewards[prompt.id, index] for index in range(len(responses))),
            objectives=tuple(several[prompt.id, index] for index in range(len(responses))),
            offline_rewards=(rewards.get((prompt.id, CHOSEN)), rewards.get((prompt.id, REJECTED))),
        )
        for prompt, responses in answered_prompts(context, iteration)
    }


def iteration_pairs(context: Context, iteration: int) -> list[PromptedPair]:
    prompts = {prompt.id: prompt for prompt, _ in context.offline(iteration)}
    rows = read_rows(context.run.path / context.folder(iteration) / "pairs.parquet")
    return [(prompts[row["prompt_id"]], read_pair(row)) for row in rows]


def keep_iteration_reference(context: Context, iteration: int) -> Summary:
    """Reference log-probs of this iteration's pairs: of the online ones under the initial model (the offline ones are
    kept already), or of all, those held out included, under the policy that started the iteration."""
    folder = f"{context.folder(iteration)}/reference"
    items = iteration_pairs(context, iteration) + context.validation()
    if context.reference_choice == "previous":
        return keep_reference(context, folder, context.start_policy(iteration), items)
    fresh = [(prompt, pair) for prompt, pair in items if pair.source != "offline"]
    return keep_reference(context, folder, context.initial, fresh)
