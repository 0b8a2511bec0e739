"""The figures of the report, from specification to PNG."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from adaptpo.report.canvas import DARK, LIGHT, Theme, png

PANELS_AT_MOST = 4


@dataclass(frozen=True)
class FigureSpec:
    """A figure with data in this run.

    `caption` says what it shows, what which shape would mean, and which figure of a paper shows the same. It holds for
    every run: what this run's shape is, is for the eye or computed.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Theme], Figure]


@dataclass(frozen=True)
class RenderedFigure:
    """A figure in both themes, as data URIs."""

    title: str
    caption: str
    light: str
    dark: str


def render(spec: FigureSpec, folder: Path) -> RenderedFigure:
    """Draws the figure in both themes; the light one is also saved in `folder`."""
    figure = spec.draw(LIGHT)
    light = png(figure)
    dark = png(spec.draw(DARK), like=figure)
    (folder / f"{spec.name}.png").write_bytes(light)
    return RenderedFigure(spec.title, spec.caption, data_uri(light), data_uri(dark))


def data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def evenly(panels: Sequence[Any]) -> tuple[list[Any], str]:
    """At most `PANELS_AT_MOST` panels, including the first and the last, and a note if some are not shown."""
    picks = np.linspace(0, len(panels) - 1, min(len(panels), PANELS_AT_MOST)).round().astype(int)
    note = f" {len(picks)} of {len(panels)} iterations are shown." if len(picks) < len(panels) else ""
    return [panels[pick] for pick in picks], note
