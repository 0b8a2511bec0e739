"""The run's prompts and offline pairs: which of them an iteration uses, read from `data/` on demand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from adaptpo.choices.method import Method
from adaptpo.config.recipe import AlignmentConfig
from adaptpo.models.inference import PromptedPair
from adaptpo.pipeline.reading import Item
from adaptpo.run.arrow_rows import MappedRows
from adaptpo.run.directory import RunDirectory
from adaptpo.run.files import read_columns
from adaptpo.run.lazy_sequence import Indices, Lazy, as_array, pick
from adaptpo.run.schemas import PROMPT_COLUMNS, read_item, read_offline, read_prompt
from adaptpo.types import Prompt


class StoredPrompts:
    """The prompts of a run by id, which is their row number in the data. Some may have no offline pair."""

    run: RunDirectory
    config: AlignmentConfig
    method: Method

    @cached_property
    def offline_rows(self) -> MappedRows:
        """All tokenized rows; a prompt's id is its row number."""
        return MappedRows(self.run.checked(self.run.path / "data" / "offline.arrow"))

    @property
    def has_pairs(self) -> bool:
        """Whether any prompt has an offline pair."""
        return self._paired is None or bool(self._paired.any())

    @cached_property
    def _paired(self) -> NDArray[np.bool_] | None:
        """Whether each prompt has an offline pair; None if all have one."""
        if not self.run.state["phases"].get("data", {}).get("prompts_alone"):
            return None
        sides = [batch["chosen_ids"].is_valid() for batch in self.offline_rows.batches()]
        return np.concatenate([side.to_numpy(zero_copy_only=False) for side in sides])

    def have_pairs(self, ids: Indices) -> NDArray[np.bool_]:
        """Whether each of these prompts has an offline pair."""
        return np.ones(len(ids), dtype=bool) if self._paired is None else self._paired[as_array(ids)]

    def pair_numbers(self, ids: Sequence[int]) -> Sequence[int]:
        """The places of these prompts' offline pairs among all offline pairs; prompts without one are left out."""
        if self._paired is None:
            return ids
        numbers = as_array(np.array(ids, dtype=np.int64))
        return (self._places[numbers[self._paired[numbers]]] - 1).tolist()

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        assert self._paired is not None
        return np.cumsum(self._paired)

    def offline(self, part: int | None = None) -> Lazy[PromptedPair]:
        """The tokenized offline pairs of one part, or of all. Excludes pairs that were filtered or held out, once those
        phases are done."""
        return self.pairs_of(self.offline_ids(part))

    def validation(self) -> Lazy[PromptedPair]:
        """The offline pairs held out from training."""
        ids = as_array(self._filtered())
        return self.pairs_of(ids[self._held_out[ids]])

    def pairs_of(self, ids: Indices) -> Lazy[PromptedPair]:
        """The offline pairs of the prompts with these ids."""

        def read(indices: Indices) -> list[PromptedPair]:
            return [read_offline(row) for row in self.offline_rows.read(pick(ids, indices))]

        return Lazy(len(ids), read, self.config.shard_size)

    def items_of(self, ids: Indices) -> Lazy[Item]:
        """The prompts with these ids, each with its offline pair if it has one."""

        def read(indices: Indices) -> list[Item]:
            return [read_item(row) for row in self.offline_rows.read(pick(ids, indices))]

        return Lazy(len(ids), read, self.config.shard_size)

    def prompts_of(self, ids: Indices) -> Lazy[Prompt]:
        def read(indices: Indices) -> list[Prompt]:
            return [read_prompt(row) for row in self.offline_rows.read(pick(ids, indices), PROMPT_COLUMNS)]

        return Lazy(len(ids), read, self.config.shard_size)

    def offline_ids(self, part: int | None = None) -> Indices:
        """The ids of the prompts of `offline`, in its order."""
        ids = self._filtered(part)
        if not self.run.done("validation"):
            return ids
        return as_array(ids)[~self._held_out[as_array(ids)]]

    def prompt_ids(self, part: int | None = None) -> Indices:
        """The ids of `offline_ids` and, in their place among them, of the prompts without an offline pair."""
        if self._paired is None:
            return self.offline_ids(part)
        ids = as_array(self._ids(part))
        return ids[~self._held_out[ids]]

    @property
    def _held_out(self) -> NDArray[np.bool_]:
        """Whether each prompt is held out; none is until the phase that decides it is done."""
        held_out = np.zeros(len(self.offline_rows), dtype=bool)
        if self.run.done("validation"):
            (ids,) = read_columns(self.run.checked(self.run.path / "data" / "validation.parquet"), "prompt_id")
            held_out[ids] = True
        return held_out

    def _ids(self, part: int | None) -> range:
        """The ids of all prompts, or of those of a part."""
        total, parts = len(self.offline_rows), self.config.num_iterations
        return range(total) if part is None else range(first_of(part, parts, total), first_of(part + 1, parts, total))

    def _filtered(self, part: int | None = None) -> Indices:
        ids = self._ids(part)
        if self._paired is not None:
            return ids.start + np.flatnonzero(self._paired[ids.start : ids.stop])
        if not self.run.done("filter"):
            return ids
        rank, kept = read_columns(self.run.checked(self.run.path / "data" / "filter.parquet"), "rank", "kept")
        chosen = ids.start + np.flatnonzero(kept[ids.start : ids.stop])
        return chosen[rank[chosen].argsort()] if self.method.filter.orders else chosen


def first_of(part: int, parts: int, total: int) -> int:
    """The first i with `i * parts // total == part`."""
    return -(-part * total // parts)
