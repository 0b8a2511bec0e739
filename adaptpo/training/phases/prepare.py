"""Read, validate and tokenize the data, once."""

from __future__ import annotations

from collections import Counter
from typing import Any

from adaptpo.data import iter_examples, require_rows
from adaptpo.files import write_table
from adaptpo.records import OFFLINE_SCHEMA, offline_row, table
from adaptpo.tokenization import tokenize_pair
from adaptpo.training.collate import data_weight
from adaptpo.training.context import Context
from adaptpo.types import Dropped, PreferenceExample, PreferencePair, Prompt

Summary = dict[str, Any]


def prepare_data(context: Context) -> Summary:
    """Read, validate, tokenize and cut into T sequential parts; every row left out is recorded with its reason."""
    kept, dropped = tokenize_rows(context)
    reasons = Counter(record.reason for record in dropped)
    context.run.drop("data", [{"row": record.row, "reason": record.reason} for record in dropped])
    require_rows(len(kept), reasons, context.source)
    parts = context.config.num_iterations
    rows = [
        offline_row(prompt, pair, row, part=index * parts // len(kept))
        for index, (row, prompt, pair) in enumerate(kept)
    ]
    write_table(context.run.path / "data" / "offline.parquet", table(rows, OFFLINE_SCHEMA))
    truncated = sum(not r.ended for _, _, pair in kept for r in (pair.chosen, pair.rejected))
    return {"kept": len(kept), "dropped": len(dropped), "truncated": truncated, "reasons": dict(reasons)}


def weight_problem(context: Context, example: PreferenceExample) -> str | None:
    if not context.method.weighting.needs_data_weight:
        return None
    if "weight" not in example.columns:
        return "no column 'weight', which the method weights by"
    return None if data_weight(example.columns) is not None else "weight is not a finite number of 0 or more"


def tokenize_rows(context: Context) -> tuple[list[tuple[int, Prompt, PreferencePair]], list[Dropped]]:
    kept: list[tuple[int, Prompt, PreferencePair]] = []
    dropped: list[Dropped] = []
    limits = (context.config.max_prompt_length, context.config.completion_limit)
    for example in iter_examples(context.data_rows, context.text_mode):
        if isinstance(example, Dropped):
            dropped.append(example)
            continue
        if problem := weight_problem(context, example):
            dropped.append(Dropped(example.row, problem))
            continue
        tokenized = tokenize_pair(example, context.tokenizer, *limits, stop_ids=context.stop_ids)
        if isinstance(tokenized, str):
            dropped.append(Dropped(example.row, tokenized))
            continue
        number = len(kept)
        prompt = Prompt(id=number, text=example.prompt, ids=tokenized.prompt_ids, columns=example.columns)
        kept.append((example.row, prompt, PreferencePair(number, "offline", tokenized.chosen, tokenized.rejected)))
    return kept, dropped
