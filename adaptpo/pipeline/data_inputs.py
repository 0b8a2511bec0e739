"""The data sets of a run in the forms that users pass, and the hash by which a resumed run recognizes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar

import datasets
import numpy as np
import pandas
import pyarrow as pa
from pydantic import ValidationError

from adaptpo.config.base import Settings, explain
from adaptpo.config.data import DataSetSettings, DataSettings, named_sets
from adaptpo.data import fingerprint, open_rows
from adaptpo.data.conditions import Condition, RowFilter
from adaptpo.data.files import ROW_COLUMNS
from adaptpo.data.mixture import Mixture, Source
from adaptpo.data.source import Rows
from adaptpo.errors import ConfigError
from adaptpo.remote.store import content_key

DATASETS = datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict
IN_MEMORY = "a data set in memory"
Checked = TypeVar("Checked", bound=Settings)


@dataclass(frozen=True)
class DataInput:
    """A data set: `content` is what `adaptpo.data.open_rows` takes, `settings` say how it is read."""

    content: Any
    settings: DataSetSettings

    def rows(self) -> Rows:
        given = self.settings
        return open_rows(self.content, given.split, given.name, given.columns, given.streaming)

    def source(self, name: str | None) -> Source:
        given = self.settings
        conditions = {column: Condition(**vars(one)) for column, one in (given.filter or {}).items()}
        row_filter = RowFilter(conditions) if conditions else None
        return Source(self.rows(), name, given.text_format, row_filter, given.max_rows, given.weight)

    def digest(self) -> str:
        """Hash of the data. Raises DataError at once if it cannot be opened; `fingerprint` would wait for the hub."""
        self.rows()
        given = self.settings
        content = fingerprint(self.content, given.split, given.name)
        plain = combined(content | ({"columns": repr(sorted(given.columns.items()))} if given.columns else {}))
        limiting = {"filter", "max_rows", "weight", *(["streaming"] if given.max_rows else [])}
        limits = given.model_dump(mode="json", include=limiting, exclude_none=True)
        return content_key([plain, limits])[:16] if limits else plain


@dataclass(frozen=True)
class DataInputs:
    """The data sets of a run by name; that of one alone does not matter."""

    sets: Mapping[str, DataInput]

    @classmethod
    def of(cls, data: Any, argument: str = "data") -> DataInputs | None:
        """Makes them from recipe settings; a path, hub id or data set in memory; a list of these, or a dict of them by
        name. A dict with the key `path` holds the settings of a data set, and its path may be a data set in memory.
        None stays None.

        Raises ConfigError for anything else.
        """
        if data is None:
            return None
        if isinstance(data, DataSettings):
            given: Mapping[str, DataSetSettings] = data.sets or {"data": data}
            return cls({name: DataInput(one.path, one) for name, one in given.items()})
        if not is_several(data):
            return cls({argument: data_input(data, argument)})
        named = data if isinstance(data, Mapping) else named_sets(list(data))
        inputs = {name: data_input(one, f"{argument}.{name}") for name, one in named.items()}
        checked(
            DataSettings,
            argument,
            sets={name: one.settings.model_dump(exclude_unset=True) for name, one in inputs.items()},
        )
        return cls(inputs)

    def mixture(self) -> Mixture:
        """Opens the data sets without reading their rows yet."""
        alone = len(self.sets) == 1
        return Mixture([one.source(None if alone else name) for name, one in self.sets.items()])

    def digest(self) -> str:
        """Hash of all data sets in their order."""
        digests = [one.digest() for one in self.sets.values()]
        return digests[0] if len(digests) == 1 else content_key(digests)[:16]


def is_several(data: Any) -> bool:
    """Whether these are several data sets, and not the rows or the settings of one."""
    if isinstance(data, DATASETS):
        return False
    if isinstance(data, Mapping):
        return not is_settings(data) and not ROW_COLUMNS & data.keys() and all(map(is_data, data.values()))
    return isinstance(data, list | tuple) and bool(data) and all(map(is_data, data))


def is_data(value: Any) -> bool:
    """Whether this is a data set, or the settings of one, and not a row."""
    if isinstance(value, str | PathLike | DATASETS | pandas.DataFrame) or is_settings(value):
        return True
    return isinstance(value, list | tuple) and all(isinstance(row, Mapping) for row in value)


def is_settings(value: Any) -> bool:
    return isinstance(value, Mapping) and "path" in value and not ROW_COLUMNS & value.keys()


def data_input(data: Any, argument: str) -> DataInput:
    """One data set, or settings with one. Raises ConfigError for anything else."""
    given = dict(data) if is_settings(data) else {"path": data}
    content = in_memory(given["path"])
    path = str(content) if isinstance(content, str | PathLike) else IN_MEMORY
    return DataInput(content, checked(DataSetSettings, argument, **given | {"path": path}))


def checked(kind: type[Checked], argument: str, **values: Any) -> Checked:
    """Raises ConfigError that names every wrong key and the nearest valid one."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, argument)) from error


def in_memory(data: Any) -> Any:
    """The data in a form that can be read several times. Raises ConfigError for what is no data set."""
    if isinstance(data, str | PathLike | DATASETS):
        return data
    if isinstance(data, pandas.DataFrame):
        return datasets.Dataset.from_pandas(data, preserve_index=False)
    if hasattr(data, "to_arrow"):  # polars
        data = data.to_arrow()
    if isinstance(data, pa.Table):
        return datasets.Dataset(data)
    if isinstance(data, Iterable) and not isinstance(data, Mapping | bytes):
        rows = [as_lists(row) for row in data]
        strange = next((number for number, row in enumerate(rows) if not isinstance(row, Mapping)), None)
        if strange is None:
            return rows
        kind = type(rows[strange]).__name__
        raise ConfigError(
            f"the data set's element {strange} is of type {kind}, and a row is a dict of columns; for several data "
            "sets, give a list of paths, hub ids or what datasets.load_dataset returns, and nothing else"
        )
    raise ConfigError(
        f"a data set cannot be of type {type(data).__name__}; give a datasets.Dataset, a data frame, rows (dicts "
        "of columns), a path, or a hub id; or a list of these, or a dict of them by name. A dict of columns becomes a "
        "data set by datasets.Dataset.from_dict"
    )


def as_lists(value: Any) -> Any:
    """The value with lists in place of arrays and tuples, which pandas has for the messages of a Parquet file."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [as_lists(item) for item in value]
    return {name: as_lists(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value


def combined(hashes: dict[str, str]) -> str:
    """Combines several hashes into one that does not change when the files move."""
    return hashlib.sha256("\n".join(sorted(hashes.values())).encode()).hexdigest()[:16]
