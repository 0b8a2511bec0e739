"""Finds out about the offline pairs what a method's filter needs, and which of them it keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adaptpo.files import write_table
from adaptpo.filtering import PairFacts
from adaptpo.objectives import PairLogps
from adaptpo.records import FILTER_SCHEMA, table
from adaptpo.training.context import Context
from adaptpo.training.passes import PromptedPair, evaluate_pairs
from adaptpo.training.phases.score import with_kept_reference
from adaptpo.training.phases.train import train

Summary = dict[str, Any]
PHASE = "filter"


def filter_pairs(context: Context) -> Summary:
    """Writes `data/filter.parquet`: each pair's priority, its rank in it, and whether it is kept."""
    items = context.offline()
    facts = gather_facts(context, items)
    return context.ranks.on_first(partial(decide, context, items, facts))


def decide(context: Context, items: Sequence[PromptedPair], facts: PairFacts) -> Summary:
    priority, kept = context.method.filter.priority(facts), context.method.filter.keep(facts)
    order = priority.argsort(descending=True, stable=True).argsort()
    columns = (priority.tolist(), order.tolist(), kept.tolist())
    rows = [
        {"prompt_id": prompt.id, "priority": value, "rank": rank, "kept": keep}
        for (prompt, _), value, rank, keep in zip(items, *columns, strict=True)
    ]
    context.run.drop(
        PHASE, [{"prompt_id": r["prompt_id"], "reason": "left out by the filter"} for r in rows if not r["kept"]]
    )
    write_table(context.run.path / "data" / "filter.parquet", table(rows, FILTER_SCHEMA))
    return {"kept": int(kept.sum()), "dropped": len(rows) - int(kept.sum())}


def gather_facts(context: Context, items: Sequence[PromptedPair]) -> PairFacts:
    sources: dict[str, Callable[[], Tensor]] = {
        "perplexity": partial(perplexities, context, items),
        "margin": partial(proxy_margins, context, "all", items, items),
        "held_out_margin": partial(held_out_margins, context, items),
        "reward_gap": partial(reward_gaps, context, items),
    }
    return PairFacts(len(items), **{name: sources[name]() for name in sorted(context.method.filter.needs)})


def evaluated(context: Context, policy: str, items: Sequence[PromptedPair]) -> PairLogps:
    pad_id, args = context.tokenizer.pad_token_id, context.inference_arguments
    return evaluate_pairs(context.policy(policy), pad_id, items, args, context.rows)


def perplexities(context: Context, items: Sequence[PromptedPair]) -> Tensor:
    logps = evaluated(context, context.initial, items)
    return (-logps.chosen / logps.chosen_tokens).exp()


def proxy_margins(
    context: Context, name: str, training: Sequence[PromptedPair], items: Sequence[PromptedPair]
) -> Tensor:
    """Margins of `items` under a model trained with the method's objective for one epoch on `training`."""
    phase = f"{PHASE}/{name}"
    if not context.ranks.on_first((context.run.path / phase / "checkpoint").exists):
        train(context, phase, with_kept_reference(context, "reference", training), context.initial, proxy=True)
    logps = evaluated(
        context, str(context.run.path / phase / "checkpoint"), with_kept_reference(context, "reference", items)
    )
    return context.method.objective.margin(logps)


def held_out_margins(context: Context, items: Sequence[PromptedPair]) -> Tensor:
    """Each pair's margin under the model that was trained on the half without it."""
    halves = [items[0::2], items[1::2]]
    margins = torch.zeros(len(items))
    for number in (0, 1):
        if halves[number]:
            margins[number::2] = proxy_margins(context, f"half-{1 - number}", halves[1 - number], halves[number])
    return margins


def reward_gaps(context: Context, items: Sequence[PromptedPair]) -> Tensor:
    requests = [(prompt, side) for prompt, pair in items for side in (pair.chosen, pair.rejected)]
    annotated = context.ranks.on_first(partial(context.annotate, PHASE, requests))
    rewards = [float("nan") if reward is None else reward for reward in annotated]
    chosen, rejected = torch.tensor(rewards).view(-1, 2).unbind(dim=1)
    return chosen - rejected
