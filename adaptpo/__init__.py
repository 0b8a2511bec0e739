"""adaptpo: adaptive preference optimization of language models.

`AlignmentTrainer(model, args=AlignmentConfig(...), method=methods.metaapo(), ...).train()`, or `adaptpo train RECIPE`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adaptpo.config.version import __version__

if TYPE_CHECKING:
    from adaptpo import methods
    from adaptpo.choices.method import Method
    from adaptpo.config.recipe import AlignmentConfig
    from adaptpo.trainer import AlignmentTrainer

__all__ = ["AlignmentConfig", "AlignmentTrainer", "Method", "__version__", "methods"]

_HOMES = {
    "AlignmentConfig": "adaptpo.config.recipe",
    "AlignmentTrainer": "adaptpo.trainer",
    "Method": "adaptpo.choices.method",
}


def __getattr__(name: str) -> Any:
    """Imports on first use, so that `adaptpo --help` does not wait for torch."""
    if name == "methods":
        return import_module("adaptpo.methods")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'adaptpo' has no attribute '{name}'")
