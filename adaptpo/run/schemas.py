"""Converts between the objects of `adaptpo.types` and the tables of a run directory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from adaptpo.types import PreferencePair, Prompt, PromptGroup, Response, Row, Text

IDS = pa.list_(pa.int32())
MASK = pa.list_(pa.bool_())
"""Which tokens of a response are trained on; null for all."""

OFFLINE_SCHEMA = pa.schema(
    {
        "prompt_id": pa.int64(),
        "row": pa.int64(),
        "part": pa.int32(),
        "prompt": pa.string(),
        "chosen": pa.string(),
        "rejected": pa.string(),
        "prompt_ids": IDS,
        "chosen_ids": IDS,
        "rejected_ids": IDS,
        "chosen_ended": pa.bool_(),
        "rejected_ended": pa.bool_(),
        "chosen_mask": MASK,
        "rejected_mask": MASK,
        "columns": pa.string(),
        "dataset": pa.string(),
    }
)
PROMPT_COLUMNS = ("prompt_id", "prompt", "prompt_ids", "columns")
LOGPS_SCHEMA = pa.schema(
    {
        "prompt_id": pa.int64(),
        "source": pa.string(),
        "objective": pa.int32(),
        "chosen": pa.float32(),
        "rejected": pa.float32(),
        "chosen_shared": pa.float32(),
        "rejected_shared": pa.float32(),
    }
)
TOKEN_LOGPS_SCHEMA = LOGPS_SCHEMA.append(pa.field("chosen_tokens", pa.list_(pa.float32()))).append(
    pa.field("rejected_tokens", pa.list_(pa.float32()))
)
SCORES_SCHEMA = pa.schema(
    {
        "prompt_id": pa.int64(),
        "margin": pa.float32(),
        "score": pa.float32(),
        "chosen_logp": pa.float32(),
        "rejected_logp": pa.float32(),
        "chosen_ratio": pa.float32(),
        "rejected_ratio": pa.float32(),
    }
)
FEATURES_SCHEMA = pa.schema({"prompt_id": pa.int64(), "values": pa.list_(pa.float32()), "truncated": pa.bool_()})
FILTER_SCHEMA = pa.schema({"prompt_id": pa.int64(), "priority": pa.float32(), "rank": pa.int64(), "kept": pa.bool_()})
VALIDATION_SCHEMA = pa.schema({"prompt_id": pa.int64(), "difficulty": pa.float64()})
SELECTION_SCHEMA = pa.schema(
    {"prompt_id": pa.int64(), "probability": pa.float32(), "u": pa.float64(), "selected": pa.bool_()}
)
RESPONSES_SCHEMA = pa.schema(
    {"prompt_id": pa.int64(), "index": pa.int32(), "text": pa.string(), "ids": IDS, "ended": pa.bool_()}
)
ANNOTATIONS_SCHEMA = pa.schema(
    {"prompt_id": pa.int64(), "index": pa.int32(), "reward": pa.float64(), "objectives": pa.list_(pa.float64())}
)
TOKENS_SCHEMA = pa.schema({"prompt_id": pa.int64(), "index": pa.int32(), "values": pa.list_(pa.float32())})
COMPARISONS_SCHEMA = pa.schema(
    {"prompt_id": pa.int64(), "fresh": pa.int32(), "offline": pa.string(), "preference": pa.float64()}
)
CANDIDATES_SCHEMA = pa.schema(
    {
        "prompt_id": pa.int64(),
        "source": pa.string(),
        "first": pa.float32(),
        "second": pa.float32(),
        "first_tokens": pa.int32(),
        "second_tokens": pa.int32(),
    }
)
GROUPS_SCHEMA = pa.schema({"prompt_id": pa.int64(), "group": pa.int32(), "score": pa.float64()})
PAIRS_SCHEMA = pa.schema(
    {
        "prompt_id": pa.int64(),
        "source": pa.string(),
        "chosen": pa.string(),
        "rejected": pa.string(),
        "chosen_ids": IDS,
        "rejected_ids": IDS,
        "chosen_ended": pa.bool_(),
        "rejected_ended": pa.bool_(),
        "chosen_mask": MASK,
        "rejected_mask": MASK,
        "reward_gap": pa.float64(),
        "iteration": pa.int32(),
        "sample": pa.string(),
        "sample_ids": IDS,
        "sample_ended": pa.bool_(),
        "objective": pa.int32(),
    }
)
TRAINED_PAIR = pa.struct(
    [
        *PAIRS_SCHEMA,
        pa.field("reference_logps", pa.list_(pa.float32())),
        pa.field("reference_shared", pa.list_(pa.float32())),
        pa.field("reference_tokens", pa.list_(pa.list_(pa.float32()))),
    ]
)
TRAINING_SCHEMA = pa.schema(
    {
        **{name: OFFLINE_SCHEMA.field(name).type for name in PROMPT_COLUMNS},
        "pairs": pa.list_(TRAINED_PAIR),
        "features": pa.map_(pa.string(), pa.list_(pa.float32())),
        "tokens": pa.int64(),
    }
)
EVALUATION_SCHEMA = pa.schema(
    {
        "prompt_id": pa.int64(),
        "prompt": pa.string(),
        "chosen": pa.string(),
        "response": pa.string(),
        "response_ids": IDS,
        "length": pa.int32(),
        "ended": pa.bool_(),
        "reward": pa.float64(),
        "margin": pa.float32(),
        "score": pa.float32(),
        "dataset": pa.string(),
    }
)


def table(rows: Iterable[Row], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema)


def dump_text(text: Text | Any) -> str:
    """The JSON of a text or of a row's columns, which a file in UTF-8 can hold."""
    found = json.dumps(text, ensure_ascii=False, default=str)
    # Only an escape can say half of a surrogate pair.
    return found if _is_unicode(found) else json.dumps(text, default=str)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def response_fields(name: str, response: Response) -> Row:
    return {
        name: dump_text(response.text),
        f"{name}_ids": response.ids,
        f"{name}_ended": response.ended,
        f"{name}_mask": response.mask,
    }


def read_response(row: Row, name: str) -> Response:
    return Response(json.loads(row[name]), row[f"{name}_ids"], row[f"{name}_ended"], row.get(f"{name}_mask"))


def prompt_row(prompt: Prompt) -> Row:
    return {
        "prompt_id": prompt.id,
        "prompt": dump_text(prompt.text),
        "prompt_ids": prompt.ids,
        "columns": dump_text(prompt.columns),
    }


def offline_row(prompt: Prompt, pair: PreferencePair | None, row: int, dataset: str | None = None) -> Row:
    """The row of a prompt and its offline pair, if it has one. `row` is its number in its data set, which `dataset`
    names if there are several."""
    return {
        **prompt_row(prompt),
        "row": row,
        "dataset": dataset,
        **({} if pair is None else response_fields("chosen", pair.chosen)),
        **({} if pair is None else response_fields("rejected", pair.rejected)),
    }


def read_prompt(row: Row) -> Prompt:
    return Prompt(
        id=row["prompt_id"],
        text=json.loads(row["prompt"]),
        ids=row["prompt_ids"],
        columns=json.loads(row["columns"]),
    )


def read_offline(row: Row) -> tuple[Prompt, PreferencePair]:
    pair = PreferencePair(
        prompt_id=row["prompt_id"],
        source="offline",
        chosen=read_response(row, "chosen"),
        rejected=read_response(row, "rejected"),
    )
    return read_prompt(row), pair


def read_item(row: Row) -> tuple[Prompt, PreferencePair | None]:
    """The prompt of a row, with its offline pair if it has one."""
    return read_offline(row) if row["chosen_ids"] is not None else (read_prompt(row), None)


def pair_row(pair: PreferencePair) -> Row:
    return {
        "prompt_id": pair.prompt_id,
        "source": pair.source,
        "reward_gap": pair.reward_gap,
        "iteration": pair.iteration,
        "objective": pair.objective,
        **response_fields("chosen", pair.chosen),
        **response_fields("rejected", pair.rejected),
        **(response_fields("sample", pair.sample) if pair.sample else {}),
    }


def read_pair(row: Row) -> PreferencePair:
    return PreferencePair(
        prompt_id=row["prompt_id"],
        source=row["source"],
        chosen=read_response(row, "chosen"),
        rejected=read_response(row, "rejected"),
        iteration=row["iteration"],
        reward_gap=row["reward_gap"],
        sample=None if row.get("sample_ids") is None else read_response(row, "sample"),
        objective=row.get("objective"),
    )


def group_row(group: PromptGroup, tokens: int | None = None) -> Row:
    """`tokens`: those that a pass over the group computes."""
    return {
        **prompt_row(group.prompt),
        "pairs": [
            {
                **pair_row(pair),
                "reference_logps": pair.reference_logps,
                "reference_shared": pair.reference_shared,
                "reference_tokens": pair.reference_tokens,
            }
            for pair in group.pairs
        ],
        "features": list(group.features.items()),
        "tokens": tokens,
    }


def read_group(row: Row) -> PromptGroup:
    pairs = tuple(replace(read_pair(pair), **read_reference(pair)) for pair in row["pairs"])
    return PromptGroup(read_prompt(row), pairs, dict(row["features"]))


def read_reference(row: Row) -> Row:
    tokens = row["reference_tokens"]
    sums = {name: None if row[name] is None else tuple(row[name]) for name in ("reference_logps", "reference_shared")}
    return sums | {
        "reference_tokens": None if tokens is None else tuple(array("f", side) for side in tokens),
    }


def response_rows(prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> list[Row]:
    return [
        {"prompt_id": prompt.id, "index": index, "text": r.text, "ids": r.ids, "ended": r.ended}
        for prompt, several in zip(prompts, responses, strict=True)
        for index, r in enumerate(several)
    ]


def read_generated(row: Row) -> Response:
    return Response(text=row["text"], ids=row["ids"], ended=row["ended"])
