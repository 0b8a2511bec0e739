"""What the policy is compared with: the model whose log-probs the loss takes as the reference's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adaptpo.config.numbers import Count, Fraction
from adaptpo.errors import ConfigError


@dataclass(frozen=True)
class Synced:
    """A reference that follows the policy (TR-DPO; Gorbatovski et al., 2024): after every `ref_model_sync_steps`
    optimizer steps of the iterations, `reference = alpha * policy + (1 - alpha) * reference`, alpha being
    `ref_model_mixup_alpha`; 1 is their hard update. It starts as the initial model.

    Names and defaults are those of TRL's `sync_ref_model`.
    """

    ref_model_sync_steps: Count = 512
    ref_model_mixup_alpha: Fraction = 0.6

    def __post_init__(self) -> None:
        if self.ref_model_sync_steps < 1:
            raise ConfigError(f"ref_model_sync_steps is {self.ref_model_sync_steps}; set it to 1 or more")
        if not 0 < self.ref_model_mixup_alpha <= 1:
            raise ConfigError(f"ref_model_mixup_alpha is {self.ref_model_mixup_alpha}; set it above 0 and at most to 1")


Reference = Literal["initial", "previous"] | Synced
"""The initial model, the policy that started the iteration, or a model that follows the policy."""
