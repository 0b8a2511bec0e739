"""The precision that holds where a model computes."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of the autocast that is active for this kind of device, if any."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of this tensor is computed here."""
    return autocast_dtype(tensor.device) or tensor.dtype
