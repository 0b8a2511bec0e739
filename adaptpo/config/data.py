"""The data sets of a run: one, or several in a mixture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, field_validator, model_validator

from adaptpo.config.base import PathText, Settings
from adaptpo.config.numbers import Count, Number, Positive

Scalar = bool | int | float | str | None


class ConditionSettings(Settings):
    """What a column's value must be for a row to be read."""

    any_of: list[Scalar] | None = Field(None, min_length=1)
    """The value is one of these."""
    none_of: list[Scalar] | None = Field(None, min_length=1)
    """The value is none of these."""
    at_least: Number | None = None
    """The value is a number, and this large or larger."""
    at_most: Number | None = None
    """The value is a number, and this large or smaller."""
    above: Number | None = None
    """The value is a larger number."""
    below: Number | None = None
    """The value is a smaller number."""


def condition(value: Any) -> Any:
    """A value alone, or a list of values, as a condition."""
    if isinstance(value, Mapping | ConditionSettings):
        return value
    return {"any_of": value if isinstance(value, list) else [value]}


def a_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError("a data set's name is a part of metrics' names; use letters, digits, '_', '-' and '.'")
    return name


SetName = Annotated[str, AfterValidator(a_name)]


class DataSetSettings(Settings):
    """A data set, and which of its rows are read."""

    path: PathText
    """Hub id, file, or folder."""
    name: str | None = Field(None, validation_alias=AliasChoices("name", "subset"))
    """Configuration of a hub data set; `subset` is another word for it."""
    split: str = "train"
    """Split of the data set."""
    streaming: bool | None = None
    """Read a hub data set over the network, row by row, instead of downloading it; null does that above 32 GiB."""
    text_format: Literal["auto", "messages", "text"] = "auto"
    """How plain-text dialogues (HH-RLHF) are read; `auto` reads messages if the tokenizer has a chat template."""
    columns: dict[str, str] = Field({})
    """By name, the data's column that is read under it, such as `{prompt: question}`."""
    filter: dict[str, Annotated[ConditionSettings, BeforeValidator(condition)]] | None = None
    """By column, or difference of two columns, the condition on it, such as `{language: en, score: {at_least: 7}}`."""
    max_rows: Count | None = None
    """Maximum number of rows, drawn at random with the run's seed from those that pass the filter; of a streamed data
    set the first ones."""
    weight: Positive | None = None
    """Share of the mixture, relative to the weights of the other sets; null in all sets uses every row once."""


class DataSettings(DataSetSettings):
    """A data set, or several."""

    path: PathText | None = None  # type: ignore[assignment]
    """Hub id, file, or folder."""
    sets: dict[SetName, Annotated[DataSetSettings, BeforeValidator(lambda value: with_path(value))]] | None = Field(
        None, min_length=1
    )
    """Several data sets by name, in place of `path`; a list in place of the section stands for it."""

    @model_validator(mode="after")
    def _path_or_sets(self) -> DataSettings:
        if (self.path is None) == (self.sets is None):
            raise ValueError("give one data set as `path`, or several as `sets`")
        return self

    @model_validator(mode="after")
    def _keys_in_their_place(self) -> DataSettings:
        usual = DataSetSettings(path="unused").model_dump()
        given = [name for name in usual if name != "path" and getattr(self, name) != usual[name]]
        if self.sets is not None and given:
            raise ValueError(f"with `sets`, {', '.join(given)} belong to each set")
        if self.sets is None and self.weight is not None:
            raise ValueError("weight is a set's share of several; with one data set, leave it out")
        return self

    @field_validator("sets")
    @classmethod
    def _all_weights_or_none(cls, sets: dict[str, DataSetSettings] | None) -> dict[str, DataSetSettings] | None:
        without = [name for name, one in (sets or {}).items() if one.weight is None]
        if sets and 0 < len(without) < len(sets):
            raise ValueError(f"give every set a weight, or none of them; {', '.join(without)} has none")
        return sets


class EvalDataSettings(DataSettings):
    """Held-out prompts or pairs, for evaluating the initial policy, the warm-up and each iteration."""

    max_prompts: Count = 256
    """Maximum number of held-out prompts."""


def with_path(value: Any) -> Any:
    """A path alone as the section that it stands for."""
    return {"path": value} if isinstance(value, str) else value


def as_section(value: Any) -> Any:
    """A path, or a list of data sets, as the section that it stands for."""
    return {"sets": named_sets(value)} if isinstance(value, list) else with_path(value)


def named_sets(values: list[Any]) -> dict[str, Any]:
    """The sets by the names of their files or hub ids, numbered where two are the same."""
    found: dict[str, Any] = {}
    for number, value in enumerate(values):
        path = value.get("path") if isinstance(value, Mapping) else value
        name = short_name(path) if isinstance(path, str) else f"set-{number}"
        found[name if name not in found else f"{name}-{number}"] = value
    return found


def short_name(path: str) -> str:
    """The last part of a path or hub id, without its ending: `hh` for `data/hh.jsonl.gz`."""
    return re.sub(r"[^\w-]+", "-", PurePosixPath(path).name.split(".")[0]).strip("-") or "set"
