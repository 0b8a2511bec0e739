"""Draws the figures of docs/concepts from finished runs, in light and dark.

python benchmarks/concept_figures.py --metaapo RUN --metapo RUN --stage "SFT policy=MEASUREMENT" "aligned=MEASUREMENT"

A RUN is a folder of `adaptpo train` with that method, a MEASUREMENT one of `adaptpo stage`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from adaptpo.errors import RunError
from adaptpo.report.adaptation import gain_figure
from adaptpo.report.canvas import DARK, LIGHT, Theme, blank, legend, png, titles
from adaptpo.report.figures import FigureSpec
from adaptpo.report.learned_weights import trajectory_figure
from adaptpo.report.reading import RunData
from adaptpo.report.stage_page import rows_of
from adaptpo.report.stage_plots import BOUNDARY, path_of
from adaptpo.stage.tally import Tally

IMAGES = Path(__file__).parents[1] / "docs" / "images"
ROLES = ("before", "online", "mixed", "offline")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metaapo", type=Path, required=True, metavar="RUN")
    parser.add_argument("--metapo", type=Path, required=True, metavar="RUN")
    parser.add_argument("--stage", nargs="+", required=True, metavar="NAME=MEASUREMENT")
    parser.add_argument("--out", type=Path, default=IMAGES)
    options = parser.parse_args()
    scores = {name: scores_of(Path(folder)) for name, folder in (given.split("=", 1) for given in options.stage)}
    save(options.out, "gains", of_run(gain_figure, options.metaapo))
    save(options.out, "trajectories", of_run(trajectory_figure, options.metapo))
    save(options.out, "boundary", partial(score_paths, scores))


def of_run(maker: Callable[[RunData], FigureSpec | None], folder: Path) -> Callable[[Theme], Figure]:
    spec = maker(RunData.open(folder))
    if spec is None:
        raise RunError(f"{folder} has no data for this figure; give a finished run of the method")
    return spec.draw


def scores_of(folder: Path) -> list[float]:
    comparisons = rows_of(RunData.open(folder), "stage/comparisons/*.parquet", "prompt_id", "preference")
    return list(Tally.of(comparisons).scores.values())


def score_paths(scores: Mapping[str, list[float]], theme: Theme) -> Figure:
    """The boundary score of each policy and its 95 % interval over a growing number of prompts."""
    figure, grid = blank(theme, 3.1)
    axes = grid[0, 0]
    for role, (name, found) in zip(ROLES, scores.items(), strict=False):
        ends, score, low, high = path_of(found)
        axes.fill_between(ends, low, high, color=theme.colours[role], alpha=0.18, linewidth=0)
        axes.plot(ends, score, color=theme.colours[role], linewidth=2, label=f"{name} ({score[-1]:.2f})")
    axes.axhline(BOUNDARY, color=theme.muted, linewidth=1, linestyle=(0, (4, 2)))
    axes.set(ylim=(0, 1), xlim=(0, None), yticks=np.linspace(0, 1, 5))
    titles(axes, theme, x="prompts measured", y="boundary score")
    legend(axes, theme, loc="lower right")
    return figure


def save(folder: Path, name: str, draw: Callable[[Theme], Figure]) -> None:
    light = draw(LIGHT)
    (folder / f"{name}.png").write_bytes(png(light))
    (folder / f"{name}-dark.png").write_bytes(png(draw(DARK), like=light))


if __name__ == "__main__":
    main()
