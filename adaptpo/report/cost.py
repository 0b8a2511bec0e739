"""Figures of training and of its cost in time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from adaptpo.report import plots
from adaptpo.report.figures import FigureSpec
from adaptpo.report.reading import RunData, number
from adaptpo.report.tables import last_attempts
from adaptpo.report.visits import FloatArray
from adaptpo.types import Row

Steps = list[tuple[float, Row]]
"""Logged lines with their positions on the axis of optimizer steps."""

# Title, then (metric, label, colour role) of each line.
TRAINING_PANELS: tuple[tuple[str, tuple[tuple[str, str, str | None], ...]], ...] = (
    ("Loss", (("loss", "loss", None),)),
    ("Margin, beta-scaled", (("rewards/margins", "margin", None),)),
    ("Accuracy: share of margins above 0", (("rewards/accuracies", "accuracy", None),)),
    ("Mean weight of a pair", (("weight/offline", "offline", "offline"), ("weight/online", "online", "online"))),
    ("Log-probability (nats)", (("logps/chosen", "chosen", None), ("logps/rejected", "rejected", "before"))),
    ("Gradient norm", (("grad_norm", "gradient norm", None),)),
)


def training_figure(run: RunData) -> FigureSpec | None:
    """Loss, margins, accuracies and weights over optimizer steps, across phases."""
    steps, phases = training_steps(run)
    panels = [panel for title, names in TRAINING_PANELS if (panel := curve_panel(steps, title, names))]
    if not panels:
        return None
    caption = (
        "Optimizer steps of all training phases in sequence; W is the warm-up, numbers are iterations, thin lines are "
        "raw values. Each iteration trains on other pairs, so a curve may jump where one begins. Margins and "
        "accuracies that rise within a phase show that the policy learns its pairs; a log-probability of chosen "
        "responses that falls with that of rejected ones shows that it unlearns both."
    )
    return FigureSpec("training", "Training", caption, lambda theme: plots.training_curves(panels, phases, theme))


def training_steps(run: RunData) -> tuple[Steps, list[tuple[float, str]]]:
    """Training lines on one axis, with the phases in sequence, and the step at which each phase begins.

    A step that a resumed run repeated counts once, with its last values.
    """
    by_phase: dict[str, dict[int, Row]] = defaultdict(dict)
    for line in run.metrics:
        if line.get("step") is not None and "loss" in line:
            by_phase[line["phase"]][line["step"]] = line
    steps: Steps = []
    starts: list[tuple[float, str]] = []
    for phase, lines in by_phase.items():
        offset = steps[-1][0] if steps else 0.0
        steps += [(offset + step, lines[step]) for step in sorted(lines)]
        starts.append((offset + min(lines), "W" if phase == "warmup" else phase.split("/")[1]))
    return steps, starts


def curve_panel(steps: Steps, title: str, names: Sequence[tuple[str, str, str | None]]) -> plots.CurvePanel | None:
    lines = []
    for name, label, role in names:
        points = [(x, value) for x, line in steps if (value := number(line.get(name))) is not None]
        if points:
            x, y = np.array(points, dtype=np.float64).T
            lines.append(plots.Line(label, x, y, role))
    return plots.CurvePanel(title, lines) if lines else None


def time_figure(run: RunData) -> FigureSpec | None:
    """Seconds by kind of work, split by iteration."""
    if not run.seconds():
        return None
    groups = [None, *sorted({t for _, t in map(kind_and_iteration, run.phases) if t is not None})]
    spent: dict[str, FloatArray] = defaultdict(lambda: np.zeros(len(groups)))
    for phase, state in run.phases.items():
        kind, t = kind_and_iteration(phase)
        spent[kind][groups.index(t)] += state.get("seconds", 0.0)
    rows = ranked(spent)
    labels = ["outside iterations" if t is None else f"iteration {t}" for t in groups]
    caption = f"Wall time of every finished phase by kind of work.{fresh_share(spent)} {last_attempts(run)}".strip()
    return FigureSpec("time", "Where the time went", caption, lambda theme: plots.phase_seconds(rows, labels, theme))


def fresh_share(spent: dict[str, FloatArray]) -> str:
    """A sentence on the time that selection can save; empty if nothing was generated."""
    seconds = {kind: float(row.sum()) for kind, row in spent.items()}
    fresh = sum(seconds.get(kind, 0.0) for kind in ("generate", "annotate"))
    if not fresh:
        return ""
    share = fresh / sum(seconds.values())
    return f" Generation and annotation, which selection reduces, took {share:.0%} (MetaAPO paper: Appendix C.7)."


def kind_and_iteration(phase: str) -> tuple[str, int | None]:
    if phase.startswith("iterations/"):
        _, t, kind = phase.split("/", 2)
        return kind, int(t)
    if phase.startswith("evaluate/"):
        count = phase.removeprefix("evaluate/iteration-")
        return "evaluate", int(count) if count.isdigit() else None
    return phase, None


def ranked(spent: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Kinds from the longest to the shortest; those below 1 % of the time are merged into one row."""
    rows = dict(sorted(spent.items(), key=lambda item: -item[1].sum()))
    least = 0.01 * sum(float(row.sum()) for row in rows.values())
    small = [kind for kind, row in rows.items() if row.sum() < least]
    if len(small) < 2:
        return rows
    rest = np.sum([rows.pop(kind) for kind in small], axis=0)
    return rows | {"everything else": rest}
