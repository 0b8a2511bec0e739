"""How many tokens a model can read at once."""

from __future__ import annotations

from typing import Any

from torch import nn

STRETCHED = ("linear", "dynamic")
"""Kinds of rotary embedding whose factor is not in `max_position_embeddings` yet."""
WITHOUT = ("rwkv",)
"""Recurrent models whose configuration tells a number that limits nothing."""


def positions_of(config: Any) -> int | None:
    """The model's positions for prompt and response together; None if nothing limits them."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None)
    if not isinstance(found, int) or found <= 0 or getattr(text, "alibi", False):
        return None
    if getattr(text, "model_type", None) in WITHOUT:
        return None
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    stretched = scaling.get("rope_type", scaling.get("type")) in STRETCHED
    return int(found * (scaling.get("factor") or 1)) if stretched else found


def longest_row(model: nn.Module) -> int | None:
    """The tokens that a model reads; some, such as RoBERTa, keep the first positions for padding."""
    found = positions_of(model.config)
    tables = (part for name, part in model.named_modules() if name.endswith("position_embeddings"))
    padding = next((part.padding_idx for part in tables if getattr(part, "padding_idx", None) is not None), None)
    return found if found is None or padding is None else found - int(padding) - 1
