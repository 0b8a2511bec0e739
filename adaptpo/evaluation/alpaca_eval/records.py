"""Comparisons of a model with the baseline, from AlpacaEval's files or from our own judgments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptpo.data import open_rows
from adaptpo.errors import DataError
from adaptpo.evaluation.alpaca_eval.preference import EQUAL, is_switched, preference_of_logprobs
from adaptpo.evaluation.intervals import Floats
from adaptpo.types import Row

NO_PREFERENCE = "without a preference"
ACCEPTED = (
    "accepted are records with `instruction`, and `preference` (1 to 2) or `top_logprobs`; for length control also "
    "`output_1` and `output_2`, `len_1` and `len_2`, or `output` and a baseline file"
)


@dataclass(frozen=True)
class Comparison:
    """The outcome of one instruction. `row`: its position in the file; `preference` is in [1, 2], 2 for the model, None
    where the verdict was invalid, with the reason in `problem`; lengths are in characters, None where the outputs are
    not known."""

    row: int
    instruction: str
    preference: float | None
    model_length: int | None = None
    baseline_length: int | None = None
    problem: str = ""


def read_comparisons(rows: Iterable[Row], baseline: Mapping[str, str]) -> list[Comparison]:
    """`baseline`: outputs by instruction, for records that hold the model's output alone.

    Raises DataError for a record without instruction or preference.
    """
    return [comparison(row, number, baseline) for number, row in enumerate(rows)]


def comparison(row: Row, number: int, baseline: Mapping[str, str]) -> Comparison:
    instruction = row.get("instruction")
    if not isinstance(instruction, str) or not ({"preference", "top_logprobs"} & row.keys()):
        raise DataError(f"record {number} holds {', '.join(row)}; {ACCEPTED}")
    lengths = length(row, "2", row.get("output")), length(row, "1", baseline.get(instruction))
    value = preference(row, number)
    return Comparison(number, instruction, value, *lengths, row.get("problem") or "")


def preference(row: Row, number: int) -> float | None:
    """The recorded one, else that of the judge's log-probs."""
    value: Any = row.get("preference")
    if value is None and row.get("top_logprobs"):
        return preference_of_logprobs(row["top_logprobs"], is_switched(row["instruction"]))
    if value is None or value != value:
        return None
    value = float(value) or EQUAL  # AlpacaEval's files write 0 for a draw, too.
    if not 1 <= value <= 2:
        raise DataError(f"record {number} has the preference {value}; AlpacaEval's are between 1 and 2")
    return value


def length(row: Row, side: str, output: str | None) -> int | None:
    """Characters of the output on a side, as recorded, or of `output`."""
    if row.get(f"len_{side}") is not None:
        return int(row[f"len_{side}"])
    text = row.get(f"output_{side}", output)
    return len(text) if isinstance(text, str) else None


def valid(comparisons: Sequence[Comparison]) -> list[Comparison]:
    return [one for one in comparisons if one.preference is not None]


def preferences(comparisons: Sequence[Comparison]) -> Floats:
    """[n]: of valid comparisons."""
    return np.array([one.preference for one in comparisons], dtype=np.float64)


def read_outputs(path: Path | str) -> dict[str, str]:
    """A model's outputs by instruction. Raises DataError for a record without one of them."""
    outputs = {}
    for number, row in enumerate(open_rows(path)):
        if not isinstance(row.get("instruction"), str) or not isinstance(row.get("output"), str):
            raise DataError(f"{path}: record {number} holds no instruction with its output; give AlpacaEval's outputs")
        outputs[row["instruction"]] = row["output"]
    return outputs
