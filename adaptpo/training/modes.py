"""Ways of running a model: without dropout, without accelerate's autocast, with differentiable attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Turns dropout off, so that two passes differ only in their weights."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """Undoes accelerate's mixed precision, which is in a prepared model's forward: turning autocast off around that
    forward has no effect, and a difference of two losses in bfloat16 is mostly rounding."""
    prepared, own = vars(model).get("forward"), vars(model).get("_original_forward")
    if prepared is None or own is None:
        yield
        return
    model.forward = own
    try:
        yield
    finally:
        model.forward = prepared


def differentiable_attention() -> AbstractContextManager:
    """Attention that is not fused: fused kernels have neither second derivatives nor a forward mode."""
    return sdpa_kernel(SDPBackend.MATH)
