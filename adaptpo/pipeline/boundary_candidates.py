"""Log-probs and lengths of a measurement's responses under the measured policy."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from adaptpo.models.inference import PromptedPair, evaluate_pairs
from adaptpo.pipeline.boundary_measure import FRESH, Subject, draw, fresh_responses
from adaptpo.pipeline.context import Context
from adaptpo.run.schemas import CANDIDATES_SCHEMA, table
from adaptpo.types import PairLogps, PreferencePair, Response, Row


def keep_candidates(context: Context, subject: Subject) -> Row:
    """Stores log-probs and lengths of the four responses of each measured prompt, in shards."""
    fresh = fresh_responses(context, subject)
    measured = [item for item in draw(context, subject) if len(fresh[item[0].id]) == FRESH]

    def work(shard: Sequence[PromptedPair]) -> pa.Table:
        own = [(prompt, fresh_pair(prompt.id, fresh[prompt.id])) for prompt, _ in shard]
        rows = [row for items in (own, shard) for row in candidate_rows(items, logps_of(context, subject, items))]
        return table(rows, CANDIDATES_SCHEMA)

    folder = f"{subject.folder}/candidates"
    context.run.shards(folder, measured, context.config.shard_size, work, context.shows)
    return {"prompts": len(measured)}


def fresh_pair(prompt_id: int, responses: Sequence[Response]) -> PreferencePair:
    """The two responses as a pair, in sampling order; the order expresses no preference."""
    first, second = responses
    return PreferencePair(prompt_id, "online", first, second)


def logps_of(context: Context, subject: Subject, items: Sequence[PromptedPair]) -> PairLogps:
    model, pad_id = context.policy(subject.policy), context.tokenizer.pad_token_id
    return evaluate_pairs(model, pad_id, items, context.inference_arguments, context.rows)


def candidate_rows(items: Sequence[PromptedPair], logps: PairLogps) -> list[Row]:
    names = ("prompt_id", "source", "first", "second", "first_tokens", "second_tokens")
    first, second = logps.chosen.tolist(), logps.rejected.tolist()
    return [
        dict(zip(names, (prompt.id, pair.source, *values, len(pair.chosen.ids), len(pair.rejected.ids)), strict=True))
        for (prompt, pair), *values in zip(items, first, second, strict=True)
    ]
