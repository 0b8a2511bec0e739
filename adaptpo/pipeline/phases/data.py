"""Reads, validates and tokenizes the data, once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from adaptpo.data import require_rows
from adaptpo.data.mixture import Sample
from adaptpo.data.problems import NO_RESPONSES
from adaptpo.data.repeats import REPEATS, repeats_prompt
from adaptpo.errors import ConfigError
from adaptpo.pipeline.by_dataset import flat
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.reward_reading import RewardReading
from adaptpo.run.arrow_rows import MappedRows, write_batches, write_rows
from adaptpo.run.directory import Summary
from adaptpo.run.left_out import LeftOut
from adaptpo.run.progress import say
from adaptpo.run.schemas import OFFLINE_SCHEMA, offline_row
from adaptpo.types import Dropped, Row

PHASE = "data"
WITHOUT_PART = pa.schema([field for field in OFFLINE_SCHEMA if field.name != "part"])


def prepare_data(context: Context) -> Summary:
    """Reads, validates and tokenizes the data, cuts it into T sequential parts, and records why rows are left out."""
    folder = context.run.path / "data"
    announce_streams(context)
    samples = context.data.samples(context.config.seed)
    kept_of: Counter[str | None] = Counter()
    with context.run.dropping(PHASE) as left_out:
        rows = tokenized_rows(context, samples, left_out, kept_of)
        kept = write_rows(folder / "offline.arrow", rows, WITHOUT_PART)
    require_rows(len(kept), left_out.reasons, context.data.description)
    require_parts(len(kept), context.config.num_iterations)
    write_batches(folder / "offline.parquet", in_parts(kept, context.config.num_iterations), OFFLINE_SCHEMA)
    context.run.keep(folder / "offline.arrow", folder / "offline.parquet")
    truncated = sum(count_false(batch[side]) for batch in kept.batches() for side in ("chosen_ended", "rejected_ended"))
    reasons = dict(left_out.reasons)
    alone = sum(batch["chosen_ids"].null_count for batch in kept.batches())
    counts = {"kept": len(kept) - alone}
    found = {"prompts_alone": alone, "prompts_alone_left_out": left_out.reasons[NO_RESPONSES]}
    found |= {REPEATS: sum(map(count_repeats, kept.batches()))}
    counts |= {name: number for name, number in found.items() if number}
    summary = counts | {"dropped": left_out.reasons.total(), "truncated": truncated, "reasons": reasons}
    return summary | told_by_dataset(context, samples, kept_of)


def count_repeats(batch: pa.RecordBatch) -> int:
    """The rows of which both responses begin with the words of their prompt."""
    texts = zip(*(batch[name].to_pylist() for name in ("prompt", "chosen", "rejected")), strict=True)
    return sum(None not in row and repeats_prompt(*map(json.loads, row)) for row in texts)


def announce_streams(context: Context) -> None:
    """Says which data sets are read over the network."""
    for source in context.data.sources:
        if source.rows.is_streamed:
            say(f"{source.rows.description}: its rows are streamed, and not downloaded first", context.shows)


FEW = 10


def require_parts(rows: int, parts: int) -> None:
    """Raises ConfigError if most iterations would have no data; a few are usual where somebody tries out a few rows."""
    if parts > max(rows, FEW):
        raise ConfigError(
            f"num_iterations is {parts}, but the data has {rows} usable rows, and every iteration takes a part of "
            f"them; set num_iterations to {rows} or less"
        )


def tokenized_rows(
    context: Context, samples: Sequence[Sample], left_out: LeftOut, kept: Counter[str | None]
) -> Iterator[Row]:
    """The rows of the data's table; counts those of each data set in `kept`."""
    reward = RewardReading.of(context)
    for dataset, example in context.reader.examples(samples):
        found = example if isinstance(example, Dropped) else context.reader.tokenized(kept.total(), example)
        if not isinstance(found, Dropped) and (problem := reward.problem(found[0])):
            found = Dropped(example.row, problem)
        if isinstance(found, Dropped):
            left_out.add(left_out_row(found, dataset))
        else:
            yield offline_row(*found, example.row, dataset)
            kept[dataset] += 1
    reward.announce(context.shows)


def left_out_row(dropped: Dropped, dataset: str | None) -> Row:
    return {"row": dropped.row, "reason": dropped.reason} | ({} if dataset is None else {"dataset": dataset})


def told_by_dataset(context: Context, samples: Sequence[Sample], kept: Counter[str | None]) -> Summary:
    """What was read of each data set, on the terminal, in the metrics and in the phase's summary; nothing for one."""
    if not context.data.several:
        return {}
    found = {str(sample.source.name): counts_of(sample, kept[sample.source.name]) for sample in samples}
    for name, own in found.items():
        share = own["taken"] / max(1, sum(other["taken"] for other in found.values()))
        told = f"  {name}: {own['taken']:,} of {own['rows']:,} rows ({share:.1%} of the mixture), {own['kept']:,} kept"
        say(told, context.shows)
    context.run.log_anew(PHASE, flat(found))
    return {"datasets": found}


def counts_of(sample: Sample, kept: int) -> dict[str, int]:
    """`rows` of the data set; those `matching` the filter; those `taken` into the mixture; `kept` and `dropped`."""
    taken = len(sample)
    found = {"rows": sample.total or taken, "matching": sample.matching or taken, "taken": taken}
    return found | {"kept": kept, "dropped": taken - kept}


def in_parts(rows: MappedRows, parts: int) -> Iterator[pa.RecordBatch]:
    """The rows with the iteration that uses them (`part`), which depends on their total number."""
    for batch in rows.batches():
        part = batch["prompt_id"].to_numpy() * parts // len(rows)
        columns = {**dict(zip(batch.schema.names, batch.columns, strict=True)), "part": pa.array(part, pa.int32())}
        yield pa.RecordBatch.from_arrays([columns[name] for name in OFFLINE_SCHEMA.names], schema=OFFLINE_SCHEMA)


def count_false(flags: pa.Array) -> int:
    return len(flags) - flags.null_count - (pc.sum(flags).as_py() or 0)
