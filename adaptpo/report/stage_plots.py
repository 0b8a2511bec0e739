"""Draws a boundary measurement: plain arrays in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from adaptpo.report.canvas import Theme, blank, draw_density, frame, legend, titles
from adaptpo.report.formats import short
from adaptpo.report.visits import FloatArray
from adaptpo.stage.score import BOUNDARY, BoundaryScore

POINTS_AT_MOST = 40


def score_path(scores: Sequence[float], theme: Theme) -> Figure:
    """The boundary score and its interval over a growing number of prompts, in the order of measurement."""
    figure, grid = blank(theme, 3.1)
    axes = grid[0, 0]
    ends, score, low, high = path_of(scores)
    axes.fill_between(ends, low, high, color=theme.colours["online"], alpha=0.18, linewidth=0)
    axes.plot(ends, score, color=theme.colours["online"], linewidth=2)
    axes.axhline(BOUNDARY, color=theme.muted, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_ylim(0, 1)
    titles(axes, theme, x="prompts measured", y="boundary score")
    return figure


def path_of(scores: Sequence[float]) -> FloatArray:
    """Number of prompts, boundary score, and the ends of its 95 % interval, [4, points]."""
    ends = np.unique(np.linspace(min(8, len(scores)), len(scores), POINTS_AT_MOST).round().astype(int))
    found = [BoundaryScore.of(scores[:end]) for end in ends]
    low, high = np.array([boundary.interval for boundary in found]).T
    return np.array([ends, [boundary.score for boundary in found], low, high])


def score_histogram(levels: FloatArray, shares: FloatArray, theme: Theme) -> Figure:
    figure, grid = blank(theme, 2.8)
    axes = grid[0, 0]
    colours = [theme.colours["offline" if level < BOUNDARY else "online"] for level in levels]
    colours[len(levels) // 2] = theme.colours["before"]
    axes.bar(levels, shares, width=0.09, color=colours)
    axes.set_xticks(levels[::2])
    titles(axes, theme, x="share of comparisons that the policy won", y="share of prompts")
    return figure


def densities(sides: Sequence[tuple[str, str, FloatArray]], unit: str, theme: Theme) -> Figure:
    """One density for each (label, colour role, values)."""
    figure, grid = blank(theme, 2.8)
    axes = grid[0, 0]
    limits = frame([values for _, _, values in sides])
    for label, role, values in sides:
        draw_density(axes, values, limits, theme.colours[role], f"{label} (mean {short(values.mean())})")
    axes.set_ylim(bottom=0)
    titles(axes, theme, x=unit, y="density")
    legend(axes, theme)
    return figure
