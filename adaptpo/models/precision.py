"""The precision that holds where a model computes."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of the autocast that is active for this kind of device, if any."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of this tensor is computed here."""
    return autocast_dtype(tensor.device) or tensor.dtype


def keep_weights(model: Model, dtype: torch.dtype) -> Model:
    """Converts all weights, in place, but no buffers, as FSDP2 does to those that it shares out."""
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)
    return model


def keep_linear_layers(model: nn.Module, dtype: torch.dtype, head: nn.Module | None) -> nn.Module:
    """Converts the weights of a model's linear layers, in place, to the dtype of the autocast that it will run in.

    Autocast would convert them at every use, with the same result: a model that only reads computes the same numbers
    with half the memory, and each step of decoding reads 2 bytes per weight instead of 8. The `head` stays as it is,
    because it also runs outside the model, and so do weights that are embeddings too, and those whose norms DoRA takes.
    """
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    whole = [module for module in model.modules() if module is head or getattr(module, "lora_magnitude_vector", None)]
    kept = {inner for module in whole for inner in module.modules()}
    for module in model.modules():
        if type(module) is nn.Linear and module not in kept and module.weight not in embeddings:
            module.to(dtype)
    return model
