"""Draws a table: a dot with its interval for each row, and a small dot for each run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adaptpo.report.canvas import LIGHT, Theme, blank, common_x, titles
from adaptpo.sandbox.tables.statistics import Unit
from adaptpo.sandbox.tables.summary import RowSummary
from adaptpo.sandbox.tables.table import Table

PANELS = {
    "true_reward": ("true_reward", "true reward", 1.0, "online"),
    "judge": ("true_reward", "judge's score", 1.0, "online"),
    "length_controlled": ("length_controlled", "win rate against SFT at equal length, %", 100.0, "mixed"),
    "answers": ("answers", "annotated responses a prompt", 1.0, "offline"),
    "weight_auc": ("weight_auc", "AUC of the weight", 1.0, "offline"),
}
"""Metric, title, scale and colour of the columns that are drawn."""
ROW_INCHES = 0.32
SMALLEST_INCHES = 2.2
LABEL_GAP = 1.0
SEED_OFFSET = 0.24


def draw(table: Table, summaries: Sequence[RowSummary], unit: Unit, theme: Theme = LIGHT) -> Figure:
    """Draws the rows from top to bottom as in the table, with groups set apart under their names. `unit`: what the
    intervals are between."""
    heights, shown = places(summaries), [name for name in table.columns if name in PANELS]
    figure, grid = blank(theme, max(SMALLEST_INCHES, ROW_INCHES * (heights[-1] + 4)), columns=len(shown), sharey=True)
    for axes, column in zip(grid[0], shown, strict=True):
        metric, name, scale, role = PANELS[column]
        for summary, height in zip(summaries, heights, strict=True):
            draw_row(axes, summary, height, metric, scale, theme.colours[role])
        axes.margins(x=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        titles(axes, theme, x=name)
    label_rows(grid[0, 0], summaries, heights, theme)
    if any(len(summary.measured) > 1 for summary in summaries):
        estimates = [estimate for summary in summaries for estimate in summary.estimates.values()]
        intervals = f" over {unit} with 95 % intervals" if any(each.low is not None for each in estimates) else ""
        common_x(figure, f"means{intervals}; small dots are single runs", theme)
    figure.suptitle(table.title, x=0.01, ha="left", fontsize=11, color=theme.text)
    return figure


def places(summaries: Sequence[RowSummary]) -> list[float]:
    """The height of each row from the top, with room for the name of each group."""
    heights: list[float] = []
    before = ""
    for number, summary in enumerate(summaries):
        apart = LABEL_GAP if summary.row.group != before else 0.0
        heights.append((heights[-1] + 1 if number else 0.0) + apart)
        before = summary.row.group
    return heights


def draw_row(axes: Any, summary: RowSummary, height: float, metric: str, scale: float, colour: Any) -> None:
    estimate = summary.estimates.get(metric)
    if estimate is None:
        return
    measured = [getattr(found, metric) for found in summary.measured.values()]
    values = [scale * value for value in measured if value is not None]
    if len(values) > 1:
        axes.plot(values, [height + SEED_OFFSET] * len(values), "o", color=colour, markersize=3, alpha=0.6)
    if estimate.low is not None and estimate.high is not None:
        axes.plot([scale * estimate.low, scale * estimate.high], [height, height], color=colour, linewidth=2)
    axes.plot([scale * estimate.mean], [height], "o", color=colour, markersize=6)


def label_rows(axes: Any, summaries: Sequence[RowSummary], heights: Sequence[float], theme: Theme) -> None:
    ticks = list(zip(heights, (summary.row.label for summary in summaries), strict=True))
    named = {summary.row.group: height for summary, height in reversed(list(zip(summaries, heights, strict=True)))}
    axes.set_yticks([height for height, _ in ticks], [label for _, label in ticks], color=theme.text)
    axes.set_ylim(heights[-1] + 0.6, -0.6)
    across = axes.get_yaxis_transform()
    for group, height in named.items():
        name = axes.text(0.02, height - LABEL_GAP, group, transform=across, fontsize=8.5, va="center")
        name.set(
            color=theme.muted, in_layout=False
        )  # A long name extends into the next panel and does not push it away.
