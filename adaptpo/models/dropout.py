"""Turns off what makes a model's training mode differ from its evaluation mode by chance."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

NOISY = ("drop", "jitter")
"""Parts of the names of attributes that hold a rate: `dropout`, `attn_pdrop`, `layerdrop`, `jitter_noise`, ..."""


def turn_off_dropout(model: nn.Module) -> None:
    """Sets every rate of dropout, layer drop and router noise to 0, also in an adapter.

    Some models keep a rate as a number and call the function, which TRL's `disable_dropout` does not reach. The
    configuration stays as it is, so `config.json` does too.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and any(part in name for part in NOISY):
                setattr(module, name, 0.0)
