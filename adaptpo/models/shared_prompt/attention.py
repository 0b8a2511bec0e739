"""Attention over rows in which responses share their prompt, as an implementation that transformers dispatches to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from adaptpo.models.shared_prompt import varlen
from adaptpo.models.shared_prompt.layout import Bucket, SharedPrompts

NAME = "adaptpo_shared_prompt"
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prompts: SharedPrompts | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, per segment of the row if the model's forward received `shared_prompts`.

    `query`, `key`, `value`: [1, heads, tokens, head dimension]. Without the keyword this is transformers' own SDPA.
    The layout comes with the call, not through a module or a global: recomputation in the backward pass must see the
    same one.
    """
    if shared_prompts is None:
        sdpa = AttentionInterface()["sdpa"]
        return sdpa(module, query, key, value, attention_mask, sliding_window=sliding_window, **settings)
    if varlen.fits(query, value, settings):
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return varlen.attention(query, key, value, shared_prompts, sliding_window, settings.get("scaling"))[None], None
    return bucketed_attention(module, query, key, value, shared_prompts, sliding_window, settings), None


def bucketed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: SharedPrompts,
    window: int | None,
    settings: dict[str, Any],
) -> Tensor:
    """SDPA once per bucket of similar segments, on any device and in any precision."""
    sdpa = AttentionInterface()["sdpa"]
    settings = {name: value for name, value in settings.items() if name != "is_causal"}
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    outputs = []
    for bucket in layout.padded.buckets:
        mask = bucket.mask(window, query.dtype)
        output, _ = sdpa(module, *bucket_tensors(bucket, *rows), mask, is_causal=True, **settings)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs).index_select(0, layout.padded.places)[None]


def bucket_tensors(bucket: Bucket, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Queries, keys and values of a bucket, [n, heads, q or k, head dimension] each."""
    chosen = ((query, bucket.queries), (key, bucket.keys), (value, bucket.keys))
    return [rows.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2) for rows, index in chosen]


AttentionInterface.register(NAME, shared_prompt_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def base_model(model: Any) -> Any:
    """The transformers model inside the wrappers of accelerate and peft."""
    model = model.module if hasattr(model, "module") else model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def share_prompts(model: nn.Module) -> bool:
    """Makes the model accept `shared_prompts`; returns False if its attention or its layers cannot do so.

    A model with `eager` attention, by the user's choice or because it needs it, keeps it.
    """
    inner = base_model(model)
    config = inner.config.get_text_config()
    if config._attn_implementation == NAME:
        return True
    if config._attn_implementation == "eager" or not set(getattr(config, "layer_types", None) or ()) <= KNOWN_LAYERS:
        return False
    inner.set_attn_implementation(NAME)
    return config._attn_implementation == NAME


@contextmanager
def sharing_prompts(model: nn.Module) -> Iterator[bool]:
    """Applies `share_prompts` within the context and restores the model's attention afterwards."""
    inner = base_model(model)
    before = inner.config.get_text_config()._attn_implementation
    try:
        yield share_prompts(model)
    finally:
        inner.set_attn_implementation(before)


def forward_arguments(layout: SharedPrompts, position_ids: Tensor) -> dict[str, Any]:
    """The arguments of a model's forward besides the tokens of the row."""
    return {
        "position_ids": position_ids,
        "shared_prompts": layout,
        # A four-dimensional mask passes through unread. Without one, transformers would take restarting positions for
        # packed sequences and build a tokens x tokens mask.
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=position_ids.device),
    }
