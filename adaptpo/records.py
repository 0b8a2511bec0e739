"""Between the objects of `adaptpo.types` and the tables of a run directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from adaptpo.types import PreferencePair, Prompt, Response, Text

Row = dict[str, Any]
IDS = pa.list_(pa.int32())

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
        "columns": pa.string(),
    }
)
LOGPS_SCHEMA = pa.schema(
    {
        "prompt_id": pa.int64(),
        "source": pa.string(),
        "objective": pa.int32(),
        "chosen": pa.float32(),
        "rejected": pa.float32(),
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
        "reward_gap": pa.float64(),
        "iteration": pa.int32(),
        "sample": pa.string(),
        "sample_ids": IDS,
        "sample_ended": pa.bool_(),
        "objective": pa.int32(),
    }
)
EVALUATION_SCHEMA = pa.schema(
    {
        "prompt_id": pa.int64(),
        "prompt": pa.string(),
        "chosen": pa.string(),
        "response": pa.string(),
        "length": pa.int32(),
        "ended": pa.bool_(),
        "reward": pa.float64(),
        "margin": pa.float32(),
        "score": pa.float32(),
    }
)


def table(rows: Iterable[Row], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema)


def dump_text(text: Text | Any) -> str:
    return json.dumps(text, ensure_ascii=False, default=str)


def response_fields(name: str, response: Response) -> Row:
    return {
        name: dump_text(response.text),
        f"{name}_ids": response.ids,
        f"{name}_ended": response.ended,
    }


def read_response(row: Row, name: str) -> Response:
    return Response(text=json.loads(row[name]), ids=row[f"{name}_ids"], ended=row[f"{name}_ended"])


def offline_row(prompt: Prompt, pair: PreferencePair, row: int, part: int) -> Row:
    return {
        "prompt_id": prompt.id,
        "row": row,
        "part": part,
        "prompt": dump_text(prompt.text),
        "prompt_ids": prompt.ids,
        "columns": dump_text(prompt.columns),
        **response_fields("chosen", pair.chosen),
        **response_fields("rejected", pair.rejected),
    }


def read_offline(row: Row) -> tuple[Prompt, PreferencePair]:
    prompt = Prompt(
        id=row["prompt_id"],
        text=json.loads(row["prompt"]),
        ids=row["prompt_ids"],
        columns=json.loads(row["columns"]),
    )
    pair = PreferencePair(
        prompt_id=prompt.id,
        source="offline",
        chosen=read_response(row, "chosen"),
        rejected=read_response(row, "rejected"),
    )
    return prompt, pair


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


def response_rows(prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> list[Row]:
    return [
        {"prompt_id": prompt.id, "index": index, "text": r.text, "ids": r.ids, "ended": r.ended}
        for prompt, several in zip(prompts, responses, strict=True)
        for index, r in enumerate(several)
    ]


def read_generated(row: Row) -> Response:
    return Response(text=row["text"], ids=row["ids"], ended=row["ended"])
