"""Log-probs of pairs: the kept reference, and the policy's scores of the offline pairs."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from adaptpo.choices.objectives import PairLogps, score
from adaptpo.models.inference import PromptedPair, TokenLogps, evaluate_pairs, evaluate_tokens
from adaptpo.pipeline.context import Context
from adaptpo.run.directory import Row
from adaptpo.run.lazy_sequence import Lazy, matched
from adaptpo.run.schemas import LOGPS_SCHEMA, SCORES_SCHEMA, TOKEN_LOGPS_SCHEMA, table
from adaptpo.types import PreferencePair

Summary = dict[str, Any]


def keep_reference(context: Context, folder: str, path: str, items: Sequence[PromptedPair]) -> Summary:
    """Log-probs of pairs under the reference at `path`, once, in shards; by token as well where the method needs it."""
    by_token = context.method.weighting.needs_reference_tokens

    def work(shard: Sequence[PromptedPair]) -> pa.Table:
        model, pad_id, args = context.reference(path), context.tokenizer.pad_token_id, context.inference_arguments
        logps, tokens = evaluate_tokens(model, pad_id, shard, args, context.rows, keep=by_token)
        rows = reference_rows(shard, logps)
        if not by_token:
            return table(rows, LOGPS_SCHEMA)
        return table(map(with_tokens, rows, tokens), TOKEN_LOGPS_SCHEMA)

    context.run.shards(folder, items, context.config.shard_size, work, context.shows)
    return {"pairs": len(items)}


def reference_rows(items: Sequence[PromptedPair], logps: PairLogps) -> list[Row]:
    values = zip(items, logps.chosen.tolist(), logps.rejected.tolist(), strict=True)
    return [
        {
            "prompt_id": prompt.id,
            "source": pair.source,
            "objective": pair.objective,
            "chosen": chosen,
            "rejected": rejected,
        }
        for (prompt, pair), chosen, rejected in values
    ]


def with_tokens(row: Row, tokens: TokenLogps) -> Row:
    return row | {"chosen_tokens": tokens[0], "rejected_tokens": tokens[1]}


def with_reference(context: Context, folder: str, items: Lazy[PromptedPair]) -> Lazy[PromptedPair]:
    """The pairs with the reference log-probs kept in `folder`; as they are where the method needs none."""
    return items.map(partial(joined, context, folder)) if context.method.needs_reference else items


def joined(context: Context, folder: str, items: Sequence[PromptedPair]) -> list[PromptedPair]:
    """`folder` must hold the offline pairs of all prompts, in the order of their ids."""
    ids = (prompt.id for prompt, _ in items)
    rows = context.run.read_shards_of(folder, ids, context.config.shard_size)
    kept = {row_key(row): reference_fields(row) for row in rows}
    return [(prompt, replace(pair, **kept.get(pair_key(pair), {}))) for prompt, pair in items]


def in_turn(context: Context, folder: str, items: Iterable[PromptedPair], first: int = 0) -> Iterable[PromptedPair]:
    """As `with_reference` for a folder that holds some of the items, in their order, from its row `first` on."""
    if not context.method.needs_reference:
        return items
    rows = islice(context.run.read_shards(folder), first, None)
    pairs = matched(items, rows, lambda item, row: pair_key(item[1]) == row_key(row))
    return ((prompt, replace(pair, **reference_fields(row)) if row else pair) for (prompt, pair), row in pairs)


Key = tuple[int, str, int | None]


def pair_key(pair: PreferencePair) -> Key:
    return pair.prompt_id, pair.source, pair.objective


def row_key(row: Row) -> Key:
    return row["prompt_id"], row["source"], row.get("objective")


def reference_fields(row: Row) -> Row:
    """Of a `PreferencePair`."""
    fields: Row = {"reference_logps": (row["chosen"], row["rejected"])}
    if "chosen_tokens" in row:
        fields["reference_tokens"] = (array("f", row["chosen_tokens"]), array("f", row["rejected_tokens"]))
    return fields


def keep_initial_reference(context: Context, folder: str, items: Sequence[PromptedPair]) -> None:
    if context.method.needs_reference:
        keep_reference(context, folder, context.initial, items)


def score_offline(context: Context, iteration: int) -> Summary:
    """The policy's margin and score (Eq. 4) of each offline pair of this part."""
    items = with_reference(context, "reference", context.offline(iteration))
    folder = f"{context.folder(iteration)}/scores"

    def work(shard: Sequence[PromptedPair]) -> pa.Table:
        model = context.policy(context.start_policy(iteration))
        logps = evaluate_pairs(model, context.tokenizer.pad_token_id, shard, context.inference_arguments, context.rows)
        return table(score_rows(context, shard, logps), SCORES_SCHEMA)

    context.run.shards(folder, items, context.config.shard_size, work, context.shows)
    total = sum(row["score"] for row in context.run.read_shards(folder, ["score"]))
    return {"prompts": len(items), "score_mean": total / len(items) if items else None}


def score_rows(context: Context, items: Sequence[PromptedPair], logps: PairLogps) -> list[Row]:
    margins = context.method.objective.margin(logps)
    columns = (margins, score(margins), logps.chosen, logps.rejected, *logps.ratios().unbind(dim=1))
    names = ("margin", "score", "chosen_logp", "rejected_logp", "chosen_ratio", "rejected_ratio")
    values = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {"prompt_id": prompt.id, **dict(zip(names, row, strict=True))}
        for (prompt, _), row in zip(items, values, strict=True)
    ]
