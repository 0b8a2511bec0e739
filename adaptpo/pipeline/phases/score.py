"""Scores the offline pairs with the policy, relative to the stored reference log-probs."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from adaptpo.choices.objectives import score
from adaptpo.models.inference import PromptedPair, evaluate_pairs
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.kept_reference import with_reference
from adaptpo.run.directory import Summary
from adaptpo.run.schemas import SCORES_SCHEMA, table
from adaptpo.types import PairLogps, Row


def score_offline(context: Context, iteration: int) -> Summary:
    """Stores the policy's margin and score (Eq. 4) of each offline pair of this part."""
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
