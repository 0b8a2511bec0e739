"""Checks that the fast paths are exact for this run's model and data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from adaptpo.distributed.launch import converts_weights
from adaptpo.models.inference import PromptedPair, autocast
from adaptpo.models.self_check import choose_rows, loss_at_reference, representative
from adaptpo.pipeline.context import Context
from adaptpo.run.arrow_rows import MappedRows
from adaptpo.run.directory import Summary
from adaptpo.types import PreferencePair, PromptGroup, Response

Counts = NDArray[np.int32]
SAVED_BY_FRESH_RESPONSES = 0.5
"""Share of the tokens that shared prompts are taken to save before there are responses: K of them follow a prompt."""
TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")


def check_model(context: Context) -> Summary:
    """Decides once, with the initial policy, so that all phases compute policy and reference in the same way."""
    shared, padded = token_counts(context.offline_rows)
    prompt, pair = context.offline()[representative(shared)] if context.has_pairs else stand_in(context)
    # Where training converts the weights, only a model for reading has them as they are in training.
    load = context.policy if converts_weights() else context.trainable_policy
    dtype, model = context.compute_dtype, load(context.initial)
    subject = {
        "model": model,
        "group": PromptGroup(prompt, (with_both_sides(pair),)),
        "pad_id": context.tokenizer.pad_token_id,
        "dtype": dtype,
        "precision": lambda: autocast(context.inference_arguments),
    }
    saved = 1 - int(shared.sum()) / padded if padded else SAVED_BY_FRESH_RESPONSES
    facts = choose_rows(**subject, saved=saved)
    if context.config.disable_dropout:
        facts |= {"loss_at_reference": loss_at_reference(**subject, objective=context.method.objective)}
    return facts


def with_both_sides(pair: PreferencePair) -> PreferencePair:
    """The pair; that of an unpaired row has half of its response in the place of the other, so that the check sees two
    lengths."""
    present = pair.chosen if pair.chosen.ids else pair.rejected
    half = Response(present.text, present.ids[: max(1, len(present.ids) // 2)])
    chosen, rejected = (side if side.ids else half for side in (pair.chosen, pair.rejected))
    return replace(pair, chosen=chosen, rejected=rejected)


def token_counts(rows: MappedRows) -> tuple[Counts, int]:
    """The counts of `row_tokens`: for each offline pair with a shared prompt, [n], and for all pairs padded."""
    shared, padded = np.zeros(len(rows), dtype=np.int32), 0
    end = 0
    for batch in rows.batches():
        paired = batch.filter(batch["chosen_ids"].is_valid())
        prompt, chosen, rejected = (pc.list_value_length(paired[name]).to_numpy() for name in TOKENS)
        present = (chosen > 0).astype(np.int32) + (rejected > 0)
        start, end = end, end + len(prompt)
        shared[start:end] = prompt + chosen + rejected - present
        padded += int((present * (prompt + np.maximum(chosen, rejected))).sum())
    return shared[:end], padded


def stand_in(context: Context) -> PromptedPair:
    """The longest prompt with its own tokens as responses, for a run whose prompts have no responses yet."""
    lengths = [pc.list_value_length(batch["prompt_ids"]).to_numpy() for batch in context.offline_rows.batches()]
    prompt = context.prompts_of(context.prompt_ids())[representative(np.concatenate(lengths))]
    longest = context.sampling.max_new_tokens - 1
    sides = (prompt.ids[:longest], prompt.ids[::-1][: longest // 2])
    chosen, rejected = (Response("", [*ids, min(context.stop_ids)]) for ids in sides)
    return prompt, PreferencePair(prompt.id, "offline", chosen, rejected)
