"""Figures of how the method adapted: where online responses help, what the learner learned, how margins moved."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from adaptpo.report import adaptation_plots as plots
from adaptpo.report.figures import FigureSpec, evenly
from adaptpo.report.plots import Line
from adaptpo.report.reading import RunData, finite, number, read_json, stage_order
from adaptpo.report.visits import FloatArray

STRIP = (
    " The strip above shows the scoring margins of all prompts; a prompt that was left out has no online pair and no "
    "point. Where grey lies to the right of blue, the run generated for the prompts that the policy disagrees with."
)


def gain_figure(run: RunData) -> FigureSpec | None:
    """Offline margin against online gain by iteration, with the margins of the prompts that were left out."""
    panels = [panel for t in run.iterations if len((panel := gain_panel(run, t)).gain)]
    if not panels:
        return None
    shown, note = evenly(panels)
    strip = any(len(panel.unselected) for panel in panels)
    caption = (
        "Each point is a prompt with both pairs, at its first visit in training. Right of 0 the policy agrees with the "
        "offline pair; above 0 it scores the online pair higher. The offline margin enters both axes, so part of a "
        f"falling trend is built in.{STRIP if strip else ''} Compare Figure 2 (middle) of the MetaAPO paper.{note}"
    )
    return FigureSpec("gains", "Where online responses help", caption, lambda theme: plots.gains(shown, theme))


def gain_panel(run: RunData, t: int) -> plots.GainPanel:
    margins = first_margins(run, t)
    offline, online = margins["offline"], margins["online"]
    both = [key for key in offline if key in online]
    x = np.array([offline[key] for key in both], dtype=np.float64)
    y = np.array([online[key] for key in both], dtype=np.float64)
    return plots.GainPanel(f"iteration {t}", x, y - x, *margins_by_selection(run, t))


def first_margins(run: RunData, t: int) -> dict[str, dict[int, float]]:
    """The margin of each prompt's first pair of each source, at its first visit in training."""
    margins: dict[str, dict[int, float]] = defaultdict(dict)
    for line in run.pair_weights[t]:
        if number(line["margin"]) is not None:
            margins[line["source"]].setdefault(line["prompt_id"], line["margin"])
    return margins


def margins_by_selection(run: RunData, t: int) -> tuple[FloatArray, FloatArray]:
    """Scoring margins of the prompts that were selected, and of those that were not."""
    scored = run.table(f"iterations/{t}/scores/*.parquet", "prompt_id", "margin")
    selection = run.table(f"iterations/{t}/selection.parquet", "prompt_id", "selected")
    if not scored or not selection:
        return np.array([]), np.array([])
    chosen = np.isin(scored["prompt_id"], selection["prompt_id"][selection["selected"].astype(bool)])
    margin = scored["margin"].astype(np.float64)
    return margin[chosen & np.isfinite(margin)], margin[~chosen & np.isfinite(margin)]


def learner_figure(run: RunData) -> FigureSpec | None:
    """The learner's weight over the offline score at the start and after each iteration."""
    snapshots = sorted(run.files("snapshots/*.json"), key=lambda path: stage_order(path.stem))
    curves = [curve for path in snapshots if (curve := learner_curve(path))]
    if not curves:
        return None
    scores = iteration_scores(run)
    strip = " The strip below shows where the run's scores lie; elsewhere the curve has no effect." if scores else ""
    caption = (
        "The learner's weight of an offline pair, by the pair's score, at the start and after each iteration. A low "
        "weight makes fresh responses likely. A curve that rises to the right trusts a pair more if the policy agrees "
        f"with it; a curve that stays on its start has learned nothing.{strip} Compare Figure 3 (middle) of the "
        "MetaAPO paper."
    )
    return FigureSpec(
        "learner", "What the learner learned", caption, lambda theme: plots.learner_curves(curves, scores, theme)
    )


def learner_curve(path: Path) -> Line | None:
    curve = read_json(path).get("curve")
    if not curve:
        return None
    score, weight = np.array(curve["score"]), np.array(curve["weight"])
    if path.stem == "start":
        return Line("start", score, weight, role="before")
    return Line(f"after {path.stem.replace('-', ' ')}", score, weight)


def iteration_scores(run: RunData) -> dict[str, FloatArray]:
    scores = {f"iteration {t}": run.table(f"iterations/{t}/scores/*.parquet", "score") for t in run.iterations}
    return {label: values for label, table in scores.items() if len(values := finite(table, "score")) > 1}


def margin_figure(run: RunData) -> FigureSpec | None:
    """Margin densities of trained pairs by source and iteration."""
    panels = [(f"iteration {t}", sources) for t in run.iterations if (sources := margins_by_source(run, t))]
    if not panels:
        return None
    shown, note = evenly(panels)
    online = any("online" in sources for _, sources in panels)
    clause = " Online pairs close to 0 tell the policy something new; far to the right it already prefers the better."
    caption = (
        "Margins of the pairs at their first visit in training. Right of 0 the policy prefers the chosen response more "
        "than the reference does. An offline curve further right in a later iteration means that the policy agrees "
        f"more with the data.{clause if online else ''} Compare Figure 3 (right) of the MetaAPO paper.{note}"
    )
    return FigureSpec("margins", "Margins of the trained pairs", caption, lambda theme: plots.margins(shown, theme))


def margins_by_source(run: RunData, t: int) -> dict[str, FloatArray]:
    margins = first_margins(run, t)
    return {
        source: np.array(list(margins[source].values()), dtype=np.float64)
        for source in ("offline", "online", "mixed")
        if len(margins[source]) > 1
    }
