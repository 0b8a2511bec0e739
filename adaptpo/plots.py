"""The report's figures: plain arrays in, matplotlib figures out.

Nothing here reads files or touches matplotlib's global state (no pyplot, no rcParams). Every figure exists in a light
and a dark theme; offline and online data keep their colours throughout, and iterations are shades of one green.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

FloatArray = npt.NDArray[np.float64]

WIDTH_INCHES = 9.2
DOTS_PER_INCH = 170
OPAQUE_POINTS = 150
SMOOTHED_FROM = 60
DENSITY_BINS = 400


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance. `colours` maps a role (`offline`, `online`, `mixed`, `before`) to a colour."""

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


@dataclass(frozen=True)
class Band:
    """Mean and standard deviation of one quantity at every stage of a run; `role` names its colour."""

    title: str
    axis: str
    role: str
    mean: FloatArray
    std: FloatArray


@dataclass(frozen=True)
class GainPanel:
    """One iteration: (offline margin, online minus offline margin) of trained prompts, and margins by selection."""

    label: str
    offline: FloatArray
    gain: FloatArray
    selected: FloatArray
    unselected: FloatArray


@dataclass(frozen=True)
class Line:
    """A labelled sequence of points; `role` names a colour of the theme, None takes the ramp."""

    label: str
    x: FloatArray
    y: FloatArray
    role: str | None = None


@dataclass(frozen=True)
class CurvePanel:
    """One quantity followed through training."""

    title: str
    lines: Sequence[Line]


def png(figure: Figure) -> bytes:
    """The figure as PNG, drawn by Agg."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def short(value: float, sign: str = "-") -> str:
    """A number to three digits or so; `sign` as in a format specification."""
    decimals = 2 if 1 <= abs(value) < 100 else 3 if abs(value) < 1 else 0
    return f"{value:{sign},.{decimals}f}".replace("-", "−")


def density(values: FloatArray, grid: FloatArray) -> FloatArray:
    """Gaussian kernel density of `values` on an even `grid` that covers them (Silverman's bandwidth).

    Values are binned before smoothing, so that the cost does not grow with points times grid.
    """
    step = float(grid[1] - grid[0])
    edges = np.append(grid - step / 2, grid[-1] + step / 2)
    counts = np.histogram(values, bins=edges)[0].astype(np.float64)
    width = max(_bandwidth(values), step)
    distance = np.arange(1 - len(grid), len(grid)) * step
    kernel = np.exp(-0.5 * (distance / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return np.convolve(counts, kernel, mode="valid") / max(len(values), 1)


def dynamics(stages: Sequence[str], bands: Sequence[Band], theme: Theme) -> Figure:
    """Mean with a band of one standard deviation per stage, one panel for each quantity."""
    figure, grid = _figure(theme, 1, len(bands), height=3.3)
    for axes, band in zip(grid[0], bands, strict=True):
        x = np.arange(len(stages))
        colour = theme.colours[band.role]
        axes.fill_between(x, band.mean - band.std, band.mean + band.std, color=colour, alpha=0.16, linewidth=0)
        axes.plot(x, band.mean, color=colour, marker="o", markersize=5, linewidth=2)
        _label_points(axes, band.mean, theme)
        axes.set_xticks(x, stages)
        axes.set_xlim(-0.35, len(stages) - 0.65)
        _titles(axes, theme, title=band.title, y=band.axis)
    return figure


def gains(panels: Sequence[GainPanel], theme: Theme) -> Figure:
    """Offline margin against the online gain; above it, where there was a selection, the margins by selection."""
    stripped = any(len(panel.selected) or len(panel.unselected) for panel in panels)
    ratios = [1, 3] if stripped else [1]
    figure = Figure(figsize=(WIDTH_INCHES, 4.4 if stripped else 3.3), layout="constrained", facecolor=theme.background)
    grid = figure.subplots(
        len(ratios), len(panels), squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": ratios}
    )
    x_frame = _frame([values for panel in panels for values in (panel.offline, panel.selected, panel.unselected)])
    y_frame = _frame([panel.gain for panel in panels])
    for column, panel in enumerate(panels):
        _draw_gains(grid[-1, column], panel, x_frame, y_frame, theme)
        if stripped:
            _draw_marginals(grid[0, column], panel, x_frame, theme)
        _titles(grid[0, column], theme, title=panel.label)
    _titles(grid[-1, 0], theme, y="online margin − offline margin")
    figure.supxlabel("offline margin (scaled by beta)", color=theme.muted, fontsize=9)
    if stripped:
        _titles(grid[0, 0], theme, y="density")
        _common_legend(figure, grid[0], theme)
    return figure


def learner_curves(curves: Sequence[Line], scores: Sequence[Line], theme: Theme) -> Figure:
    """The learner's weight as a function of the offline score; below it, where the run's scores lie.

    The first curve is the learner's start. `scores` carries one line for each iteration, with the scores as `x`.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 4.2 if scores else 3.4), layout="constrained", facecolor=theme.background)
    ratios = [4, 1] if scores else [1]
    grid = figure.subplots(len(ratios), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": ratios})
    top = grid[0, 0]
    _style(top, theme)
    colours = _colours(curves, theme)
    for curve, colour in zip(curves, colours, strict=True):
        style = "--" if curve.role == "before" else "-"
        top.plot(curve.x, curve.y, color=colour, linewidth=2, linestyle=style, label=curve.label)
    top.set_ylim(0, 1)
    top.set_xlim(*_score_frame(curves, scores))
    _titles(top, theme, y="weight of the offline pair")
    _legend(top, theme)
    if scores:
        _draw_scores(grid[1, 0], scores, top.get_xlim(), theme)
    _titles(grid[-1, 0], theme, x="offline score, log sigmoid(margin)")
    return figure


def margins(panels: Sequence[tuple[str, Mapping[str, FloatArray]]], theme: Theme) -> Figure:
    """Densities of the pairs' margins by source, one panel for each iteration."""
    figure, grid = _figure(theme, 1, len(panels), height=2.9, share=True)
    low, high = _frame([values for _, sources in panels for values in sources.values()])
    x = np.linspace(low, high, DENSITY_BINS)
    for axes, (label, sources) in zip(grid[0], panels, strict=True):
        for source, values in sources.items():
            _fill_density(axes, values, x, theme.colours[source], source)
        axes.axvline(0, color=theme.muted, linewidth=0.8)
        axes.set_xlim(low, high)
        axes.set_ylim(bottom=0)
        _titles(axes, theme, title=label)
    _titles(grid[0, 0], theme, y="density")
    figure.supxlabel("margin of the pair (scaled by beta)", color=theme.muted, fontsize=9)
    _common_legend(figure, grid[0], theme)
    return figure


def training_curves(panels: Sequence[CurvePanel], phases: Sequence[tuple[float, str]], theme: Theme) -> Figure:
    """Metrics over optimizer steps; `phases` gives the step at which each phase begins."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = _figure(theme, rows, columns, height=2.5 * rows + 0.2)
    end = max(float(line.x.max()) for panel in panels for line in panel.lines)
    room = 0.02 * max(end - phases[0][0], 1.0)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for line, colour in zip(panel.lines, _colours(panel.lines, theme), strict=True):
            _draw_by_phase(axes, line, [start for start, _ in phases], colour)
        axes.set_xlim(phases[0][0] - room, end + room)
        axes.margins(y=0.12)
        _mark_phases(axes, phases, end, theme)
        _titles(axes, theme, title=panel.title)
        if len(panel.lines) > 1:
            _legend(axes, theme)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("optimizer step", color=theme.muted, fontsize=9)
    return figure


def phase_seconds(kinds: Sequence[str], groups: Sequence[str], seconds: FloatArray, theme: Theme) -> Figure:
    """Seconds as horizontal bars: a row for each kind of work, split into groups (`seconds[kind, group]`).

    The first group is the work outside the iterations.
    """
    figure, grid = _figure(theme, 1, 1, height=0.9 + 0.36 * len(kinds))
    axes = grid[0, 0]
    rows = np.arange(len(kinds))[::-1]
    left = np.zeros(len(kinds))
    for column, (group, colour) in enumerate(zip(groups, _group_colours(len(groups), theme), strict=True)):
        if seconds[:, column].any():
            axes.barh(rows, seconds[:, column], left=left, height=0.66, color=colour, label=group)
        left += seconds[:, column]
    for row, total in zip(rows, left, strict=True):
        share = total / max(float(left.sum()), 1e-9)
        label = f"  {total:,.{0 if total >= 10 else 1}f} s · {share:.0%}"
        axes.text(total, row, label, va="center", fontsize=8.5, color=theme.muted)
    axes.set_yticks(rows, kinds)
    axes.set_xlim(0, float(left.max()) * 1.16)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    _titles(axes, theme, x="wall time (seconds)")
    _legend(axes, theme, loc="lower right")
    return figure


def reward_distributions(distributions: Sequence[tuple[str, str, FloatArray]], theme: Theme) -> Figure:
    """Densities of rewards: (label, colour role, rewards) each, with a line at the mean."""
    figure, grid = _figure(theme, 1, 1, height=3.1)
    axes = grid[0, 0]
    low, high = _frame([values for _, _, values in distributions])
    x = np.linspace(low, high, DENSITY_BINS)
    for label, role, values in distributions:
        colour = theme.colours[role]
        _fill_density(axes, values, x, colour, f"{label} (mean {short(values.mean())})")
        axes.axvline(values.mean(), color=colour, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    _titles(axes, theme, x="reward of the held-out response", y="density")
    _legend(axes, theme)
    return figure


def _bandwidth(values: FloatArray) -> float:
    if len(values) < 2:
        return 0.0
    spread = min(float(values.std()), float(np.subtract(*np.percentile(values, [75, 25]))) / 1.349)
    return 0.9 * (spread or float(values.std())) * len(values) ** -0.2


def _figure(theme: Theme, rows: int, columns: int, height: float, share: bool = False) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained", facecolor=theme.background)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    for axes in grid.flat:
        _style(axes, theme)
    return figure, grid


def _style(axes: Any, theme: Theme) -> None:
    axes.set_facecolor(theme.background)
    axes.grid(True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelsize=8.5, length=3, width=0.8)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.muted)
        spine.set_linewidth(0.8)


def _titles(axes: Any, theme: Theme, title: str = "", x: str = "", y: str = "") -> None:
    if title:
        axes.set_title(title, loc="left", fontsize=10, color=theme.text, pad=8)
    if x:
        axes.set_xlabel(x, fontsize=9, color=theme.muted)
    if y:
        axes.set_ylabel(y, fontsize=9, color=theme.muted)


def _legend(axes: Any, theme: Theme, loc: str = "best") -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc=loc, fontsize=8.5, frameon=False, labelcolor=theme.text, handlelength=1.6)


def _common_legend(figure: Figure, row: Any, theme: Theme) -> None:
    """One legend above all panels, so that it never covers data."""
    handles = {label: handle for axes in row for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper right", ncols=len(handles), fontsize=8.5, frameon=False,
        labelcolor=theme.text, handlelength=1.6,
    )  # fmt: skip


def _colours(lines: Sequence[Line], theme: Theme) -> list[Any]:
    shades = iter(_ramp(theme, sum(line.role is None for line in lines)))
    return [theme.colours[line.role] if line.role else next(shades) for line in lines]


def _ramp(theme: Theme, count: int) -> list[Any]:
    if count == 1:
        return [theme.ramp[1]]
    shades = LinearSegmentedColormap.from_list("iterations", theme.ramp)
    return [shades(position) for position in np.linspace(0, 1, count)]


def _group_colours(count: int, theme: Theme) -> list[Any]:
    return [theme.colours["before"], *_ramp(theme, count - 1)]


def _frame(groups: Sequence[FloatArray]) -> tuple[float, float]:
    """Limits that hold all but the outermost 0.4 % of the values: a few outliers must not flatten a picture."""
    values = np.concatenate([group for group in groups if len(group)])
    low, high = np.percentile(values, [0.2, 99.8])
    room = 0.08 * (high - low) or 0.5
    return float(low - room), float(high + room)


def _halo(theme: Theme) -> list[Any]:
    """Keeps text readable where it crosses a line."""
    return [withStroke(linewidth=3, foreground=theme.background)]


def _label_points(axes: Any, values: FloatArray, theme: Theme) -> None:
    for x, value in enumerate(values):
        if np.isfinite(value):
            axes.annotate(
                short(value), (x, value), xytext=(0, 7), textcoords="offset points", ha="center",
                fontsize=8.5, color=theme.text, path_effects=_halo(theme),
            )  # fmt: skip


def _fill_density(axes: Any, values: FloatArray, x: FloatArray, colour: Any, label: str) -> None:
    y = density(values, x)
    axes.fill_between(x, y, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, y, color=colour, linewidth=1.8, label=label)


def _draw_marginals(axes: Any, panel: GainPanel, frame: tuple[float, float], theme: Theme) -> None:
    _style(axes, theme)
    x = np.linspace(*frame, DENSITY_BINS)
    for label, role, values in (
        ("generated for", "online", panel.selected),
        ("left out", "before", panel.unselected),
    ):
        if len(values) > 1:
            _fill_density(axes, values, x, theme.colours[role], label)
    axes.tick_params(axis="x", labelbottom=False)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(2))


def _draw_gains(
    axes: Any, panel: GainPanel, x_frame: tuple[float, float], y_frame: tuple[float, float], theme: Theme
) -> None:
    _style(axes, theme)
    opacity = min(0.75, max(0.08, 0.75 * OPAQUE_POINTS / max(len(panel.gain), 1)))
    axes.scatter(panel.offline, panel.gain, s=9, color=theme.colours["online"], alpha=opacity, linewidths=0)
    axes.axhline(0, color=theme.muted, linewidth=0.8)
    axes.axvline(0, color=theme.muted, linewidth=0.8)
    axes.set_xlim(*x_frame)
    axes.set_ylim(*y_frame)
    outside = ~(_within(panel.offline, x_frame) & _within(panel.gain, y_frame))
    note = f"online > offline: {np.mean(panel.gain > 0):.0%} of {len(panel.gain):,} prompts"
    note += f"\n{outside.sum()} outside the frame" if outside.any() else ""
    axes.text(
        0.98, 0.97, note, transform=axes.transAxes, ha="right", va="top", fontsize=8.5, color=theme.muted,
        path_effects=_halo(theme),
    )  # fmt: skip


def _within(values: FloatArray, frame: tuple[float, float]) -> npt.NDArray[np.bool_]:
    return (values >= frame[0]) & (values <= frame[1])


def _score_frame(curves: Sequence[Line], scores: Sequence[Line]) -> tuple[float, float]:
    """The part of the curves that the run's scores reach, with room to their left: at least down to -3."""
    low = min(float(curve.x.min()) for curve in curves)
    high = max(float(curve.x.max()) for curve in curves)
    if not scores:
        return low, high
    lowest, highest = _frame([line.x for line in scores])
    return max(low, min(-3.0, lowest - 0.5 * (highest - lowest))), high


def _draw_scores(axes: Any, scores: Sequence[Line], frame: tuple[float, float], theme: Theme) -> None:
    _style(axes, theme)
    for line, colour in zip(scores, _ramp(theme, len(scores)), strict=True):
        bins = int(np.clip(2 * np.sqrt(len(line.x)), 36, 80))
        axes.hist(line.x, bins=bins, range=frame, density=True, histtype="step", color=colour, linewidth=1.4)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(2))
    _titles(axes, theme, y="prompts\n(density)")


def _draw_by_phase(axes: Any, line: Line, starts: Sequence[float], colour: Any) -> None:
    """Phases are drawn apart: nothing is joined or averaged across the beginning of one."""
    cuts = np.searchsorted(line.x, starts)
    labels = iter([line.label])
    for x, y in zip(np.split(line.x, cuts), np.split(line.y, cuts), strict=True):
        if len(x):
            _draw_smoothed(axes, x, y, next(labels, None), colour, smooth=len(line.x) >= SMOOTHED_FROM)


def _draw_smoothed(axes: Any, x: FloatArray, y: FloatArray, label: str | None, colour: Any, smooth: bool) -> None:
    marker = "o" if len(x) == 1 else None
    if smooth:
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(
        x, _running_mean(y) if smooth else y, color=colour, linewidth=1.8, label=label, marker=marker, markersize=3
    )


def _running_mean(values: FloatArray) -> FloatArray:
    window = np.ones(2 * (len(values) // 30) + 1)
    return np.convolve(values, window, mode="same") / np.convolve(np.ones_like(values), window, mode="same")


def _mark_phases(axes: Any, phases: Sequence[tuple[float, str]], end: float, theme: Theme) -> None:
    ends = [start for start, _ in phases[1:]] + [end]
    for (start, label), stop in zip(phases, ends, strict=True):
        if start > phases[0][0]:
            axes.axvline(start, color=theme.muted, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.text(
            (start + stop) / 2, 1.0, label, transform=axes.get_xaxis_transform(), fontsize=7.5, color=theme.muted,
            ha="center", va="top", path_effects=_halo(theme),
        )  # fmt: skip
