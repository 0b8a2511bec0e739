"""Joins pairs with the reference log-probs stored in the run."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

from adaptpo.models.inference import PromptedPair
from adaptpo.pipeline.context import Context
from adaptpo.run.lazy_sequence import Lazy, matched
from adaptpo.types import PreferencePair, Row


def with_reference(context: Context, folder: str, items: Lazy[PromptedPair]) -> Lazy[PromptedPair]:
    """The pairs with the reference log-probs stored in `folder`; unchanged if the method needs none."""
    return items.map(partial(joined_offline, context, folder)) if context.method.needs_reference else items


def joined_offline(context: Context, folder: str, items: Sequence[PromptedPair]) -> list[PromptedPair]:
    """The pairs, the offline ones with their reference log-probs. `folder` must hold all offline pairs, by id."""
    return joined(context, folder, items, context.pair_numbers([prompt.id for prompt, _ in items]))


def joined(context: Context, folder: str, items: Sequence[PromptedPair], numbers: Iterable[int]) -> list[PromptedPair]:
    """The pairs with their reference log-probs, which are those with these numbers in `folder`."""
    rows = context.run.read_shards_of(folder, numbers, context.config.shard_size)
    kept = {row_key(row): reference_fields(row) for row in rows}
    return [(prompt, replace(pair, **kept.get(pair_key(pair), {}))) for prompt, pair in items]


def with_ordered_reference(
    context: Context, folder: str, items: Iterable[PromptedPair], first: int = 0
) -> Iterable[PromptedPair]:
    """Like `with_reference`, for a folder that holds some of the items in the same order, starting at row `first`."""
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
    """The reference fields of a `PreferencePair`."""
    fields: Row = {"reference_logps": (row["chosen"], row["rejected"])}
    fields["reference_shared"] = (row["chosen_shared"], row["rejected_shared"])
    if "chosen_tokens" in row:
        fields["reference_tokens"] = (array("f", row["chosen_tokens"]), array("f", row["rejected_tokens"]))
    return fields
