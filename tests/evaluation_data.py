"""Where the published data of the benchmarks lie, and readers of them."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"
EVALS = SHARED / "evals"
ALPACA = SHARED / "alpaca_eval"
BASELINE = ALPACA / "baseline_gpt4_1106_preview.jsonl.gz"
LENGTH_CONTROL = EVALS / "alpaca_eval" / "length_control.csv.gz"
ARENA, MT, XS = EVALS / "arena_hard", EVALS / "mt_bench", EVALS / "xstest"
needs_shared = pytest.mark.skipif(not EVALS.exists(), reason="the published data of the benchmarks are not there")


def csv_rows(path: Path) -> list[dict[str, str]]:
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return list(csv.DictReader(io.StringIO(text.decode())))


def annotations(model: str) -> Path:
    """AlpacaEval's published verdicts on a model, with log-probs."""
    return EVALS / "alpaca_eval" / f"annotations_{model}.jsonl.gz"
