"""Figures of the outcome: held-out reward and offline score, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptpo.report import plots
from adaptpo.report.figures import FigureSpec
from adaptpo.report.reading import RunData, Stage, finite
from adaptpo.report.visits import FloatArray


def dynamics_figure(run: RunData) -> FigureSpec | None:
    """Reward and offline score by stage, on held-out prompts if evaluated, else on an iteration's training prompts."""
    held_out = [stage for stage in run.stages if stage.value("reward/mean") is not None]
    stages = held_out or training_stages(run)
    wanted = (("reward", "Reward", "reward", "online"), ("score", "Offline score", "log sigmoid(margin)", "offline"))
    bands = [band for name, *titles in wanted if (band := band_of(stages, name, *titles))]
    if not bands:
        return None
    where = "On held-out prompts" if held_out else "On the training prompts of each iteration (no held-out evaluation)"
    caption = (
        f"{where}: mean with a band of one standard deviation. Mirrors Figure 2 (left) of the MetaAPO paper: look for "
        "a reward that rises while its band narrows, and for a dip in the offline score that later recovers."
    )
    labels = [stage.label for stage in stages]
    return FigureSpec(
        "dynamics", "Reward and offline score", caption, lambda theme: plots.dynamics(labels, bands, theme)
    )


def training_stages(run: RunData) -> list[Stage]:
    stages = []
    for t in run.iterations:
        scores = run.table(f"iterations/{t}/scores/*.parquet", "score")
        rewards = run.table(f"iterations/{t}/annotations/*.parquet", "reward")
        if scores or rewards:
            stages.append(Stage(f"iteration-{t}", scores | rewards))
    return stages


def band_of(stages: Sequence[Stage], name: str, title: str, axis: str, role: str) -> plots.Band | None:
    mean, std = values(stages, f"{name}/mean"), values(stages, f"{name}/std")
    return plots.Band(title, axis, role, mean, std) if np.isfinite(mean).any() else None


def values(stages: Sequence[Stage], name: str) -> FloatArray:
    return np.array([stage.value(name) for stage in stages], dtype=np.float64)


def reward_figure(run: RunData) -> FigureSpec | None:
    """Held-out reward distributions of the first and the last stage."""
    known = [(stage.label, rewards) for stage in run.stages if len(rewards := finite(stage.table, "reward")) > 1]
    if not known:
        return None
    ends = [known[0], known[-1]] if len(known) > 1 else known
    distributions = [(label, role, rewards) for (label, rewards), role in zip(ends, ("before", "online"), strict=False)]
    caption = (
        "Kernel density of the rewards of held-out responses, with dashed lines at the means. Mirrors Figure 2 "
        "(right), with the run's own annotator instead of an independent reward model: look for the whole curve moving "
        "right, not only its tail."
    )
    return FigureSpec(
        "rewards",
        "Held-out rewards, start and end",
        caption,
        lambda theme: plots.reward_distributions(distributions, theme),
    )
