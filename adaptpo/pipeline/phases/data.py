"""Reads, validates and tokenizes the data, once."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from adaptpo.data import iter_examples, require_rows
from adaptpo.data.rendered import with_words_rendered
from adaptpo.data.tokenization import TokenizedPair, tokenize_pair
from adaptpo.data.unpaired import how_to_pair
from adaptpo.errors import ConfigError, DataError
from adaptpo.models.collate import data_weight
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.reward_reading import RewardReading
from adaptpo.run.arrow_rows import MappedRows, write_batches, write_rows
from adaptpo.run.directory import Summary
from adaptpo.run.left_out import LeftOut
from adaptpo.run.schemas import OFFLINE_SCHEMA, offline_row
from adaptpo.types import Dropped, PreferenceExample, PreferencePair, Prompt, Response, Row

WITHOUT_PART = pa.schema([field for field in OFFLINE_SCHEMA if field.name != "part"])


def prepare_data(context: Context) -> Summary:
    """Reads, validates and tokenizes the data, cuts it into T sequential parts, and records why rows are left out."""
    folder = context.run.path / "data"
    with context.run.dropping("data") as left_out:
        kept = write_rows(folder / "offline.arrow", tokenized_rows(context, left_out), WITHOUT_PART)
    require_rows(len(kept), left_out.reasons, context.source)
    require_parts(len(kept), context.config.num_iterations)
    write_batches(folder / "offline.parquet", in_parts(kept, context.config.num_iterations), OFFLINE_SCHEMA)
    context.run.keep(folder / "offline.arrow", folder / "offline.parquet")
    truncated = sum(count_false(batch[side]) for batch in kept.batches() for side in ("chosen_ended", "rejected_ended"))
    reasons = dict(left_out.reasons)
    return {"kept": len(kept), "dropped": left_out.reasons.total(), "truncated": truncated, "reasons": reasons}


FEW = 10


def require_parts(rows: int, parts: int) -> None:
    """Raises ConfigError if most iterations would have no data; a few are usual where somebody tries out a few rows."""
    if parts > max(rows, FEW):
        raise ConfigError(
            f"num_iterations is {parts}, but the data has {rows} usable rows, and every iteration takes a part of "
            f"them; set num_iterations to {rows} or less"
        )


def tokenized_rows(context: Context, left_out: LeftOut) -> Iterator[Row]:
    number = 0
    reward = RewardReading.of(context)
    examples = iter_examples(context.data_rows, context.text_mode)
    for example in with_words_rendered(examples, context.tokenizer, context.config.chat_template_kwargs):
        found = example if isinstance(example, Dropped) else tokenized(context, number, example)
        if not isinstance(found, Dropped) and (problem := reward.problem(found[0])):
            found = Dropped(example.row, problem)
        if isinstance(found, Dropped):
            left_out.add({"row": found.row, "reason": found.reason})
        else:
            yield offline_row(*found, example.row)
            number += 1
    reward.announce(context.shows)


def tokenized(context: Context, number: int, example: PreferenceExample) -> tuple[Prompt, PreferencePair] | Dropped:
    if example.absent and not context.method.takes_unpaired:
        way = how_to_pair(example.columns, example.prompt)
        raise DataError(f"method '{context.method.name}' cannot train on row {example.row}: {way}")
    if problem := weight_problem(context, example):
        return Dropped(example.row, problem)
    found = tokenized_pair(context, example)
    if isinstance(found, str):
        return Dropped(example.row, found)
    prompt = Prompt(id=number, text=example.prompt, ids=found.prompt_ids, columns=example.columns)
    return prompt, offline_pair(number, example, found)


def offline_pair(number: int, example: PreferenceExample, found: TokenizedPair) -> PreferencePair:
    """The pair of an example, without the response that an unpaired row lacks."""
    nothing = Response("", [])
    chosen = nothing if example.absent == "chosen" else found.chosen
    return PreferencePair(number, "offline", chosen, nothing if example.absent == "rejected" else found.rejected)


def tokenized_pair(context: Context, example: PreferenceExample) -> TokenizedPair | str:
    """The tokens of an example within the run's limits, or the reason for leaving it out."""
    config = context.config
    limits, options = (config.max_prompt_length, config.max_completion_length), config.chat_template_kwargs
    all_turns = config.trained_turns == "all"
    return tokenize_pair(example, context.tokenizer, *limits, context.stop_ids, options, context.max_length, all_turns)


def weight_problem(context: Context, example: PreferenceExample) -> str | None:
    if not context.method.weighting.needs_data_weight:
        return None
    if "weight" not in example.columns:
        return "no column 'weight', which the method uses as weights"
    return None if data_weight(example.columns) is not None else "weight is not a finite number of 0 or more"


def in_parts(rows: MappedRows, parts: int) -> Iterator[pa.RecordBatch]:
    """The rows with the iteration that uses them (`part`), which depends on their total number."""
    for batch in rows.batches():
        part = batch["prompt_id"].to_numpy() * parts // len(rows)
        columns = {**dict(zip(batch.schema.names, batch.columns, strict=True)), "part": pa.array(part, pa.int32())}
        yield pa.RecordBatch.from_arrays([columns[name] for name in OFFLINE_SCHEMA.names], schema=OFFLINE_SCHEMA)


def count_false(flags: pa.Array) -> int:
    return len(flags) - (pc.sum(flags).as_py() or 0)
