"""Figures and tables of MetaPO: how its weights are computed, and which pairs they favour."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from adaptpo.report import learned_weight_plots as plots
from adaptpo.report.cost import training_steps
from adaptpo.report.figures import FigureSpec
from adaptpo.report.formats import styled
from adaptpo.report.plots import Line
from adaptpo.report.reading import RunData
from adaptpo.report.shapley import importance
from adaptpo.report.tables import Table
from adaptpo.report.visits import FOCAL_GAMMA, Visits

Mask = npt.NDArray[np.bool_]

GROUPS: tuple[tuple[str, Callable[[Visits], Mask]], ...] = (
    ("stable correct (p > 0.8, volatility < 0.1)", lambda v: (v.probability > 0.8) & (v.volatility < 0.1)),
    ("volatile correct (p > 0.8, volatility > 0.3)", lambda v: (v.probability > 0.8) & (v.volatility > 0.3)),
    ("persistent incorrect (p < 0.3)", lambda v: v.probability < 0.3),
    ("all", lambda v: np.ones(len(v.lines), dtype=bool)),
)
"""The groups of the MetaPO paper's Table 9."""


def coefficient_figure(run: RunData) -> FigureSpec | None:
    """The linear form's coefficients over optimizer steps."""
    steps, _ = training_steps(run)
    learned = run.learned_weight
    keys = {name: f"{learned['column']}/{name}" for name in learned.get("coefficients", {})}
    points = {name: [(x, line[key]) for x, line in steps if key in line] for name, key in keys.items()}
    lines = [Line(name, *np.array(found, dtype=np.float64).T) for name, found in points.items() if found]
    if not lines:
        return None
    caption = (
        "A pair's weight is the softplus of this linear form of its features. All weights start at 1, and the bias is "
        "drawn minus its start. Solid: smoothed over visits; dashed: at the current visit. A negative coefficient "
        "lowers the weight of pairs with a high value of its feature; one that stays at 0 has learned nothing. Compare "
        "Figure 3c of the MetaPO paper."
    )
    return FigureSpec("coefficients", "Coefficients of the weights", caption, lambda t: plots.coefficients(lines, t))


def landscape_figure(run: RunData) -> FigureSpec | None:
    """Weights over probability and volatility, beside FocalPO's."""
    visits = run.visits
    if visits is None:
        return None
    last = visits.last
    caption = (
        "Each point is a pair at its last visit: p = sigmoid(margin), and the standard deviation of its margins. "
        f"Left: FocalPO's p^gamma with gamma {FOCAL_GAMMA:g} (bands, as it depends on p alone); right: this run. "
        "A colour that changes from bottom to top at the same p means that history counts beside p. Compare Figures 3a "
        "and 3b of the MetaPO paper."
    )
    return FigureSpec("landscape", "Weights by history", caption, lambda theme: plots.landscape(last, theme))


def gradient_figure(run: RunData) -> FigureSpec | None:
    """The factor of each pair's gradient under its weight."""
    visits = run.visits
    if visits is None:
        return None
    last = visits.last
    caption = (
        "The factor w (1 - p) of each pair's gradient at its last visit (Eq. 15), for the steadiest and the most "
        "volatile third of the pairs. Where volatile pairs lie below steady ones of the same p, the weights damp pairs "
        "whose margins swing. Compare Figure 2 of the MetaPO paper."
    )
    return FigureSpec("factors", "Effective gradients", caption, lambda theme: plots.gradient_factors(last, theme))


def trajectory_figure(run: RunData) -> FigureSpec | None:
    """Margin and weight of single pairs from visit to visit."""
    visits = run.visits
    if visits is None or visits.count.max() < 2:
        return None
    often = np.bincount(visits.pair)[visits.pair] == visits.count.max()
    shown = [(title, visits[visits.pair == pair]) for title, pair in cases(visits[often])]
    caption = (
        "Pairs of the run, chosen like the four in the MetaPO paper's appendix B: the steadiest pair that is right at "
        "every visit, the most volatile one that is right at the last visit, the one that moved furthest from wrong to "
        "right, and the one on which policy and reference differ most."
    )
    return FigureSpec("trajectories", "Single pairs", caption, lambda theme: plots.trajectories(shown, theme))


def cases(visits: Visits) -> Iterator[tuple[str, int]]:
    """A title and a pair for each kind that occurs, no pair twice."""
    taken: set[int] = set()
    last = visits.last
    first = dict(zip(visits.pair[::-1], visits.margin[::-1], strict=True))
    start = np.array([first[pair] for pair in last.pair])
    wrong = set(visits.pair[visits.margin <= 0])
    always = np.array([pair not in wrong for pair in last.pair])
    far = np.array([line.get("divergence_ema", np.nan) for line in last.lines], dtype=np.float64)
    kinds = (
        ("stable correct", -last.volatility, always),
        ("volatile correct", last.volatility, last.margin > 0),
        ("recently learned", last.margin - start, (start < 0) & (last.margin > 0)),
        ("far from the reference", far, np.isfinite(far)),
    )
    for title, value, fits in kinds:
        fits = fits & ~np.isin(last.pair, list(taken))
        if fits.any():
            pair = int(last.pair[np.argmax(np.where(fits, value, -np.inf))])
            taken.add(pair)
            yield title, pair


def group_table(run: RunData) -> Table | None:
    """Mean weights and gradient factors of groups of pairs at their last visits (Tables 7 and 9)."""
    visits = run.visits
    if visits is None:
        return None
    last = visits.last
    note = (
        "Groups as in the MetaPO paper's Table 9, pairs at their last visits. The factor w (1 - p) scales a pair's "
        f"gradient; {variances(last)}. Gradients themselves are not stored, so these are not the variances of the "
        "paper's Table 7."
    )
    return Table.of((group_row(name, last[members(last)]) for name, members in GROUPS), note)


def variances(pairs: Visits) -> str:
    slope = 1 - pairs.probability
    ours, dpo, focal = (float(np.var(weight * slope)) for weight in (pairs.weight, np.ones_like(slope), pairs.focal))
    return f"its variance over all pairs is {ours:.4f}, with DPO's weights {dpo:.4f}, with FocalPO's {focal:.4f}"


def group_row(name: str, pairs: Visits) -> dict[str, str | None]:
    slope = 1 - pairs.probability
    columns = {
        "FocalPO's weight": pairs.focal,
        "weight": pairs.weight,
        "DPO's factor": slope,
        "FocalPO's factor": pairs.focal * slope,
        "factor": pairs.weight * slope,
    }
    means = {title: styled(float(values.mean()), ".3f") if len(values) else None for title, values in columns.items()}
    return {"pairs at their last visit": name, "number": styled(len(pairs.lines)), **means}


def visit_table(run: RunData) -> Table | None:
    """The weights by visit number, which is the epoch."""
    visits = run.visits
    if visits is None:
        return None
    note = "Entropy of the weights as shares of their sum, beside that of equal weights: if far lower, few pairs count."
    return Table.of((visit_row(visits[visits.count == count], count) for count in np.unique(visits.count)), note)


def visit_row(visits: Visits, count: int) -> dict[str, str | None]:
    shares = visits.weight / visits.weight.sum()
    entropy = -float((shares * np.log(np.maximum(shares, np.finfo(np.float64).tiny))).sum())
    return {
        "visit": str(count),
        "pairs": styled(len(visits.lines)),
        "mean weight": styled(float(visits.weight.mean()), ".3f"),
        "± std": styled(float(visits.weight.std()), ".3f"),
        "entropy, nats": styled(entropy, ".4f"),
        "of equal weights": styled(float(np.log(len(visits.lines))), ".4f"),
    }


def importance_table(run: RunData) -> Table | None:
    """Mean absolute Shapley value of each feature; None if nothing is learned yet or the architecture is not
    linear."""
    visits, coefficients = run.visits, dict(run.learned_weight.get("coefficients", {}))
    bias = coefficients.pop("bias", 0.0)
    if visits is None or len(visits.last.lines) < 2 or not any(coefficients.values()):
        return None
    features = np.array([[line[name] for name in coefficients] for line in visits.last.lines], dtype=np.float64)
    values = importance(features, np.array(list(coefficients.values())), bias)
    total = float(values.sum())
    note = (
        "Exact Shapley values of the final weights, mean absolute values over up to 1000 pairs; the MetaPO paper "
        "(Table 8) estimates them with shap's KernelExplainer. Smoothed features have 71 % in the paper."
    )
    rows = (
        {
            "feature": name,
            "coefficient": styled(coefficients[name], ".3f"),
            "importance": styled(float(value), ".4f"),
            "share": styled(float(value) / total, ".1%"),
        }
        for name, value in zip(coefficients, values, strict=True)
    )
    return Table.of(rows, note)
