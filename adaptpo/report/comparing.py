"""A page that sets several runs side by side: settings that differ, results, and their curves over each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from adaptpo.errors import RunError
from adaptpo.report.canvas import Theme, blank, common_legend, titles
from adaptpo.report.figures import FigureSpec, render
from adaptpo.report.formats import duration, styled
from adaptpo.report.overview import name
from adaptpo.report.page import template
from adaptpo.report.reading import RunData, number, stage_order
from adaptpo.report.tables import Table, iteration_counts, ratio
from adaptpo.report.verdict import verdict
from adaptpo.run.files import write_text
from adaptpo.run.history import placed_records, steps_so_far

CURVES = {
    "loss": ("Loss", "loss"),
    "rewards/accuracies": ("Pairs ranked correctly", "share"),
    "rewards/margins": ("Margin", "beta x nats"),
    "logps/chosen": ("Log-prob of chosen responses", "nats"),
}
HELD_OUT = {"reward/mean": ("Held-out reward", "reward"), "length/mean": ("Length of responses", "tokens")}
NOT_COMPARED = ("output_dir", "inputs", "show_progress", "adaptpo")
SMOOTHED = 20
"""A curve is the running mean over this share (one in so many) of its steps."""


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Writes `compare.html` and its figures to `out`; returns its path. Raises RunError for what is no run folder."""
    runs = labelled([RunData.open(folder) for folder in folders])
    out.mkdir(parents=True, exist_ok=True)
    page = template("compare.html.j2").render(
        runs=[(label, verdict(run)) for label, run in runs.items()],
        results=Table.of(result_row(label, run) for label, run in runs.items()),
        settings=Table.of(setting_rows(runs)),
        figures={spec.name: render(spec, out) for spec in comparison_figures(runs)},
    )
    write_text(out / "compare.html", page)
    return out / "compare.html"


def labelled(runs: Sequence[RunData]) -> dict[str, RunData]:
    """The runs by their folders' names, or by more of their paths where the names are equal."""
    parts = 1
    while True:
        labels = ["/".join(run.root.parts[-parts:]) for run in runs]
        if len(set(labels)) == len(runs):
            return dict(zip(labels, runs, strict=True))
        if parts > max(len(run.root.parts) for run in runs):
            raise RunError(f"{labels[0]} is named twice; name different runs")
        parts += 1


def result_row(label: str, run: RunData) -> dict[str, str | None]:
    counts = [iteration_counts(run, t) for t in run.iterations]
    prompts = sum(count.prompts or 0 for count in counts)
    generated = sum(count.generated_for or 0 for count in counts)
    last = run.stages[-1] if run.stages else None
    return {
        "run": label,
        "method": name(run.config.get("method")),
        "held-out reward": styled(last.value("reward/mean"), ".3f") if last else None,
        "win rate": styled(last.value("win_rate"), ".1%") if last else None,
        "eval_loss": styled(last.value("eval_loss"), ".4f") if last else None,
        "length (tokens)": styled(last.value("length/mean"), ",.1f") if last else None,
        "annotated": styled(sum(count.annotated or 0 for count in counts) or None),
        "of the prompts": styled(ratio(generated, prompts), ".0%"),
        "steps": styled(steps_so_far(run.root)),
        "time": duration(run.seconds()),
        "finished": "yes" if run.phases.get("final", {}).get("done") else "no",
    }


def setting_rows(runs: Mapping[str, RunData]) -> Iterator[dict[str, str | None]]:
    """The settings in which the runs differ, one row each."""
    flat = {label: dict(flattened(run.config)) for label, run in runs.items()}
    for key in dict.fromkeys(key for settings in flat.values() for key in settings):
        values = {label: settings.get(key) for label, settings in flat.items()}
        if len(set(map(str, values.values()))) > 1:
            told = {label: None if value is None else str(value) for label, value in values.items()}
            yield {"setting": key, **told}


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if not prefix and key in NOT_COMPARED:
            continue
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def comparison_figures(runs: Mapping[str, RunData]) -> list[FigureSpec]:
    held_out = {metric: stage_curves(runs, metric) for metric in HELD_OUT}
    trained = {metric: step_curves(runs, metric) for metric in CURVES}
    specs = [
        figure_of(metric, *HELD_OUT[metric], curves, "stage (0 is the initial policy)", "Held-out prompts.")
        for metric, curves in held_out.items()
    ]
    specs += [
        figure_of(metric, *CURVES[metric], curves, "optimizer step, all phases", "Running means over logged steps.")
        for metric, curves in trained.items()
    ]
    return [spec for spec in specs if spec]


Curve = tuple[Any, Any]
"""x and y, [n] each."""


def stage_curves(runs: Mapping[str, RunData], metric: str) -> dict[str, Curve]:
    """By stage: a run without a warm-up has no point where others have theirs."""
    keys = sorted({stage.key for run in runs.values() for stage in run.stages}, key=stage_order)
    found = {}
    for label, run in runs.items():
        values = {keys.index(stage.key): stage.value(metric) for stage in run.stages}
        known = {place: value for place, value in values.items() if value is not None}
        if len(known) > 1:
            found[label] = (np.array([*known]), np.array([*known.values()]))
    return found


def step_curves(runs: Mapping[str, RunData], metric: str) -> dict[str, Curve]:
    found = {}
    for label, run in runs.items():
        placed = ((place, number(line.get(metric))) for place, line in placed_records(run.root))
        points = np.array([(place, value) for place, value in placed if value is not None]).reshape(-1, 2)
        if len(points) > 1:
            width = max(1, len(points) // SMOOTHED)
            smooth = np.convolve(points[:, 1], np.ones(width) / width, mode="valid")
            found[label] = (points[width - 1 :, 0], smooth)
    return found


def figure_of(
    metric: str, title: str, unit: str, curves: Mapping[str, Curve], x_label: str, caption: str
) -> FigureSpec | None:
    if not curves:
        return None

    def draw(theme: Theme) -> Figure:
        figure, grid = blank(theme, 3.4)
        axes = grid[0, 0]
        colours = list(theme.colours.values())
        for number_of_run, (label, (x, y)) in enumerate(curves.items()):
            style = ("-", "--", ":", "-.")[number_of_run // len(colours) % 4]
            axes.plot(x, y, style, color=colours[number_of_run % len(colours)], label=label, linewidth=1.8)
        titles(axes, theme, x=x_label, y=unit)
        common_legend(figure, grid[0], theme)
        return figure

    return FigureSpec(metric.replace("/", "-"), title, caption, draw)
