"""Draws the outcome and the cost of a run: plain arrays in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from adaptpo.report.canvas import Theme, blank, common_x, draw_density, frame, halo, legend, ramp, titles
from adaptpo.report.formats import short
from adaptpo.report.visits import FloatArray

SMOOTHED_FROM = 60


@dataclass(frozen=True)
class Band:
    """Mean of one quantity at every stage of a run, and the quantiles `low` and `high`; `role` names its colour."""

    title: str
    axis: str
    role: str
    mean: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class Line:
    """A labelled sequence of points; `role` names a colour of the theme, None takes a shade of the ramp."""

    label: str
    x: FloatArray
    y: FloatArray
    role: str | None = None


@dataclass(frozen=True)
class CurvePanel:
    """One quantity over the course of training."""

    title: str
    lines: Sequence[Line]


def dynamics(stages: Sequence[str], bands: Sequence[Band], theme: Theme) -> Figure:
    """Mean with a band between the quantiles at each stage, one panel for each quantity."""
    figure, grid = blank(theme, 3.3, columns=len(bands))
    x = np.arange(len(stages))
    for axes, band in zip(grid[0], bands, strict=True):
        colour = theme.colours[band.role]
        axes.fill_between(x, band.low, band.high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(x, band.mean, color=colour, marker="o", markersize=5, linewidth=2)
        label_points(axes, band.mean, theme)
        axes.set_xticks(x, stages)
        axes.set_xlim(-0.35, len(stages) - 0.65)
        titles(axes, theme, title=band.title, y=band.axis)
    return figure


def label_points(axes: Any, values: FloatArray, theme: Theme) -> None:
    for x in np.flatnonzero(np.isfinite(values)):
        axes.annotate(
            short(values[x]), (x, values[x]), xytext=(0, 7), textcoords="offset points", ha="center",
            fontsize=8.5, color=theme.text, path_effects=halo(theme),
        )  # fmt: skip


def reward_distributions(distributions: Sequence[tuple[str, str, FloatArray]], theme: Theme) -> Figure:
    """Densities of rewards: (label, colour role, rewards) each, with a line at the mean."""
    figure, grid = blank(theme, 3.1)
    axes = grid[0, 0]
    limits = frame([values for _, _, values in distributions])
    for label, role, values in distributions:
        colour = theme.colours[role]
        draw_density(axes, values, limits, colour, f"{label} (mean {short(values.mean())})")
        axes.axvline(values.mean(), color=colour, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.set_ylim(bottom=0)
    titles(axes, theme, x="reward of the held-out response", y="density")
    legend(axes, theme)
    return figure


def training_curves(panels: Sequence[CurvePanel], phases: Sequence[tuple[float, str]], theme: Theme) -> Figure:
    """Metrics over optimizer steps; `phases` gives the step at which each phase begins."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = blank(theme, 2.5 * rows + 0.2, rows, columns)
    starts = [start for start, _ in phases]
    end = max(float(line.x.max()) for panel in panels for line in panel.lines)
    room = 0.02 * max(end - starts[0], 1.0)
    for axes, panel in zip(grid.flat, panels, strict=False):
        draw_panel(axes, panel, starts, theme)
        axes.set_xlim(starts[0] - room, end + room)
        mark_phases(axes, phases, end, theme)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    common_x(figure, "optimizer step", theme)
    return figure


def draw_panel(axes: Any, panel: CurvePanel, starts: Sequence[float], theme: Theme) -> None:
    for line, colour in zip(panel.lines, colours(panel.lines, theme), strict=True):
        draw_by_phase(axes, line, starts, colour)
    axes.margins(y=0.12)
    titles(axes, theme, title=panel.title)
    if len(panel.lines) > 1:
        legend(axes, theme)


def draw_by_phase(axes: Any, line: Line, starts: Sequence[float], colour: Any) -> None:
    """Draws each phase separately: nothing is joined or averaged across the start of a phase."""
    smooth = len(line.x) >= SMOOTHED_FROM
    cuts = np.searchsorted(line.x, starts)
    parts = [part for part in np.split(np.stack([line.x, line.y]), cuts, axis=1) if part.size]
    for number, (x, y) in enumerate(parts):
        if smooth:
            axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.3)
        axes.plot(
            x, running_mean(y) if smooth else y, color=colour, linewidth=1.8, label="_" if number else line.label,
            marker="o" if len(x) == 1 else None, markersize=3,
        )  # fmt: skip


def running_mean(values: FloatArray) -> FloatArray:
    window = np.ones(2 * (len(values) // 30) + 1)
    return np.convolve(values, window, mode="same") / np.convolve(np.ones_like(values), window, mode="same")


def mark_phases(axes: Any, phases: Sequence[tuple[float, str]], end: float, theme: Theme) -> None:
    ends = [start for start, _ in phases[1:]] + [end]
    for (start, label), stop in zip(phases, ends, strict=True):
        if start > phases[0][0]:
            axes.axvline(start, color=theme.muted, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.text(
            (start + stop) / 2, 1.0, label, transform=axes.get_xaxis_transform(), fontsize=7.5, color=theme.muted,
            ha="center", va="top", path_effects=halo(theme),
        )  # fmt: skip


def phase_seconds(kinds: Mapping[str, FloatArray], groups: Sequence[str], theme: Theme) -> Figure:
    """Seconds as horizontal bars: a row for each kind of work, split into groups.

    The first group is the work outside the iterations.
    """
    figure, grid = blank(theme, 0.9 + 0.36 * len(kinds))
    axes = grid[0, 0]
    rows = range(len(kinds))[::-1]
    left = np.zeros(len(kinds))
    shades = [theme.colours["before"], *ramp(theme, len(groups) - 1)]
    for group, colour, seconds in zip(groups, shades, np.array(list(kinds.values())).T, strict=True):
        if seconds.any():
            axes.barh(rows, seconds, left=left, height=0.66, color=colour, label=group)
        left += seconds
    label_bars(axes, rows, left, theme)
    axes.set_yticks(rows, list(kinds))
    axes.set_xlim(0, float(left.max()) * 1.16)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    titles(axes, theme, x="wall time (seconds)")
    legend(axes, theme, loc="lower right")
    return figure


def label_bars(axes: Any, rows: Sequence[int], seconds: FloatArray, theme: Theme) -> None:
    for row, total in zip(rows, seconds, strict=True):
        label = f"  {total:,.{0 if total >= 10 else 1}f} s · {total / seconds.sum():.0%}"
        axes.text(total, row, label, va="center", fontsize=8.5, color=theme.muted)


def colours(lines: Sequence[Line], theme: Theme) -> list[Any]:
    shades = iter(ramp(theme, sum(line.role is None for line in lines)))
    return [theme.colours[line.role] if line.role else next(shades) for line in lines]
