"""The features of MetaPO's weight: statistics of a pair's margins and divergences, one observation at a time.

Everything here is a pure function of numpy arrays, so reading a pair's features does not change its history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adaptpo.config.numbers import Decay, Ranged
from adaptpo.errors import ConfigError

Floats = NDArray[np.floating]
States = NDArray[np.void]
"""[n] records with the fields of `FeatureSet.dtype`; all zero for a pair that was never seen."""
Observation = Mapping[str, Floats]
"""What is observed of n pairs in one visit, [n] by name: `FeatureSet.signals`."""

BASE = ("margin", "margin_ema", "volatility", "volatility_ema", "divergence", "divergence_ema")
CURRENT = BASE[::2]
"""The features without memory beyond the volatility's own: Table 6, "w/o temporal"."""
GRADIENT = ("head_gradient_norm", "head_gradient_norm_ema")
HIGHER = ("skewness", "kurtosis", "change", *GRADIENT)
"""The features of Table 19; `kurtosis` is the excess over a normal distribution's, `change` the margin minus the
previous one. The paper does not say which gradient's norm it takes; here it is the gradient with respect to the
language-model head (see `PairBatch`)."""

BASE_FIELDS = ("margin_ema", "volatility_ema", "divergence_ema", "mean", "m2")
HIGHER_FIELDS = {
    "skewness": ("m3",),
    "kurtosis": ("m3", "m4"),
    "change": ("last",),
    "head_gradient_norm_ema": ("head_gradient_norm_ema",),
}
SPREADLESS = 1e-12
"""Sums of squares below this are rounding errors: the shape of such a distribution is unknown."""

Centre = Literal["mean", "ema"]


@dataclass(frozen=True)
class FeatureSet(Ranged):
    """The features, in the order of the weighting network's inputs, and how they are smoothed.

    Eqs. 3-9 of the MetaPO paper: the margin, its standard deviation over all observations of the pair, the divergence
    from the reference, and for each `ema <- decay * ema + (1 - decay) * value`, which starts at the first value. The
    smoothed values contain the current observation (Eqs. 4-8 and Algorithm 2; Algorithm 1 takes those before it).
    `centre` "mean" is Eq. 5 by Welford's algorithm, "ema" takes squared distances from the smoothed margin before the
    observation (Algorithm 2). `names` may omit features (Table 6) or add some of `HIGHER` (Table 19).

    Raises ConfigError for an unknown feature, and for a decay outside [0, 1).

    >>> features = FeatureSet(("margin", "volatility"))
    >>> states = np.zeros(1, features.dtype)
    >>> for margin in (1.0, 3.0):
    ...     seen = {"margin": np.array([margin]), "divergence": np.zeros(1)}
    ...     before, states = states, features.advance(states, seen)
    >>> features.read(before, states, seen)
    array([[3., 1.]], dtype=float32)
    """

    names: tuple[str, ...] = BASE
    decay: Decay = 0.9
    centre: Centre = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := sorted(set(self.names) - {*BASE, *HIGHER}):
            raise ConfigError(f"unknown features {', '.join(unknown)}; valid are: {', '.join((*BASE, *HIGHER))}")
        if not self.names:
            raise ConfigError("features is empty; name one or more")

    @property
    def fields(self) -> tuple[str, ...]:
        higher = {field: None for name in self.names for field in HIGHER_FIELDS.get(name, ())}
        return (*BASE_FIELDS, *higher)

    @property
    def dtype(self) -> np.dtype:
        """The record of a pair: 24 bytes, and 4 for each field that a feature of `HIGHER` needs."""
        return np.dtype([(field, "f4") for field in self.fields] + [("count", "i4")])

    @property
    def needs_divergence(self) -> bool:
        return bool({"divergence", "divergence_ema"} & set(self.names))

    @property
    def needs_history(self) -> bool:
        """Whether a feature depends on more than the current observation once a pair is observed twice."""
        return bool(set(self.names) - set(self.signals))

    @property
    def signals(self) -> tuple[str, ...]:
        """The fields of `PairBatch` that an observation consists of."""
        return ("margin", "divergence", *GRADIENT[:1]) if set(GRADIENT) & set(self.names) else ("margin", "divergence")

    def advance(self, before: States, seen: Observation) -> States:
        """The states [n] after one more observation of each pair."""
        after = before.copy()
        after["count"] = before["count"] + 1
        self._advance_moments(before, after, seen["margin"].astype("f8"))
        values = {**seen, "volatility": volatility(after)}
        for name in (name for name in values if f"{name}_ema" in self.fields):
            after[f"{name}_ema"] = self._smooth(before, f"{name}_ema", values[name])
        if "last" in self.fields:
            after["last"] = seen["margin"]
        return after

    def _smooth(self, before: States, field: str, value: Floats) -> Floats:
        old = np.where(before["count"] == 0, value, before[field]).astype("f8")
        return self.decay * old + (1 - self.decay) * value

    def _advance_moments(self, before: States, after: States, margin: Floats) -> None:
        """Updates the sums of powers of distances from the mean, by the one-pass formulas of Welford and Pebay."""
        count = after["count"].astype("f8")
        mean, m2 = before["mean"].astype("f8"), before["m2"].astype("f8")
        distance = margin - mean
        step = distance / count
        growth = distance * step * (count - 1)
        if "m3" in self.fields:
            m3 = before["m3"].astype("f8")
            after["m3"] = m3 + growth * step * (count - 2) - 3 * step * m2
            if "m4" in self.fields:
                spread = growth * step**2 * (count**2 - 3 * count + 3)
                after["m4"] = before["m4"] + spread + 6 * step**2 * m2 - 4 * step * m3
        after["mean"] = mean + step
        if self.centre == "ema":
            growth = np.where(before["count"] == 0, 0.0, (margin - before["margin_ema"]) ** 2)
        after["m2"] = m2 + growth

    def read(self, before: States, after: States, seen: Observation) -> Floats:
        """The features, [n, features] float32, from the states before and after an observation and from itself."""
        return np.stack([self._value(name, before, after, seen) for name in self.names], axis=1).astype("f4")

    def _value(self, name: str, before: States, after: States, seen: Observation) -> Floats:
        if name in seen:
            return seen[name]
        if name == "volatility":
            return volatility(after)
        if name == "change":
            return np.where(before["count"] == 0, 0.0, seen["margin"] - before["last"])
        return SHAPES[name](after) if name in SHAPES else after[name]


def volatility(states: States) -> Floats:
    """Eq. 5: the standard deviation of the margins seen so far, [n]."""
    return np.sqrt(states["m2"].astype("f8") / states["count"])


def skewness(states: States) -> Floats:
    m2, m3, count = (states[name].astype("f8") for name in ("m2", "m3", "count"))
    safe = np.maximum(m2, SPREADLESS)
    return np.where(m2 > SPREADLESS, np.sqrt(count) * m3 / safe**1.5, 0.0)


def kurtosis(states: States) -> Floats:
    m2, m4, count = (states[name].astype("f8") for name in ("m2", "m4", "count"))
    safe = np.maximum(m2, SPREADLESS)
    return np.where(m2 > SPREADLESS, count * m4 / safe**2 - 3, 0.0)


SHAPES = {"skewness": skewness, "kurtosis": kurtosis}
