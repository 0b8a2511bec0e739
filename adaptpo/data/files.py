"""Reads data files row by row: JSON lines, JSON lists, CSV and Parquet."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet

from adaptpo.data.stored import is_message
from adaptpo.errors import DataError
from adaptpo.types import Row

PARQUET_BATCH_ROWS = 256
ROW_COLUMNS = {"prompt", "chosen", "rejected", "instruction", "question", "conversations", "messages"}
"""Columns by which an object is known to be a row."""


OPENAI_COLUMNS = {"input", "preferred_output", "non_preferred_output"}
STRUCTURED = (
    ROW_COLUMNS
    | OPENAI_COLUMNS
    | {
        "rejected_messages",
        "rejected_response",
        "completion",
        "response",
        "responses",
        "output",
        "history",
        "tools",
        "chat_template_kwargs",
    }
)


def without_filled_nulls(row: Row) -> Row:
    """The row of a columnar file or data set as it was before each structure got the keys of all others, with nulls: a
    chat template would write them."""
    return {name: _without_nulls(value) if name in STRUCTURED else value for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def is_data_file(path: str | Path) -> bool:
    """Whether the file's name ends in one of `ACCEPTED_SUFFIXES`."""
    return _data_suffix(Path(path)) is not None


def read_file(path: Path) -> Iterator[Row]:
    """Yields the rows of one file in order. JSON lines, CSV and Parquet are streamed; a JSON list is read whole.

    Raises:
        DataError: the ending is unknown, or the content does not match it (with the 1-based line number).
    """
    suffix = _data_suffix(path)
    if suffix is None:
        raise DataError(
            f"{path}: cannot tell the format from the name; accepted endings: {', '.join(ACCEPTED_SUFFIXES)}."
        )
    try:
        yield from READERS[suffix.removesuffix(".gz")](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not in UTF-8 ({error}); save the file in UTF-8, without other encodings.") from error
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, csv.Error, pyarrow.ArrowException) as error:
        problem = " ".join(str(error).split())[:300]
        raise DataError(
            f"{path}: not a readable {suffix} file ({problem}); rewrite it or correct its ending."
        ) from error


def _data_suffix(path: Path) -> str | None:
    name = path.name.lower()
    return next((suffix for suffix in ACCEPTED_SUFFIXES if name.endswith(suffix)), None)


def _open_text(path: Path) -> TextIO:
    # Halves of surrogate pairs, as some programs write them, spoil one row, not the file.
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogatepass", newline="")
    return path.open(encoding="utf-8-sig", errors="surrogatepass", newline="")


def _read_jsonl(path: Path) -> Iterator[Row]:
    # Some data sets name a JSON list `.jsonl`.
    yield from _read_json_document(path) if _begins(path).startswith("[") else _read_json_lines(path)


def _begins(path: Path) -> str:
    """The first line that is not blank."""
    with _open_text(path) as file:
        return next((line.strip() for line in file if line.strip()), "")


def _read_json(path: Path) -> Iterator[Row]:
    # Many data sets name their JSON lines files `.json`.
    yield from _read_json_lines(path) if _has_json_lines(path) else _read_json_document(path)


def _has_json_lines(path: Path) -> bool:
    """Whether the file has one object per line; one line alone is a document."""
    with _open_text(path) as file:
        lines = (line.strip() for line in file if line.strip())
        first, second = next(lines, ""), next(lines, "")
    return first.startswith("{") and first.endswith("}") and bool(second)


def _read_json_document(path: Path) -> Iterator[Row]:
    with _open_text(path) as file:
        text = file.read()
    if not text.strip():
        return
    try:
        document = json.loads(text, object_pairs_hook=with_distinct_names)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}{line}: not valid JSON ({problem_of(error)}); fix the file there.") from error
    for number, row in enumerate(_rows_of(document, path)):
        yield _as_row(row, f"{path}, item {number}")


def _rows_of(document: Any, path: Path) -> list[Any]:
    """The rows of a list, of an object around one list of rows, or of an object that is the only row."""
    if not isinstance(document, dict) or ROW_COLUMNS & {name for name, value in document.items() if _fits(value)}:
        return document if isinstance(document, list) else [document]
    if ROW_COLUMNS & document.keys():
        raise DataError(
            f"{path}: a table written by columns, not by rows; with pandas, write it with "
            "to_json(..., orient='records', lines=True)."
        )
    lists = [name for name, value in document.items() if _is_list_of_rows(value)]
    if len(lists) > 1:
        raise DataError(
            f"{path}: one object with several lists of rows ({', '.join(lists)}); save each list in its own file."
        )
    return document[lists[0]] if lists else [document]


def _fits(value: Any) -> bool:
    """Whether a row may hold this as its prompt or response: text, a message, or messages."""
    return isinstance(value, str) or is_message(value) or (isinstance(value, list) and all(map(is_message, value)))


def _is_list_of_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value) and not _fits(value)


def _read_json_lines(path: Path) -> Iterator[Row]:
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _as_row(_parse_line(line, path, number), f"{path}, line {number}")


def _parse_line(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line, object_pairs_hook=with_distinct_names)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number}: not valid JSON ({problem_of(error)}); "
            "fix or delete this line: every line holds one JSON object."
        ) from error


class RepeatedNameError(ValueError):
    """An object has two values under one name, of which Python would keep the last."""


def with_distinct_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedNameError(f"the name '{next(n for n in names if names.count(n) > 1)}' occurs twice in an object")
    return found


def problem_of(error: ValueError | RecursionError) -> str:
    """What is wrong with a JSON text; Python also refuses integers of thousands of digits and endless nesting."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    if isinstance(error, RepeatedNameError):
        return str(error)
    return "lists within one another without end" if isinstance(error, RecursionError) else "a number too long to read"


def _as_row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f'{place}: found a JSON {type(value).__name__}; a row is an object such as {{"chosen": ...}}.')
    return value


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # responses exceed the default of 128 KiB
    with _open_text(path) as file:
        reader = csv.DictReader(file, strict=True)  # Otherwise an unclosed quote takes in all that follows.
        _check_header(path, reader.fieldnames or [])
        for row in _csv_rows(path, reader):
            if None in row or None in row.values():
                raise DataError(
                    f"{path}, line {reader.line_num}: the number of fields differs from the header's "
                    f"{len(reader.fieldnames or [])}; quote fields that contain commas or line breaks."
                )
            yield dict(row)


def _csv_rows(path: Path, reader: csv.DictReader[str]) -> Iterator[dict[str, str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(
            f"{path}, after line {reader.line_num}: a quoted field does not end at a comma or line break ({error}); "
            "close each quote, and write a quote within a quoted field twice."
        ) from error


def _check_header(path: Path, names: Sequence[str]) -> None:
    """Raises DataError for a header without commas that other separators divide, and for a name that occurs twice."""
    separator = next((mark for mark in (";", "\t", "|") if len(names) == 1 and mark in names[0]), None)
    if separator:
        raise DataError(f"{path}: the fields are separated by {separator!r}; save them separated by commas.")
    refuse_twice(path, "the header", names)


def refuse_twice(path: Path, what: str, names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: {what} has the column '{twice[0]}' twice; name each column once.")


def _read_parquet(path: Path) -> Iterator[Row]:
    with pyarrow.parquet.ParquetFile(path) as file:
        refuse_twice(path, "it", file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            yield from batch.to_pylist()


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
ACCEPTED_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
