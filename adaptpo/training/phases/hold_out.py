"""Holds pairs out from training, for methods whose weights are learned on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adaptpo.files import write_table
from adaptpo.records import VALIDATION_SCHEMA, table
from adaptpo.training.context import Context
from adaptpo.training.passes import PromptedPair
from adaptpo.training.phases.score import with_reference
from adaptpo.validation import Validation

Summary = dict[str, Any]


def hold_out(context: Context, validation: Validation) -> Summary:
    """Writes `data/validation.parquet`: the prompts held out, with their difficulty where the split goes by it."""
    items = context.offline()
    known = with_reference(context, "reference", items) if validation.needs_reference else items
    hardness = difficulties(known)
    chosen = validation.choose(hardness, context.config.seed)
    rows = [{"prompt_id": items[i][0].id, "difficulty": hardness[i].item()} for i in chosen]
    write_table(context.run.path / "data" / "validation.parquet", table(rows, VALIDATION_SCHEMA))
    return {"held_out": len(chosen), "training": len(items) - len(chosen)}


def difficulties(items: Sequence[PromptedPair]) -> Tensor:
    """Mean log-prob a token of the rejected response less that of the chosen one, [n]; 0 where it is not known."""
    values = []
    for _, pair in items:
        chosen, rejected = pair.reference_logps or (0.0, 0.0)
        values.append(rejected / len(pair.rejected.ids) - chosen / len(pair.chosen.ids))
    return torch.tensor(values, dtype=torch.float64)
