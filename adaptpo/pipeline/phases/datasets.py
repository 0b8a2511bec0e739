"""Counts an iteration's prompts, responses, rewards, pairs and weights by data set, if there are several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adaptpo.pipeline.by_dataset import flat
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases.annotate import annotations_folder
from adaptpo.pipeline.phases.generate import responses_folder
from adaptpo.pipeline.phases.select import selection_file
from adaptpo.run.directory import Summary
from adaptpo.run.files import JsonLines, read_columns
from adaptpo.run.lazy_sequence import as_array
from adaptpo.types import SOURCES

PHASE = "datasets"
Numbers = NDArray[Any]


def has_datasets(context: Context) -> bool:
    """Whether the run's data are several data sets."""
    return bool(context.run.state["phases"]["data"].get(PHASE))


def count_datasets(context: Context, iteration: int) -> Summary:
    """Writes the numbers of each data set in this iteration to the metrics; counts are of prompts unless they say what
    else, weights are means over the visits of the pairs of a source in training."""
    owners = Owners.of(context)
    found: dict[str, dict[str, float]] = {name: {} for name in owners.names}
    for key, values in numbers(context, iteration, owners):
        for name, value in zip(owners.names, values.tolist(), strict=True):
            if np.isfinite(value):
                found[name][key] = round(value, 6) if isinstance(value, float) else value
    context.run.log_anew(f"{context.folder(iteration)}/{PHASE}", flat(found), iteration)
    return {PHASE: found}


@dataclass(frozen=True)
class Owners:
    """The data sets' names, and for each prompt of the run the number of its own."""

    names: list[str]
    of_prompt: NDArray[np.int16]

    @classmethod
    def of(cls, context: Context) -> Owners:
        names = list(context.run.state["phases"]["data"][PHASE])
        known = pa.array(names)
        pieces = [pc.index_in(batch["dataset"], value_set=known).to_numpy() for batch in context.offline_rows.batches()]
        return cls(names, np.concatenate(pieces).astype(np.int16))

    def counts(self, prompt_ids: Numbers) -> Numbers:
        """How many of these prompts (a prompt counts as often as it is given) are of each data set."""
        return np.bincount(self.of_prompt[prompt_ids.astype(np.int64)], minlength=len(self.names))

    def means(self, prompt_ids: Numbers, values: Numbers) -> Numbers:
        """The mean by data set of values that belong to these prompts; NaN for a data set without any."""
        owner = self.of_prompt[prompt_ids.astype(np.int64)]
        sums = np.bincount(owner, weights=values, minlength=len(self.names))
        with np.errstate(invalid="ignore"):
            return sums / np.bincount(owner, minlength=len(self.names))


def numbers(context: Context, iteration: int, owners: Owners) -> Iterator[tuple[str, Numbers]]:
    """Yields the name of each number with its values, one per data set."""
    folder = context.folder(iteration)
    ids = as_array(context.prompt_ids(iteration))
    paired = context.have_pairs(ids)
    yield "prompts", owners.counts(ids[paired])
    if not paired.all():
        yield "prompts_alone", owners.counts(ids[~paired])
    if selection_file(context, iteration).exists():
        ids, selected = read_columns(selection_file(context, iteration), "prompt_id", "selected")
        yield "selected", owners.counts(ids[selected.astype(bool) & context.have_pairs(ids)])
    ids, scores = context.run.read_columns(f"{folder}/scores", "prompt_id", "score")
    yield "score/mean", owners.means(ids, scores)
    (ids,) = context.run.read_columns(responses_folder(context, iteration), "prompt_id")
    if len(ids):
        yield "responses", owners.counts(ids)
        yield from rewards(context, iteration, owners)
    yield from weights(context, iteration, owners)


def rewards(context: Context, iteration: int, owners: Owners) -> Iterator[tuple[str, Numbers]]:
    """The rewards of the fresh responses; an index below 0 is that of an offline one."""
    columns = context.run.read_columns(annotations_folder(context, iteration), "prompt_id", "index", "reward")
    ids, index, reward = (column.astype(np.float64) for column in columns)
    valid = (index >= 0) & np.isfinite(reward)
    ids, reward = ids[valid], reward[valid]
    mean = owners.means(ids, reward)
    yield "annotated", owners.counts(ids)
    yield "reward/mean", mean
    yield "reward/std", np.sqrt(np.maximum(0, owners.means(ids, reward**2) - mean**2))


def weights(context: Context, iteration: int, owners: Owners) -> Iterator[tuple[str, Numbers]]:
    """The pairs of each source that were trained on, and their mean weight."""
    sums: dict[str, Numbers] = defaultdict(lambda: np.zeros(len(owners.names)))
    visits: dict[str, Numbers] = defaultdict(lambda: np.zeros(len(owners.names)))
    for line in JsonLines(context.run.path / context.folder(iteration) / "pair_weights.jsonl").records():
        owner = owners.of_prompt[line["prompt_id"]]
        sums[line["source"]][owner] += line["weight"]
        visits[line["source"]][owner] += 1
    for source in (source for source in SOURCES if source in visits):
        yield f"visits/{source}", visits[source].astype(np.int64)
        with np.errstate(invalid="ignore"):
            yield f"weight/{source}", sums[source] / visits[source]
