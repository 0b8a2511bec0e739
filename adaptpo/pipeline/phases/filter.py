"""Computes what a method's filter needs to know about the offline pairs, and records which ones it keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from adaptpo.choices.filters import PairFacts
from adaptpo.models.inference import PromptedPair, evaluate_pairs
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.kept_reference import with_reference
from adaptpo.pipeline.phases.reference import keep_initial_reference
from adaptpo.pipeline.phases.train import train
from adaptpo.run.directory import Summary
from adaptpo.run.files import write_table
from adaptpo.run.lazy_sequence import Lazy, as_array
from adaptpo.run.schemas import FILTER_SCHEMA
from adaptpo.types import PairLogps

PHASE = "filter"


def filter_pairs(context: Context) -> Summary:
    """Writes `data/filter.parquet`: each pair's priority, its rank in it, and whether it is kept."""
    facts = gather_facts(context, context.offline())
    return context.ranks.on_first(partial(decide, context, facts))


def proxies(context: Context) -> list[str]:
    """The folders of the proxy models that were trained for the filter."""
    return [f"{PHASE}/{path.parent.name}" for path in (context.run.path / PHASE).glob("*/checkpoint")]


def decide(context: Context, facts: PairFacts) -> Summary:
    ids = as_array(context.offline_ids())
    priority, kept = context.method.filter.priority(facts), context.method.filter.keep(facts)
    rank = priority.argsort(descending=True, stable=True).argsort()
    left_out = ids[~kept.numpy()]
    context.run.drop(PHASE, ({"prompt_id": int(id_), "reason": "left out by the filter"} for id_ in left_out))
    columns = (ids, priority.float().numpy(), rank.numpy(), kept.numpy())
    path = context.run.path / "data" / "filter.parquet"
    write_table(path, pa.Table.from_arrays(columns, schema=FILTER_SCHEMA))
    context.run.keep(path)
    annotated = {"annotated": 2 * len(ids)} if facts.reward_gap is not None else {}
    return {"kept": len(ids) - len(left_out), "dropped": len(left_out), **annotated}


def gather_facts(context: Context, items: Lazy[PromptedPair]) -> PairFacts:
    sources: dict[str, Callable[[], Tensor]] = {
        "perplexity": partial(perplexities, context, items),
        "margin": partial(proxy_margins, context, "all", items, items),
        "held_out_margin": partial(held_out_margins, context, items),
        "reward_gap": partial(reward_gaps, context, items),
    }
    return PairFacts(len(items), **{name: sources[name]() for name in sorted(context.method.filter.needs)})


def in_pieces(
    context: Context, items: Lazy[PromptedPair], evaluate: Callable[[Sequence[PromptedPair]], Tensor]
) -> Tensor:
    """The results of `evaluate`, which is called on one shard of pairs at a time, [n]. Ranks share out the shards."""
    size = context.config.shard_size
    own = [evaluate(items[start : start + size]) for start in context.ranks.share(range(0, len(items), size))]
    return torch.cat([torch.zeros(0), *context.ranks.gather_shares(own)])


def logps_under(context: Context, policy: str, items: Sequence[PromptedPair]) -> PairLogps:
    pad_id, args = context.tokenizer.pad_token_id, context.inference_arguments
    return evaluate_pairs(context.policy(policy), pad_id, items, args, context.rows)


def perplexities(context: Context, items: Lazy[PromptedPair]) -> Tensor:
    def perplexity(some: Sequence[PromptedPair]) -> Tensor:
        logps = logps_under(context, context.initial, some)
        return (-logps.chosen / logps.chosen_tokens).exp()

    return in_pieces(context, items, perplexity)


def proxy_margins(context: Context, name: str, training: Lazy[PromptedPair], items: Lazy[PromptedPair]) -> Tensor:
    """Margins of `items` under a model trained with the method's objective for one epoch on `training`."""
    phase = f"{PHASE}/{name}"
    keep_initial_reference(context, "reference", context.offline())
    checkpoint = str(context.run.path / phase / "checkpoint")
    if not context.ranks.on_first(partial(context.run.intact, Path(checkpoint))):
        train(context, phase, with_reference(context, "reference", training), context.initial, proxy=True)

    def margins(some: Sequence[PromptedPair]) -> Tensor:
        return context.method.objective.margin(logps_under(context, checkpoint, some))

    return in_pieces(context, with_reference(context, "reference", items), margins)


def held_out_margins(context: Context, items: Lazy[PromptedPair]) -> Tensor:
    """Each pair's margin under the model that was trained on the half without it."""
    halves = [items.take(range(first, len(items), 2)) for first in (0, 1)]
    margins = torch.zeros(len(items))
    for number in (0, 1):
        if halves[number]:
            margins[number::2] = proxy_margins(context, f"half-{1 - number}", halves[1 - number], halves[number])
    return margins


def reward_gaps(context: Context, items: Lazy[PromptedPair]) -> Tensor:
    return in_pieces(context, items, partial(annotated_gaps, context))


def annotated_gaps(context: Context, items: Sequence[PromptedPair]) -> Tensor:
    requests = [(prompt, side) for prompt, pair in items for side in (pair.chosen, pair.rejected)]
    rewards = [float("nan") if reward is None else reward for reward in context.annotate(PHASE, requests)]
    chosen, rejected = torch.tensor(rewards).view(-1, 2).unbind(dim=1)
    return chosen - rejected
