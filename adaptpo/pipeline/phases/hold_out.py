"""Holds pairs out from training, for methods that learn their weights on held-out pairs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adaptpo.choices.hold_out import Validation
from adaptpo.models.inference import PromptedPair
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.kept_reference import with_reference
from adaptpo.run.directory import Summary
from adaptpo.run.files import write_table
from adaptpo.run.lazy_sequence import as_array
from adaptpo.run.schemas import VALIDATION_SCHEMA, table
from adaptpo.types import Response


def hold_out(context: Context, validation: Validation) -> Summary:
    """Writes `data/validation.parquet`: the held-out prompts, with their difficulty if the split depends on it."""
    ids = as_array(context.offline_ids())
    hardness = difficulties(context) if validation.needs_reference else torch.zeros(len(ids), dtype=torch.float64)
    chosen = validation.choose(hardness, context.config.seed)
    rows = [{"prompt_id": ids[i], "difficulty": hardness[i].item()} for i in chosen]
    path = context.run.path / "data" / "validation.parquet"
    write_table(path, table(rows, VALIDATION_SCHEMA))
    context.run.keep(path)
    return {"held_out": len(chosen), "training": len(ids) - len(chosen)}


def difficulties(context: Context) -> Tensor:
    """Mean log-prob per token of the rejected response minus that of the chosen one, [n]; 0 if unknown."""
    items = with_reference(context, "reference", context.offline())
    return torch.from_numpy(np.fromiter(map(difficulty, items), np.float64, len(items)))


def difficulty(item: PromptedPair) -> float:
    chosen, rejected = item[1].reference_logps or (0.0, 0.0)
    return rejected / trained_tokens(item[1].rejected) - chosen / trained_tokens(item[1].chosen)


def trained_tokens(response: Response) -> int:
    """The number of tokens whose log-probs are summed: those of the trained turns."""
    return len(response.ids) if response.mask is None else sum(response.mask)
