"""Attention over all segments of a row in one call, by PyTorch's kernel for sequences of any length.

The bucketed form launches a dozen kernels per bucket and layer, adds a mask, which rules out the fused kernels, and
repeats keys for grouped heads. Here a layer gathers its keys and values once and launches one kernel.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from adaptpo.models.precision import computing_dtype
from adaptpo.models.shared_prompt.layout import SharedPrompts

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # PyTorch before 2.10, or built without it.
    varlen_attn = None

KNOWN = frozenset(inspect.signature(varlen_attn).parameters if varlen_attn else ())
GROUPED = {"enable_gqa": True} if "enable_gqa" in KNOWN else {}
MOST_DIMENSIONS = 256
UNSUPPORTED = ("softcap", "position_bias", "s_aux")


def fits(query: Tensor, value: Tensor, settings: dict[str, Any]) -> bool:
    """Whether the kernel computes this attention: on an NVIDIA GPU since Ampere, in half precision, without dropout and
    without what changes the scores."""
    return (
        "window_size" in KNOWN
        and on_recent_gpu(query.device)
        # Off inside `sdpa_kernel(MATH)`, where the backward pass must have a derivative itself.
        and torch.backends.cuda.flash_sdp_enabled()
        and computing_dtype(query) in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= MOST_DIMENSIONS
        and query.shape[-1] % 8 == 0
        and not settings.get("dropout")
        and all(settings.get(name) is None for name in UNSUPPORTED)
    )


def on_recent_gpu(device: torch.device) -> bool:
    return (
        device.type == "cuda" and torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def attention(
    query: Tensor, key: Tensor, value: Tensor, layout: SharedPrompts, window: int | None, scale: float | None
) -> Tensor:
    """Returns the output [tokens, heads, head dimension] for `query`, `key` and `value` of this form, of which the
    latter two may have fewer heads.

    The kernel aligns a segment's last query with its last key, so that a response sees its prompt and its own past.
    """
    dtype = computing_dtype(query)
    return varlen_attn(
        query.to(dtype).contiguous(),
        *(rows.to(dtype).index_select(0, layout.keys) for rows in (key, value)),
        layout.query_starts,
        layout.key_starts,
        layout.longest_queries,
        layout.longest_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **GROUPED,
    )
