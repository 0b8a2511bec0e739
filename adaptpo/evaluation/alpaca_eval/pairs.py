"""Preference pairs from AlpacaEval: a model's output against the baseline's, ordered by the annotator's preference.

An output file has one record per instruction with `index`, `instruction`, `output`, `generator` and `preference` in
[1, 2]: 2 means that the annotator surely prefers the model's output, 1 the baseline's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adaptpo.data import open_rows
from adaptpo.errors import DataError
from adaptpo.types import Dropped, PreferenceExample, Row

NO_PREFERENCE = "no preference between 1 and 2"
UNDECIDED = "the annotator was undecided"
NO_BASELINE = "the baseline has no output for this index"
OTHER_INSTRUCTION = "the baseline answered another instruction"
EMPTY_OUTPUT = "empty output"
EQUAL_OUTPUTS = "the model's output equals the baseline's"


def read_alpaca_eval_pairs(
    outputs: str | Path, baseline: str | Path, min_certainty: float = 0.05
) -> Iterator[PreferenceExample | Dropped]:
    """Yields one chat-format pair or `Dropped` per record of `outputs`; `row` is the record's AlpacaEval index.

    `columns` holds `preference` and the generators of both outputs.

    Args:
        outputs, baseline: .jsonl or .json files, also .gz.
        min_certainty: records whose preference is at most this far from 1.5 are dropped as undecided (0 to 0.5).

    Raises:
        DataError: a file cannot be read, or its records lack the fields of AlpacaEval.
    """
    baseline_records = {record["index"]: record for record in _records(baseline, ("index", "instruction", "output"))}
    for record in _records(outputs, ("index", "instruction", "output", "preference")):
        against = baseline_records.get(record["index"])
        reason = _problem(record, against, min_certainty)
        if reason or against is None:
            yield Dropped(record["index"], reason)
        else:
            yield _pair(record, against)


def _records(path: str | Path, fields: tuple[str, ...]) -> Iterator[Row]:
    for record in open_rows(path):
        missing = [field for field in fields if field not in record]
        if missing:
            raise DataError(
                f"{path}: a record lacks {', '.join(missing)} (found {', '.join(record)}); "
                "give AlpacaEval's outputs with one annotation each."
            )
        yield record


def _problem(record: Row, against: Row | None, min_certainty: float) -> str:
    if against is None:
        return NO_BASELINE
    if against["instruction"] != record["instruction"]:
        return OTHER_INSTRUCTION
    if not _has_text(record["output"]) or not _has_text(against["output"]):
        return EMPTY_OUTPUT
    if record["output"] == against["output"]:
        return EQUAL_OUTPUTS
    return _preference_problem(record["preference"], min_certainty)


def _preference_problem(preference: Any, min_certainty: float) -> str:
    if not isinstance(preference, int | float) or not 1 <= preference <= 2:
        return NO_PREFERENCE
    return UNDECIDED if abs(preference - 1.5) <= min_certainty else ""


def _has_text(output: Any) -> bool:
    return isinstance(output, str) and bool(output.strip())


def _pair(record: Row, against: Row) -> PreferenceExample:
    chosen, rejected = (record, against) if record["preference"] > 1.5 else (against, record)
    return PreferenceExample(
        row=record["index"],
        prompt=[{"role": "user", "content": record["instruction"]}],
        chosen=[{"role": "assistant", "content": chosen["output"]}],
        rejected=[{"role": "assistant", "content": rejected["output"]}],
        columns={
            "preference": record["preference"],
            "chosen_generator": chosen.get("generator"),
            "rejected_generator": rejected.get("generator"),
        },
    )
