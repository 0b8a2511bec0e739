"""What training asks of DeepSpeed's ZeRO, whose engine takes the optimizer step inside a backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.state import GradientState

DEEPSPEED = "DEEPSPEED"
"""accelerate's name for it."""


@contextmanager
def without_step(state: GradientState) -> Iterator[None]:
    """Inside the context, backward passes add to the gradients and no optimizer step is taken."""
    takes_step = state.sync_gradients
    state._set_sync_gradients(False)
    try:
        yield
    finally:
        state._set_sync_gradients(takes_step)


def has_finite_gradients(engine: Any) -> bool:
    """Whether the gradients of the last optimizer step were finite. DeepSpeed skips a step whose gradients are not, and
    gives them a norm of -1 or infinity."""
    norm = engine.get_global_grad_norm()
    return not engine.optimizer.overflow and (norm is None or (math.isfinite(norm) and norm >= 0))
