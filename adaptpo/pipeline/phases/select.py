"""Selects the prompts of an iteration that get fresh responses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from adaptpo.choices.selection import ScoredPrompts
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases.features import read_features
from adaptpo.run.directory import Summary
from adaptpo.run.files import read_columns, write_table
from adaptpo.run.lazy_sequence import as_array
from adaptpo.run.schemas import SELECTION_SCHEMA
from adaptpo.seeds import uniform_for


def select_prompts(context: Context, iteration: int) -> Summary:
    """Selects the prompts that get fresh responses, each by its own uniform random number. A prompt without an offline
    pair always does: it is of no other use. It counts apart."""
    ids = as_array(context.prompt_ids(iteration))
    paired = context.have_pairs(ids)
    if paired.all():
        probability = chances(context, iteration, ids)
    else:
        probability = np.ones(len(ids))
        probability[paired] = chances(context, iteration, ids[paired])
    draws = (uniform_for(context.config.seed, "select", iteration, int(id_)) for id_ in ids)
    u = np.fromiter(draws, np.float64, len(ids))
    selected = drawn(probability, u)
    columns = (ids, probability.astype(np.float32), u, selected)
    write_table(selection_file(context, iteration), pa.Table.from_arrays(columns, schema=SELECTION_SCHEMA))
    context.run.keep(selection_file(context, iteration))
    counts = {"prompts": int(paired.sum()), "selected": int(selected[paired].sum())}
    return counts | ({} if paired.all() else {"prompts_alone": int((~paired).sum())})


def chances(context: Context, iteration: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """The selection's probability for each of these prompts, which have offline pairs."""
    selection = context.method_in(iteration).selection
    return selection.probability(scored_prompts(context, iteration, ids)).detach().double().numpy()


def drawn(probability: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether Algorithm 1's u > w holds, for w = 1 - p and u in [0, 1): always for p = 1, never for p = 0."""
    return u >= 1 - probability


def selection_file(context: Context, iteration: int) -> Path:
    return context.run.path / context.folder(iteration) / "selection.parquet"


def scored_prompts(context: Context, iteration: int, ids: NDArray[np.int64]) -> ScoredPrompts:
    prompt_id = torch.from_numpy(ids)
    if not context.method.selection.needs_margins:
        return ScoredPrompts(len(ids), prompt_id=prompt_id)
    columns = context.run.read_columns(
        f"{context.folder(iteration)}/scores", "margin", "chosen_ratio", "rejected_ratio"
    )
    margin, *ratios = (torch.from_numpy(column.astype(np.float32)) for column in columns)
    return ScoredPrompts(len(ids), margin, torch.stack(ratios, dim=1), prompt_id, read_features(context, iteration))


def selected_ids(context: Context, iteration: int) -> NDArray[np.int64]:
    path = context.run.checked(selection_file(context, iteration))
    ids, selected = read_columns(path, "prompt_id", "selected")
    return ids[selected]
