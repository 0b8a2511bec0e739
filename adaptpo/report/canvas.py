"""Drawing code that the figures share: themes, axes, legends and densities.

Nothing here touches matplotlib's global state (no pyplot, no rcParams). Every figure exists in a light and a dark
theme; offline and online data keep their colours throughout, and iterations are shades of one green.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from adaptpo.report.visits import FloatArray

WIDTH_INCHES = 9.2
DOTS_PER_INCH = 170
DENSITY_BINS = 400


@dataclass(frozen=True)
class Theme:
    """The colours of one theme. `colours` maps a role (`offline`, `online`, `mixed`, `before`) to a colour."""

    background: str
    text: str
    muted: str
    grid: str
    colours: Mapping[str, str]
    ramp: tuple[str, str]


LIGHT = Theme(
    background="#ffffff",
    text="#1b1f24",
    muted="#5b636d",
    grid="#e4e7eb",
    colours={"offline": "#D55E00", "online": "#0072B2", "mixed": "#8A5A9E", "before": "#8b929b"},
    ramp=("#74C9A5", "#00513B"),
)
DARK = Theme(
    background="#171b21",
    text="#e6e9ed",
    muted="#9aa3ae",
    grid="#2c323b",
    colours={"offline": "#F08C3A", "online": "#56B4E9", "mixed": "#C79BD8", "before": "#8b929b"},
    ramp=("#2C8A68", "#CDF3E2"),
)


def png(figure: Figure, like: Figure | None = None) -> bytes:
    """The figure as a file. `like`: the same figure in another theme, already drawn, whose layout it takes."""
    if like is None:
        lay_out(figure)
    else:
        take_layout(figure, like)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def lay_out(figure: Figure) -> None:
    """Places the axes. `savefig` would do it too, in a pass that draws everything once more."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def take_layout(figure: Figure, other: Figure) -> None:
    """The layout takes longer than the drawing, and does not depend on colours."""
    figure.set_layout_engine("none")
    for axes, placed in zip(figure.axes, other.axes, strict=True):
        axes.set_position(placed.get_position(original=True))
    for text, known in zip(figure.texts, other.texts, strict=True):
        text.set_position(known.get_position())


def blank(theme: Theme, height: float, rows: int = 1, columns: int = 1, **layout: Any) -> tuple[Figure, Any]:
    """A figure and its grid of styled axes; `layout` is passed to matplotlib's `subplots`."""
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor=theme.background)
    grid = figure.subplots(rows, columns, squeeze=False, **layout)
    for axes in grid.flat:
        style(axes, theme)
    return figure, grid


def style(axes: Any, theme: Theme) -> None:
    axes.set_facecolor(theme.background)
    axes.grid(True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelsize=8.5, length=3, width=0.8)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.muted)
        spine.set_linewidth(0.8)


def titles(axes: Any, theme: Theme, title: str = "", x: str = "", y: str = "") -> None:
    if title:
        axes.set_title(title, loc="left", fontsize=10, color=theme.text, pad=8)
    if x:
        axes.set_xlabel(x, fontsize=9, color=theme.muted)
    if y:
        axes.set_ylabel(y, fontsize=9, color=theme.muted)


def common_x(figure: Figure, text: str, theme: Theme) -> None:
    figure.supxlabel(text, color=theme.muted, fontsize=9)


def legend(axes: Any, theme: Theme, loc: str = "best") -> None:
    axes.legend(loc=loc, fontsize=8.5, frameon=False, labelcolor=theme.text, handlelength=1.6)


def common_legend(figure: Figure, row: Any, theme: Theme) -> None:
    """One legend above all panels, so that it never covers data."""
    handles = {label: handle for axes in row for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper right", ncols=len(handles), fontsize=8.5, frameon=False,
        labelcolor=theme.text, handlelength=1.6,
    )  # fmt: skip


def ramp(theme: Theme, count: int) -> list[Any]:
    """One shade for each iteration, the last one the strongest."""
    if count == 1:
        return [theme.ramp[1]]
    shades = LinearSegmentedColormap.from_list("iterations", theme.ramp)
    return [shades(position) for position in np.linspace(0, 1, count)]


def halo(theme: Theme) -> list[Any]:
    """An outline that keeps text readable where it crosses a line."""
    return [withStroke(linewidth=3, foreground=theme.background)]


def frame(groups: Sequence[FloatArray]) -> tuple[float, float]:
    """Limits that hold all but the outermost 0.4 % of the values: a few outliers must not flatten the plot."""
    low, high = np.percentile(np.concatenate(groups), [0.2, 99.8])
    room = 0.08 * (high - low) or 0.5
    return float(low - room), float(high + room)


def draw_density(axes: Any, values: FloatArray, limits: tuple[float, float], colour: Any, label: str) -> None:
    x = np.linspace(*limits, DENSITY_BINS)
    y = density(values, x)
    axes.fill_between(x, y, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, y, color=colour, linewidth=1.8, label=label)
    axes.set_xlim(*limits)


def density(values: FloatArray, grid: FloatArray) -> FloatArray:
    """Gaussian kernel density of `values` on an even `grid` that covers them.

    Values are binned before smoothing, so the cost does not grow with points times grid.
    """
    step = float(grid[1] - grid[0])
    edges = np.append(grid - step / 2, grid[-1] + step / 2)
    counts = np.histogram(values, bins=edges)[0].astype(np.float64)
    width = max(bandwidth(values), step)
    distance = np.arange(1 - len(grid), len(grid)) * step
    kernel = np.exp(-0.5 * (distance / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return np.convolve(counts, kernel, mode="valid") / len(values)


def bandwidth(values: FloatArray) -> float:
    """Silverman's rule of thumb."""
    quartiles = np.percentile(values, [75, 25])
    spread = min(float(values.std()), float(np.subtract(*quartiles)) / 1.349)
    return 0.9 * (spread or float(values.std())) * len(values) ** -0.2
