"""Computes and stores the reference's log-probs of pairs, which later phases join to the pairs."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from adaptpo.models.inference import PromptedPair, TokenLogps, evaluate_tokens
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases.pair import fresh_pairs, iteration_pairs
from adaptpo.run.directory import Summary
from adaptpo.run.schemas import LOGPS_SCHEMA, TOKEN_LOGPS_SCHEMA, table
from adaptpo.types import PairLogps, Row


def keep_reference(context: Context, folder: str, path: str, items: Sequence[PromptedPair]) -> Summary:
    """Stores log-probs of pairs under the reference at `path`, in shards; also per token if the method needs that."""
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
    assert logps.shared is not None
    columns = (logps.chosen, logps.rejected, *logps.shared.unbind(dim=1))
    names = ("chosen", "rejected", "chosen_shared", "rejected_shared")
    values = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {
            "prompt_id": prompt.id,
            "source": pair.source,
            "objective": pair.objective,
            **dict(zip(names, sums, strict=True)),
        }
        for (prompt, pair), sums in zip(items, values, strict=True)
    ]


def with_tokens(row: Row, tokens: TokenLogps) -> Row:
    return row | {"chosen_tokens": tokens[0], "rejected_tokens": tokens[1]}


def keep_initial_reference(context: Context, folder: str, items: Sequence[PromptedPair]) -> Summary:
    if not context.method.needs_reference:
        return {}
    return keep_reference(context, folder, context.first_reference, items)


def keep_iteration_reference(context: Context, iteration: int) -> Summary:
    """Stores reference log-probs of this iteration's pairs. If the reference is the initial model, only online pairs
    are computed (the offline ones are stored already). If it is the policy that started the iteration, all pairs are,
    including those held out."""
    folder = f"{context.folder(iteration)}/reference"
    if context.reference_choice == "previous":
        items = iteration_pairs(context, iteration) + context.validation()
        return keep_reference(context, folder, context.start_policy(iteration), items)
    return keep_reference(context, folder, context.first_reference, fresh_pairs(context, iteration))
