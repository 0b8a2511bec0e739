"""Whether the fast paths are exact for this run's model and data."""

from __future__ import annotations

from typing import Any

from adaptpo.training.context import Context
from adaptpo.training.passes import autocast
from adaptpo.training.phases.train import as_groups
from adaptpo.training.self_check import choose_rows

Summary = dict[str, Any]


def check_model(context: Context) -> Summary:
    """Decided once, with the initial policy, so that policy and reference are computed alike in all phases."""
    return choose_rows(
        model=context.policy(context.initial),
        groups=as_groups(context.offline()),
        pad_id=context.tokenizer.pad_token_id,
        dtype=context.compute_dtype,
        precision=lambda: autocast(context.inference_arguments),
    )
