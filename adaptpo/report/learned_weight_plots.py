"""Draws MetaPO's coefficients, its weights over probability and volatility, and single pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from adaptpo.report.canvas import Theme, blank, common_legend, common_x, ramp, titles
from adaptpo.report.plots import Line
from adaptpo.report.visits import FOCAL_GAMMA, FloatArray, Visits

START = math.log(math.e - 1)
"""The bias that MetaPO starts with: softplus of it is 1."""
ROLES = {"margin": "online", "volatility": "offline", "divergence": "mixed"}
WEIGHTS = "viridis"
OPAQUE_POINTS = 800


def coefficients(lines: Sequence[Line], theme: Theme) -> Figure:
    """One line for each coefficient, (steps, values), in its feature's colour; solid if it is smoothed."""
    figure, grid = blank(theme, 3.6)
    axes = grid[0, 0]
    unnamed = iter(ramp(theme, len(lines)))
    for line in lines:
        name = line.label.removesuffix("_ema")
        if name == "bias":
            axes.plot(line.x, line.y - START, color=theme.colours["before"], linewidth=1.4, label="bias")
            continue
        colour = theme.colours[ROLES[name]] if name in ROLES else next(unnamed)
        smoothed = name != line.label
        label = f"{name}, smoothed" if smoothed else name
        axes.plot(line.x, line.y, color=colour, linewidth=2, linestyle="-" if smoothed else (0, (3, 1.5)), label=label)
    axes.axhline(0, color=theme.muted, linewidth=0.8)
    titles(axes, theme, x="optimizer step", y="coefficient")
    legend = axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5, frameon=False, labelcolor=theme.text
    )
    legend.set_in_layout(True)
    return figure


def landscape(pairs: Visits, theme: Theme) -> Figure:
    """FocalPO's and this run's weights, as colours over (p, volatility)."""
    figure, grid = blank(theme, 3.6, columns=2, sharex=True, sharey=True)
    panels = (("FocalPO", pairs.focal), ("this run", pairs.weight))
    for axes, (title, weight) in zip(grid[0], panels, strict=True):
        drawn = axes.scatter(
            pairs.probability, pairs.volatility, c=weight, s=9, cmap=WEIGHTS, linewidths=0, alpha=opacity(weight),
            vmin=0, vmax=high(weight),
        )  # fmt: skip
        colour_bar(figure, axes, drawn, theme)
        titles(axes, theme, title=title)
    grid[0, 0].set_xlim(-0.02, 1.02)
    grid[0, 0].set_ylim(0, high(pairs.volatility))
    titles(grid[0, 0], theme, y="volatility of the margin")
    common_x(figure, "p = sigmoid(margin)", theme)
    return figure


def high(values: FloatArray) -> float:
    """An axis limit above all but the outermost values."""
    return float(np.percentile(values, 99.5)) * 1.05 or 1.0


def opacity(values: FloatArray) -> float:
    return float(min(0.9, max(0.4, 0.9 * OPAQUE_POINTS / max(len(values), 1))))


def colour_bar(figure: Figure, axes: Any, drawn: Any, theme: Theme) -> None:
    bar = figure.colorbar(drawn, ax=axes, pad=0.02, aspect=30)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=theme.muted, labelsize=8.5, length=3)
    bar.set_label("weight", color=theme.muted, fontsize=9)


def gradient_factors(pairs: Visits, theme: Theme) -> Figure:
    """w (1 - p) over p: curves of DPO and FocalPO, points of the steadiest and the most volatile third."""
    figure, grid = blank(theme, 3.6)
    axes = grid[0, 0]
    p = np.linspace(0, 1, 200)
    axes.plot(p, 1 - p, color=theme.muted, linewidth=1.4, linestyle=(0, (4, 2)), label="DPO")
    axes.plot(p, p**FOCAL_GAMMA * (1 - p), color=theme.muted, linewidth=1.4, label="FocalPO")
    low, most = np.quantile(pairs.volatility, [1 / 3, 2 / 3])
    thirds = (
        ("this run, steadiest third", "online", pairs.volatility <= low),
        ("this run, most volatile third", "offline", pairs.volatility > most),
    )
    for label, role, chosen in thirds:
        x = pairs.probability[chosen]
        y = pairs.weight[chosen] * (1 - x)
        axes.scatter(x, y, s=9, color=theme.colours[role], linewidths=0, alpha=opacity(x), label=label)
    axes.set(xlim=(-0.02, 1.02), ylim=(0, None))
    titles(axes, theme, x="p = sigmoid(margin)", y="w (1 − p)")
    common_legend(figure, [axes], theme)
    return figure


def trajectories(cases: Sequence[tuple[str, Visits]], theme: Theme) -> Figure:
    """A column for each pair: its margin and its weight at each visit."""
    figure, grid = blank(theme, 4.0, 2, len(cases), sharex=True, sharey="row")
    for column, (title, visits) in zip(grid.T, cases, strict=True):
        for axes, values, role in ((column[0], visits.margin, "online"), (column[1], visits.weight, "mixed")):
            axes.plot(visits.count, values, color=theme.colours[role], marker="o", markersize=5, linewidth=2)
        column[0].axhline(0, color=theme.muted, linewidth=0.8)
        column[1].set_xticks(range(1, len(visits.count) + 1))
        titles(column[0], theme, title=f"{title}\nprompt {visits.lines[0]['prompt_id']}")
    titles(grid[0, 0], theme, y="margin")
    titles(grid[1, 0], theme, y="weight")
    grid[1, 0].set_ylim(bottom=0)
    common_x(figure, "visit", theme)
    return figure
