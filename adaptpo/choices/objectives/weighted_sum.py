"""Several objectives as one loss: MPO, RPO, and any list of objectives with weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adaptpo.choices.learners.base import Learner
from adaptpo.choices.objectives.base import Objective
from adaptpo.errors import ConfigError
from adaptpo.types import PairLogps


@dataclass(frozen=True)
class WeightedSum(Objective):
    """`sum_i weights_i * loss_i`, like TRL's lists `loss_type` and `loss_weights`.

    Rewards, margin and beta are those of the first part, by which selection and learners judge a pair.
    """

    parts: tuple[Objective, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.weights):
            raise ConfigError(
                f"{len(self.parts)} objectives have {len(self.weights)} weights; give one weight for each objective"
            )
        super().__post_init__()

    @property
    def beta(self) -> float:  # type: ignore[override]
        return self.parts[0].beta

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return any(part.needs_reference for part in self.parts)

    @property
    def needs_sample(self) -> bool:  # type: ignore[override]
        return any(part.needs_sample for part in self.parts)

    @property
    def takes_unpaired(self) -> bool:  # type: ignore[override]
        return all(part.takes_unpaired for part in self.parts)

    @property
    def needs_shared(self) -> bool:
        return any(part.needs_shared for part in self.parts)

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        return self.parts[0].rewards(logps)

    def margin(self, logps: PairLogps) -> Tensor:
        return self.parts[0].margin(logps)

    def loss(self, logps: PairLogps) -> Tensor:
        losses = [weight * part.loss(logps) for part, weight in zip(self.parts, self.weights, strict=True)]
        return torch.stack(losses).sum(dim=0)

    def at(self, progress: float) -> WeightedSum:
        return replace(self, parts=tuple(part.at(progress) for part in self.parts))

    def learners(self) -> tuple[Learner, ...]:
        return tuple(learner for part in self.parts for learner in part.learners())
