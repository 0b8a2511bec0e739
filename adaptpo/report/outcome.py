"""Figures of the outcome: held-out reward and offline score, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptpo.report import plots
from adaptpo.report.figures import FigureSpec
from adaptpo.report.reading import RunData, Stage, finite
from adaptpo.report.visits import FloatArray

MEANS = {
    "Reward": "Rewards come from the run's own annotator, on its own scale; another judge may disagree.",
    "Offline score": (
        "The offline score is at most 0; it rises where the policy moves towards the data's preferences, and falls "
        "where it moves away from them."
    ),
}
LOW, HIGH = 0.1, 0.9
"""The band's quantiles. A score's mean plus its standard deviation would pass 0, which no score does."""


def dynamics_figure(run: RunData) -> FigureSpec | None:
    """Reward and offline score by stage, on held-out prompts if evaluated, else on an iteration's training prompts."""
    held_out = [stage for stage in run.stages if stage.value("reward/mean") is not None]
    stages = held_out or training_stages(run)
    wanted = (("reward", "Reward", "reward", "online"), ("score", "Offline score", "log sigmoid(margin)", "offline"))
    bands = [band for name, *titles in wanted if (band := band_of(stages, name, *titles))]
    if not bands:
        return None
    where = "On held-out prompts" if held_out else "On the training prompts of each iteration (no held-out evaluation)"
    caption = " ".join(
        (
            f"{where}: means, with bands that hold the middle 80 % of the values.",
            *(MEANS[band.title] for band in bands),
            "Compare Figure 2 (left) of the MetaAPO paper.",
        )
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
    mean = np.array([stage.value(f"{name}/mean") for stage in stages], dtype=np.float64)
    low, high = np.array([quantiles(stage, name) for stage in stages]).reshape(-1, 2).T
    return plots.Band(title, axis, role, mean, low, high) if np.isfinite(mean).any() else None


def quantiles(stage: Stage, name: str) -> FloatArray:
    """`LOW` and `HIGH` of the saved values, [2]; NaN if there are none, which leaves a gap in the band."""
    found = finite(stage.table, name)
    return np.quantile(found, [LOW, HIGH]) if len(found) else np.full(2, np.nan)


def reward_figure(run: RunData) -> FigureSpec | None:
    """Held-out reward distributions of the first and the last stage."""
    known = [(stage.label, rewards) for stage in run.stages if len(rewards := finite(stage.table, "reward")) > 1]
    if not known:
        return None
    ends = [known[0], known[-1]] if len(known) > 1 else known
    distributions = [(label, role, rewards) for (label, rewards), role in zip(ends, ("before", "online"), strict=False)]
    caption = (
        "Kernel density of the rewards of held-out responses, with dashed lines at the means. A shift of the whole "
        "curve means that most prompts changed; a shift of one side means that only some did. Compare Figure 2 (right) "
        "of the MetaAPO paper, which uses an independent reward model; these rewards come from the run's own annotator."
    )
    return FigureSpec(
        "rewards",
        "Held-out rewards, start and end",
        caption,
        lambda theme: plots.reward_distributions(distributions, theme),
    )
