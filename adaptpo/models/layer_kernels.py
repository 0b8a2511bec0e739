"""Fused kernels for the layers of a model, by the package liger-kernel."""

from __future__ import annotations

from typing import Any

from adaptpo.errors import ConfigError

HEADS = ("fused_linear_cross_entropy", "cross_entropy")


def layer_kernels(given: dict[str, Any] | None) -> dict[str, Any]:
    """`liger_kernel_config` without the kernels that replace the head: log-probs are computed here, not by the model.

    >>> layer_kernels({"rope": False})
    {'fused_linear_cross_entropy': False, 'cross_entropy': False, 'rope': False}
    """
    if asked := [name for name in HEADS if (given or {}).get(name)]:
        raise ConfigError(
            f"training.liger_kernel_config.{asked[0]} replaces the model's head, whose log-probs adaptpo "
            "computes itself; leave the key out (the kernels of the layers stay on)"
        )
    return dict.fromkeys(HEADS, False) | (given or {})
