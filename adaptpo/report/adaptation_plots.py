"""Draws how the method adapted: gains, the learner, margins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adaptpo.report.canvas import Theme, blank, common_legend, common_x, draw_density, frame, halo, legend, ramp, titles
from adaptpo.report.plots import Line, colours
from adaptpo.report.visits import FloatArray

OPAQUE_POINTS = 150
Limits = tuple[float, float]


@dataclass(frozen=True)
class GainPanel:
    """One iteration: (offline margin, online minus offline margin) of trained prompts, and margins by selection."""

    label: str
    offline: FloatArray
    gain: FloatArray
    selected: FloatArray
    unselected: FloatArray


def gains(panels: Sequence[GainPanel], theme: Theme) -> Figure:
    """Online gain over the offline margin; above it, if there was a selection, the scoring margins by selection."""
    stripped = any(len(panel.selected) or len(panel.unselected) for panel in panels)
    ratios = [1, 3] if stripped else [1]
    height = 4.4 if stripped else 3.3
    figure, grid = blank(theme, height, len(ratios), len(panels), sharex=True, sharey="row", height_ratios=ratios)
    x_limits = frame([values for panel in panels for values in (panel.offline, panel.selected, panel.unselected)])
    y_limits = frame([panel.gain for panel in panels])
    for column, panel in zip(grid.T, panels, strict=True):
        if stripped:
            draw_selection(column[0], panel, x_limits, theme)
        draw_gains(column[-1], panel, x_limits, y_limits, theme)
        titles(column[0], theme, title=panel.label)
    titles(grid[-1, 0], theme, y="online margin − offline margin")
    common_x(figure, "offline margin (scaled by beta)", theme)
    if stripped:
        grid[0, 0].set_ylim(bottom=0)
        titles(grid[0, 0], theme, y="density")
        common_legend(figure, grid[0], theme)
    return figure


def draw_selection(axes: Any, panel: GainPanel, limits: Limits, theme: Theme) -> None:
    for label, role, values in (
        ("generated for", "online", panel.selected),
        ("left out", "before", panel.unselected),
    ):
        if len(values) > 1:
            draw_density(axes, values, limits, theme.colours[role], label)
    axes.tick_params(axis="x", labelbottom=False)
    axes.yaxis.set_major_locator(MaxNLocator(2))


def draw_gains(axes: Any, panel: GainPanel, x_limits: Limits, y_limits: Limits, theme: Theme) -> None:
    opacity = min(0.75, max(0.08, 0.75 * OPAQUE_POINTS / max(len(panel.gain), 1)))
    axes.scatter(panel.offline, panel.gain, s=9, color=theme.colours["online"], alpha=opacity, linewidths=0)
    axes.axhline(0, color=theme.muted, linewidth=0.8)
    axes.axvline(0, color=theme.muted, linewidth=0.8)
    axes.set(xlim=x_limits, ylim=y_limits)
    outside = outside_of(x_limits, panel.offline) | outside_of(y_limits, panel.gain)
    note = f"online > offline: {np.mean(panel.gain > 0):.0%} of {len(panel.gain):,} prompts"
    note += f"\n{outside.sum()} outside the frame" if outside.any() else ""
    axes.text(
        0.98, 0.97, note, transform=axes.transAxes, ha="right", va="top", fontsize=8.5, color=theme.muted,
        path_effects=halo(theme),
    )  # fmt: skip


def outside_of(limits: Limits, values: FloatArray) -> Any:
    return (values < limits[0]) | (values > limits[1])


def learner_curves(curves: Sequence[Line], scores: Mapping[str, FloatArray], theme: Theme) -> Figure:
    """The learner's weight over the offline score; below it, each iteration's distribution of scores."""
    ratios = [4, 1] if scores else [1]
    figure, grid = blank(theme, 4.2 if scores else 3.4, len(ratios), sharex=True, height_ratios=ratios)
    top = grid[0, 0]
    for curve, colour in zip(curves, colours(curves, theme), strict=True):
        style = "--" if curve.role == "before" else "-"
        top.plot(curve.x, curve.y, color=colour, linewidth=2, linestyle=style, label=curve.label)
    limits = score_limits(curves, list(scores.values()))
    top.set(xlim=limits, ylim=(0, 1))
    titles(top, theme, y="weight of the offline pair")
    legend(top, theme)
    if scores:
        draw_scores(grid[1, 0], list(scores.values()), limits, theme)
    titles(grid[-1, 0], theme, x="offline score, log sigmoid(margin)")
    return figure


def score_limits(curves: Sequence[Line], scores: Sequence[FloatArray]) -> Limits:
    """The part of the curves that the run's scores reach, with room to their left: at least down to -3."""
    low, high = min(curve.x.min() for curve in curves), max(curve.x.max() for curve in curves)
    if not scores:
        return low, high
    lowest, highest = frame(scores)
    return max(low, min(-3.0, lowest - 0.5 * (highest - lowest))), high


def draw_scores(axes: Any, scores: Sequence[FloatArray], limits: Limits, theme: Theme) -> None:
    for values, colour in zip(scores, ramp(theme, len(scores)), strict=True):
        bins = int(np.clip(2 * np.sqrt(len(values)), 36, 80))
        axes.hist(values, bins=bins, range=limits, density=True, histtype="step", color=colour, linewidth=1.4)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(2))
    titles(axes, theme, y="prompts\n(density)")


def margins(panels: Sequence[tuple[str, Mapping[str, FloatArray]]], theme: Theme) -> Figure:
    """Densities of the pairs' margins by source, one panel for each iteration."""
    figure, grid = blank(theme, 2.9, columns=len(panels), sharex=True, sharey=True)
    limits = frame([values for _, sources in panels for values in sources.values()])
    for axes, (label, sources) in zip(grid[0], panels, strict=True):
        for source, values in sources.items():
            draw_density(axes, values, limits, theme.colours[source], source)
        axes.axvline(0, color=theme.muted, linewidth=0.8)
        titles(axes, theme, title=label)
    grid[0, 0].set_ylim(bottom=0)  # Ends autoscaling of all panels, which share the axis.
    titles(grid[0, 0], theme, y="density")
    common_x(figure, "margin of the pair (scaled by beta)", theme)
    common_legend(figure, grid[0], theme)
    return figure
