"""What objectives of the log-ratios share: the divergence from the reference, and the weight of a longer tail."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from adaptpo.choices.objectives.base import Objective, log_ratios
from adaptpo.config.numbers import Fraction, Number, Positive
from adaptpo.errors import ConfigError
from adaptpo.types import PairLogps

FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

MOST = 80.0
"""Maximum exponent of the alpha-divergence, below float32's overflow."""


@dataclass(frozen=True)
class LogRatioObjective(Objective):
    """An objective of the log-ratios `r = logp - ref` of both responses; its implicit rewards are `beta * r`.

    `ld_alpha` (LD-DPO; Liu et al., 2024): in each response, the tokens beyond the length of the shorter one
    count `ld_alpha`, in [0, 1], for policy and reference; None counts all tokens alike.
    """

    beta: Positive = 0.1
    ld_alpha: Fraction | None = field(default=None, kw_only=True)
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.ld_alpha is not None and not 0 <= self.ld_alpha <= 1:
            raise ConfigError(f"ld_alpha is {self.ld_alpha}; set it between 0 (no tail) and 1 (plain log-probs)")
        super().__post_init__()

    @property
    def needs_shared(self) -> bool:
        return self.ld_alpha is not None

    def log_ratios(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        return log_ratios(logps if self.ld_alpha is None else with_lighter_tails(logps, self.ld_alpha))

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        chosen, rejected = self.log_ratios(logps)
        return self.beta * chosen, self.beta * rejected


def with_lighter_tails(logps: PairLogps, alpha: float) -> PairLogps:
    """The log-probs with the tokens beyond the shorter response's length multiplied by `alpha`.

    >>> one = lambda value: torch.tensor([value])
    >>> logps = PairLogps(one(-10.0), one(-6.0), one(5), one(3), one(-11.0), one(-6.0))
    >>> shared, reference_shared = torch.tensor([[-4.0, -6.0]]), torch.tensor([[-5.0, -6.0]])
    >>> shorter = with_lighter_tails(replace(logps, shared=shared, reference_shared=reference_shared), 0.5)
    >>> shorter.chosen, shorter.rejected, shorter.reference_chosen
    (tensor([-7.]), tensor([-6.]), tensor([-8.]))
    """
    if logps.shared is None or logps.reference_shared is None:
        raise ValueError("ld_alpha needs the log-probs of the shared length and the reference's; PairLogps holds none")

    def lighter(whole: Tensor | None, shared: Tensor) -> Tensor | None:
        return None if whole is None else shared + alpha * (whole - shared)

    sides = ("chosen", "rejected", "reference_chosen", "reference_rejected")
    parts = (*logps.shared.unbind(dim=1), *logps.reference_shared.unbind(dim=1))
    return replace(
        logps, **{side: lighter(getattr(logps, side), part) for side, part in zip(sides, parts, strict=True)}
    )


@dataclass(frozen=True)
class DivergenceObjective(LogRatioObjective):
    """An objective of the margin `beta * (f'(u_w) - f'(u_l))`, `u = exp(r)`: f-DPO (Wang et al., 2023).

    `f_divergence_type` and `f_alpha_divergence_coef` are TRL's: `reverse_kl` has f'(u) = log u = r (DPO itself),
    `forward_kl` 1 - 1/u, `js_divergence` log(2u / (1 + u)), `alpha_divergence` (u^(a - 1) - 1) / (a - 1) with a the
    coefficient, which approaches log u as a approaches 1. The implicit rewards stay `beta * r`, as TRL logs them.
    """

    f_divergence_type: FDivergence = field(default="reverse_kl", kw_only=True)
    f_alpha_divergence_coef: Number = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        if self.f_divergence_type not in DERIVATIVES:
            raise ConfigError(f"f_divergence_type is {self.f_divergence_type!r}; set one of {', '.join(DERIVATIVES)}")
        super().__post_init__()

    def scores(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """`f'(policy / reference)` of the chosen and of the rejected responses, each [n]."""
        derivative, coefficient = DERIVATIVES[self.f_divergence_type], self.f_alpha_divergence_coef
        chosen, rejected = self.log_ratios(logps)
        return derivative(chosen, coefficient), derivative(rejected, coefficient)

    def margin(self, logps: PairLogps) -> Tensor:
        chosen, rejected = self.scores(logps)
        return self.beta * chosen - self.beta * rejected


def reverse_kl(ratio: Tensor, _: float) -> Tensor:
    return ratio


def forward_kl(ratio: Tensor, _: float) -> Tensor:
    return -torch.expm1(-ratio)


def js_divergence(ratio: Tensor, _: float) -> Tensor:
    return math.log(2) + logsigmoid(ratio)


def alpha_divergence(ratio: Tensor, alpha: float) -> Tensor:
    if abs(alpha - 1) < 1e-6:
        return ratio
    return torch.expm1(((alpha - 1) * ratio).clamp(max=MOST)) / (alpha - 1)


DERIVATIVES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "js_divergence": js_divergence,
    "alpha_divergence": alpha_divergence,
}
"""f' of each divergence, as a function of log u and the alpha-divergence's coefficient."""
