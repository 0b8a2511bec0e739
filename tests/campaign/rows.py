"""Rows and files: hostile ones between ordinary ones, through reading, tokenizing and storing."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adaptpo.data import open_rows
from adaptpo.data.mixture import Mixture, Source
from adaptpo.data.source import Rows
from adaptpo.data.tokenization import stop_token_ids
from adaptpo.pipeline.phases.data import tokenized_rows
from adaptpo.pipeline.reading import Reader
from adaptpo.run.directory import LeftOut
from adaptpo.run.schemas import OFFLINE_SCHEMA, read_offline
from tests.campaign.outcomes import Nonsense
from tests.tiny import byte_tokenizer, preference_rows

COLUMNS = ["prompt", "chosen", "rejected", "messages", "conversations", "system", "history", "input", "instruction"]
COLUMNS += ["weight", "chat_template_kwargs", "tools", "question", "rejected_response", "images", "answer", "name"]


def text(rng: random.Random) -> Any:
    kinds = ["", " ", "hi", "\ud83d", "a\udc00b", "\0", "x" * 3000, "\n\nHuman: a\n\nAssistant: b", "<|end|>", "\u202e"]
    kinds += [
        "[{'role': 'user', 'content': 'a'}]",
        '[{"role": "user"',
        "[" * 300,
        "{{ 7 * 7 }}",
        "é\u0301" * 50,
        "\ufeff",
    ]
    kinds += ["array([{'role': 'user', 'content': 'x'}])", "nan", "9" * 400, "\n\nAssistant:", "\r\n", "\x85"]
    return rng.choice(kinds)


def value(rng: random.Random, depth: int = 0) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: text(rng), lambda: None, lambda: True, lambda: rng.choice([0, -1, 10**400, 2**63, 1.5, 1e308]),
        lambda: float("nan"), lambda: float("-inf"), list, dict, lambda: message(rng, depth),
        lambda: [message(rng, depth) for _ in range(rng.randrange(4))], lambda: nested(rng.choice([3, 40, 200])),
        lambda: [text(rng), text(rng)], lambda: {text(rng): text(rng)},
    ]  # fmt: skip
    return rng.choice(kinds)()


def message(rng: random.Random, depth: int) -> Any:
    role = rng.choice(["user", "assistant", "system", "tool", "", "\ud83d", None, 3, "Human"])
    content = text(rng) if depth > 1 or rng.random() < 0.7 else value(rng, depth + 1)
    found = {"role": role, "content": content}
    if rng.random() < 0.3:
        found[rng.choice(["name", "tool_calls", "from", "value", "weight", "\ud83d"])] = value(rng, depth + 1)
    return found


def nested(depth: int) -> Any:
    found: Any = "x"
    for _ in range(depth):
        found = [found]
    return found


def row(rng: random.Random) -> dict[str, Any]:
    """An ordinary row with some hostile columns."""
    found = preference_rows(1, rng.randrange(1000), chat=rng.random() < 0.5)[0]
    for name in rng.sample(COLUMNS, rng.choice([1, 1, 1, 2, 3])):
        found[name] = value(rng)
    if rng.random() < 0.1:
        found.pop(rng.choice(["prompt", "chosen", "rejected"]), None)
    return found


@cache
def context_for(weighted: bool) -> Any:
    """What `tokenized_rows` reads of a run."""
    tokenizer = byte_tokenizer()
    reader = Reader(tokenizer, stop_token_ids(tokenizer), 400, 200, 512, needed_numbers=("weight",) if weighted else ())
    return SimpleNamespace(reader=reader, reward=None, eval_data=None, shows=False)


def read_all(rows: Any, weighted: bool) -> tuple[int, int]:
    """The rows kept and left out, as the phase `data` does it, with everything written and read again."""
    left_out = LeftOut(None, "data")
    samples = Mixture([Source(Rows("rows", lambda: rows))]).samples(0)
    found = tokenized_rows(context_for(weighted), samples, left_out, Counter())
    kept = [row | {"part": 0} for row in found]
    table = pa.Table.from_pylist(kept, schema=OFFLINE_SCHEMA)
    json.dumps(left_out.reasons)
    for stored in table.to_pylist():
        read_offline(stored)
    return len(kept), left_out.reasons.total()


def require_sum(kept: int, left_out: int, total: int) -> None:
    if kept + left_out != total:
        raise Nonsense(f"{kept} kept and {left_out} left out of {total} rows")


def rows_in_memory(rng: random.Random, folder: Path) -> None:
    """A hostile row between two ordinary ones, which are kept."""
    rows = [*preference_rows(1, 1), row(rng), *preference_rows(1, 2)]
    weighted = rng.random() < 0.3
    rows = [{"weight": 1.0} | one for one in rows] if weighted else rows
    kept, left_out = read_all(rows, weighted)
    require_sum(kept, left_out, 3)
    if kept < 2:
        raise Nonsense(f"an ordinary row is left out beside {str(rows[1])[:300]}")


def rows_in_lines(rng: random.Random, folder: Path) -> None:
    """The same as a file of JSON lines, maybe compressed."""
    rows = [*preference_rows(2, 1), row(rng), *preference_rows(1, 2)]
    content = "".join(json.dumps(one, ensure_ascii=rng.random() < 0.5) + "\n" for one in rows)
    raw = content.encode(errors="surrogatepass")
    name, raw = rng.choice([("a.jsonl", raw), ("a.json", raw), ("a.jsonl.gz", gzip.compress(raw, 1))])
    require_sum(*read_all(open_rows(written(folder, name, raw)), False), 4)


def written(folder: Path, name: str, raw: bytes) -> Path:
    (folder / name).write_bytes(raw)
    return folder / name


def as_file(rng: random.Random, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    """The rows in one of the formats."""
    lines = "".join(json.dumps(one) + "\n" for one in rows).encode()
    kind = rng.choice(["jsonl", "json", "csv", "parquet", "jsonl.gz", "csv.gz", "json.gz"])
    if kind.startswith("csv"):
        out = io.StringIO()
        csv.DictWriter(out, list(rows[0])).writerows([dict(zip(rows[0], rows[0], strict=True)), *rows])
        raw = out.getvalue().encode()
    elif kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer, compression=rng.choice(["none", "snappy", "zstd", "gzip"]))
        raw = buffer.getvalue()
    else:
        raw = json.dumps(rows).encode() if kind.startswith("json.") or kind == "json" else lines
    return f"a.{kind}", gzip.compress(raw, 1) if kind.endswith("gz") else raw


def damaged(rng: random.Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.choice([1, 1, 3, 20])):
        start = rng.randrange(max(1, len(changed)))
        kind = rng.randrange(5)
        if kind == 0:
            changed[start : start + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del changed[start:]
        elif kind == 2:
            del changed[start : start + rng.randrange(1, 200)]
        elif kind == 3:
            changed[start:start] = rng.randbytes(rng.randrange(1, 50))
        else:
            changed[start:start] = rng.choice(
                [b"\0" * 20, b"[" * 2000, b'"', b"\n", b"{", b"9" * 5000, b"\xed\xa0\xbd"]
            )
    return bytes(changed)


def file(rng: random.Random, folder: Path) -> None:
    """A damaged file: its rows add up, or it is named."""
    name, raw = as_file(rng, preference_rows(rng.choice([1, 20]), rng.randrange(1000), chat=False))
    path = written(folder, name, damaged(rng, raw))
    total = sum(1 for _ in open_rows(path))
    require_sum(*read_all(open_rows(path), False), total)


CLASSES: dict[str, tuple[int, Callable[[random.Random, Path], None]]] = {
    "row in memory": (8, rows_in_memory),
    "row in a file": (4, rows_in_lines),
    "damaged file": (8, file),
}
