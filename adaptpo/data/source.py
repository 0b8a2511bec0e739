"""Opens a data source of any supported kind and iterates over its rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import datasets
import fsspec

from adaptpo.data.files import ACCEPTED_SUFFIXES, is_data_file, read_file, without_filled_nulls
from adaptpo.errors import DataError
from adaptpo.types import Row

DataSource: TypeAlias = (
    "str | PathLike[str] | datasets.Dataset | datasets.DatasetDict"
    " | datasets.IterableDataset | datasets.IterableDatasetDict | list[Row]"
)
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
STREAMED_FROM = 32 * 2**30
MOST_FILES = 1000
"""Maximum number of files whose sizes are asked for; the hub answers for one at a time."""
LOAD_ERRORS = (OSError, ValueError, datasets.exceptions.DatasetsError)


@dataclass(frozen=True)
class Rows:
    """The rows of a data source in order, as plain dictionaries; every `iter` starts again at row 0. `size` is their
    number if it is known without reading them. `is_columnar`: all structures of a column have the same keys.
    `is_streamed`: reading them costs a download, so that as few as possible are read; `told` is then their number as
    the hub gives it, if it does."""

    description: str
    start: Callable[[], Iterable[Row]]
    size: int | None = None
    is_columnar: bool = False
    is_streamed: bool = False
    told: int | None = None

    def __iter__(self) -> Iterator[Row]:
        return iter(self.start())


def open_rows(
    source: DataSource,
    split: str = "train",
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    streaming: bool | None = None,
) -> Rows:
    """Opens a source without reading its rows yet.

    Args:
        source: hub id, data file (.jsonl, .json, .csv, each also .gz; .parquet), folder written by `save_to_disk`,
            folder of data files, a `datasets` object, or a list of rows. An existing path wins over a hub id.
        split: the split to read. A single file has only the split "train"; a `Dataset` object is already one split.
        name: the configuration, for hub ids and folders that define several.
        columns: by new name, the column that gets it; a column of that name goes, the others keep their names.
        streaming: whether a hub data set is read over the network instead of downloaded; None streams one whose files
            have more than `STREAMED_FROM` bytes. Files and folders are never read whole.

    Raises:
        DataError: no such source, no such split (the message lists the available ones), or the hub is unreachable. The
            rows raise it if `columns` names a column that no row has.
    """
    rows = _opened(source, split, name, streaming)
    named = replace(rows, start=lambda: _renamed_rows(rows, columns)) if columns else rows
    return replace(named, start=lambda: map(without_filled_nulls, named)) if rows.is_columnar else named


def _renamed_rows(rows: Rows, columns: Mapping[str, str]) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if number == 0:
            _check_columns(rows, row, columns)
        yield renamed(row, columns)


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with each column `columns[name]` under the new name `name`."""
    given = {name: row[source] for name, source in columns.items() if source in row}
    return {name: value for name, value in row.items() if name not in columns.values()} | given


def _check_columns(rows: Rows, first: Row, columns: Mapping[str, str]) -> None:
    """Raises DataError for a source column that no row has; JSON lines may lack it in the first row alone."""
    lacking = ((name, source) for name, source in columns.items() if source not in first)
    faults = [_absent(*names, first) for names in lacking if not any(names[1] in row for row in rows)]
    if faults:
        raise DataError(f"{rows.description}: data.columns reads {'; '.join(faults)}")


def _absent(name: str, source: str, first: Row) -> str:
    close = get_close_matches(source, [*map(str, first)], n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"found {', '.join(map(str, first)) or 'none'}."
    return f"`{name}` from '{source}', which no row has: {hint}"


def _opened(source: DataSource, split: str, name: str | None, streaming: bool | None) -> Rows:
    if isinstance(source, list):
        return Rows("a list of rows", lambda: source, len(source))
    if not isinstance(source, str | PathLike):
        return _dataset_rows(source, split, "the given data set")
    path = Path(source).expanduser()
    if path.is_file():
        return _file_rows(path, split)
    if path.is_dir():
        return _folder_rows(path, split, name)
    return _hub_rows(str(source), split, name, streaming)


def describe(source: DataSource) -> str:
    """The name of this source in error messages."""
    return str(source) if isinstance(source, str | PathLike) else f"the given {type(source).__name__}"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _dataset_rows(data: Iterable[Row], split: str, description: str) -> Rows:
    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        _check_split(split, list(data), description)
        data = data[split]
    if isinstance(data, datasets.Dataset | datasets.IterableDataset):
        data = _plain_rows(data, description)
    size = len(data) if isinstance(data, datasets.Dataset) else None
    streamed = isinstance(data, datasets.IterableDataset)
    told = _told_rows(data) if isinstance(data, datasets.IterableDataset) else None
    return Rows(description, lambda: data, size, is_columnar=True, is_streamed=streamed, told=told)


def _plain_rows(
    data: datasets.Dataset | datasets.IterableDataset, description: str
) -> datasets.Dataset | datasets.IterableDataset:
    """The columns that the data set shows, as Python values: a torch or numpy format would turn numbers into tensors.

    Raises:
        DataError: a transform changes the rows as they are read.
    """
    if isinstance(data, datasets.IterableDataset):
        return data.with_format(None)
    if data.format["type"] == "custom":
        raise DataError(
            f"{description}: its set_transform or with_transform would be left out; apply the function with map."
        )
    shown = data.column_names if data.format["output_all_columns"] else data.format["columns"]
    return data.with_format(None).select_columns(shown)


def _told_rows(data: datasets.IterableDataset) -> int | None:
    split = (data.info.splits or {}).get(str(data.split))
    return split.num_examples if split is not None else None


def _file_rows(path: Path, split: str) -> Rows:
    _check_split(split, ["train"], str(path))
    if not is_data_file(path):
        raise DataError(
            f"{path}: cannot tell the format from the name; accepted endings: {', '.join(ACCEPTED_SUFFIXES)}."
        )
    return Rows(str(path), lambda: read_file(path), is_columnar=_is_parquet(path))


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _folder_rows(folder: Path, split: str, name: str | None) -> Rows:
    try:
        if is_saved_dataset(folder):
            return _saved_rows(folder, split)
        files = folder_files(folder, name)
        _refuse_unread(folder, files)
        _check_split(split, list(files), str(folder))
        if all(is_data_file(file) for file in files[split]):
            rows = lambda: chain.from_iterable(read_file(Path(file)) for file in files[split])  # noqa: E731
            return Rows(str(folder), rows, is_columnar=any(_is_parquet(Path(file)) for file in files[split]))
        read = datasets.load_dataset(str(folder), name, split=split, streaming=True)
        return replace(_dataset_rows(read, split, str(folder)), is_streamed=False)
    except LOAD_ERRORS as error:
        raise DataError(
            f"{folder}: cannot be read as a data set ({error}); accepted: a folder written by save_to_disk, or "
            f"one with data files ending in {', '.join(ACCEPTED_SUFFIXES)}."
        ) from error


def _saved_rows(folder: Path, split: str) -> Rows:
    data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.Dataset):
        _check_split(split, ["train", *([str(data.split)] if data.split else [])], str(folder))
    return _dataset_rows(data, split, str(folder))


def folder_files(folder: Path, name: str | None) -> dict[str, list[str]]:
    """The data files of a folder by split, according to the rules of `datasets.load_dataset`."""
    builder = datasets.load_dataset_builder(str(folder), name)
    return {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}


def _refuse_unread(folder: Path, files: dict[str, list[str]]) -> None:
    """Raises DataError if `datasets` passes over a file of rows: it reads one format, and names of splits first."""
    read = {Path(file).resolve() for some in files.values() for file in some}
    rows = [path for path in sorted(folder.rglob("*")) if is_data_file(path) and ".json" not in path.suffixes]
    hidden = lambda path: any(part.startswith(".") for part in path.relative_to(folder).parts)  # noqa: E731
    if left := [path for path in rows if path.resolve() not in read and not hidden(path)]:
        names = ", ".join(str(path.relative_to(folder)) for path in left[:5])
        raise DataError(
            f"{folder}: {len(left)} of its files would not be read ({names}), because `datasets` takes one format and "
            "files with names of splits first; give the files one by one as a list in `data`, or move these away."
        )


def _hub_rows(source: str, split: str, name: str | None, streaming: bool | None) -> Rows:
    if is_data_file(source):
        raise DataError(
            f"{source}: no such file. A path is looked up in the recipe's folder, then in the working directory "
            f"({Path.cwd()}); correct it, or give an absolute path."
        )
    if not HUB_ID.fullmatch(source):
        raise DataError(f"{source}: no such file or folder, and not a hub id either (accepted form: owner/name).")
    part = split.partition("[")[0]
    try:
        # A slice cannot be streamed.
        streams = streaming if streaming is not None else part == split and _is_large(source, name)
        data = datasets.load_dataset(source, name, split=split, streaming=streams)
    except LOAD_ERRORS as error:
        hint = f" A streamed data set has no slices: set split: {part} and max_rows." if part != split else ""
        raise DataError(
            f"{source}: no such file or folder here, and split {split!r} of a hub data set of this name "
            f"cannot be loaded: {error}. Correct the path, id, name or split; "
            f"without a network, use a local copy of the data.{hint if streaming else ''}"
        ) from error
    return _dataset_rows(data, split, source)


def _is_large(source: str, name: str | None) -> bool:
    """Whether the files of a hub data set have more than `STREAMED_FROM` bytes, as far as the hub says."""
    builder = datasets.load_dataset_builder(source, name)
    size = builder.info.download_size or builder.info.dataset_size
    if size is None:
        files = [file for several in (builder.config.data_files or {}).values() for file in several]
        asked = files[:MOST_FILES]
        found = sum(int(fsspec.core.url_to_fs(file)[0].size(file) or 0) for file in asked)
        size = found * len(files) / max(1, len(asked))
    return size > STREAMED_FROM


def _check_split(split: str, available: list[str], description: str) -> None:
    if split not in available:
        raise DataError(
            f"{description}: there is no split {split!r}; available: {', '.join(dict.fromkeys(available))}."
        )
