"""The phases of an iteration, by what the method trains on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from adaptpo.choices.policy_update import PPO, GroupPolicyGradient, PolicyTrainer
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases.annotate import annotate_responses
from adaptpo.pipeline.phases.features import compute_feature
from adaptpo.pipeline.phases.generate import generate_responses
from adaptpo.pipeline.phases.grpo import train_on_groups
from adaptpo.pipeline.phases.pair import build_pairs
from adaptpo.pipeline.phases.ppo import keep_rollouts, train_on_rollouts
from adaptpo.pipeline.phases.reference import keep_iteration_reference
from adaptpo.pipeline.phases.score import score_offline
from adaptpo.pipeline.phases.select import select_prompts
from adaptpo.pipeline.phases.train import train_iteration

Work = Callable[[], dict[str, Any]]
Phases = dict[str, Work]


def once(context: Context, work: Callable[[Context, int], dict[str, Any]], iteration: int) -> Work:
    """Work that rank 0 does while the other ranks wait."""
    return partial(context.ranks.on_first, partial(work, context, iteration))


def selecting(context: Context, iteration: int) -> Phases:
    phases: Phases = {}
    method = context.method_in(iteration)
    if method.selection.needs_margins:
        phases["score"] = partial(score_offline, context, iteration)
    for feature in method.features():
        if feature.follows_policy:
            phases[f"features/{feature.name}"] = partial(compute_feature, context, feature, iteration)
    if method.pairing.num_generations:
        phases["select"] = once(context, select_prompts, iteration)
    return phases


def sampling(context: Context, iteration: int) -> Phases:
    phases = selecting(context, iteration)
    if context.method_in(iteration).pairing.num_generations:
        phases["generate"] = partial(generate_responses, context, iteration)
        phases["annotate"] = partial(annotate_responses, context, iteration)
    return phases


def on_pairs(context: Context, iteration: int, trainer: PolicyTrainer) -> Phases:
    phases = sampling(context, iteration)
    phases["pair"] = once(context, build_pairs, iteration)
    if context.keeps_reference:
        phases["reference"] = partial(keep_iteration_reference, context, iteration)
    return phases | {"train": partial(train_iteration, context, iteration)}


def on_rollouts(context: Context, iteration: int, trainer: PPO) -> Phases:
    return sampling(context, iteration) | {
        "rollouts": partial(keep_rollouts, context, iteration),
        "train": partial(train_on_rollouts, context, iteration, trainer),
    }


def on_groups(context: Context, iteration: int, trainer: GroupPolicyGradient) -> Phases:
    """The phases for TRL's trainer, which generates and annotates while it trains."""
    return selecting(context, iteration) | {"train": partial(train_on_groups, context, iteration, trainer)}


PHASES: dict[str, Callable[[Context, int, Any], Phases]] = {
    "pairs": on_pairs,
    "rollouts": on_rollouts,
    "groups": on_groups,
}
"""The phases of an iteration, by what the policy's trainer trains on."""


def iteration_phases(context: Context, iteration: int) -> Phases:
    """The work of an iteration by phase name, in order."""
    trainer = context.method.trainer
    return PHASES[trainer.trains_on](context, iteration, trainer)
