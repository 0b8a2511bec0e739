"""The phases of a run as work: passes over tokens, and numbers of responses and annotations.

The list follows `adaptpo.pipeline.loop` and `adaptpo.pipeline.iteration`; phases with the same name are summed
over iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from adaptpo.choices.learners.pair_features import PairFeature
from adaptpo.plan.arithmetic import Passes, separate_rows, training_multiple
from adaptpo.plan.choices import FRESH, Contribution, Sides, contribution
from adaptpo.plan.job import OFFLINE_PAIR, Job

Kind = Literal["train", "forward", "generate", "annotate"]
STAGE_SIDES = (FRESH, FRESH, *OFFLINE_PAIR)
STAGE_MATCHES = 4


@dataclass(frozen=True)
class Phase:
    """`passes` through the policy (through the annotator if `kind` is `annotate`), each worth `multiple` forward
    passes. `prompts`: those that get `responses`. `formulas` show how its tokens are counted, one for each time that
    the phase runs."""

    name: str
    kind: Kind
    passes: Passes
    formulas: tuple[str, ...]
    multiple: float = 1.0
    prompts: float = 0.0
    responses: float = 0.0
    annotations: float = 0.0
    calls: float = 0.0


def phases(job: Job) -> list[Phase]:
    """The phases in the order of a run, without those that have no work."""
    iterations = (p for number in range(job.iterations) for part in parts_of(job) for p in iteration(part, number))
    before = opening(job) if job.has_pairs and job.config.branch_of is None else ()
    every = [*before, *iterations, *evaluation(job)]
    merged: dict[str, Phase] = {}
    for phase in every:
        merged[phase.name] = together(merged[phase.name], phase) if phase.name in merged else phase
    return [phase for phase in merged.values() if phase.passes.tokens or phase.annotations]


def parts_of(job: Job) -> list[Job]:
    """The prompts with an offline pair and, if there are some, those without one."""
    return [job, *([job.alone] if job.alone else [])]


def together(one: Phase, other: Phase) -> Phase:
    return replace(
        one,
        passes=one.passes + other.passes,
        formulas=one.formulas + other.formulas,
        prompts=one.prompts + other.prompts,
        responses=one.responses + other.responses,
        annotations=one.annotations + other.annotations,
        calls=one.calls + other.calls,
    )


# One phase


def forward(job: Job, name: str, prompts: float, sides: Sides = OFFLINE_PAIR) -> Phase:
    return Phase(name, "forward", job.groups(prompts, sides), (job.told(prompts, sides),))


def training(job: Job, name: str, prompts: float, sides: Sides, epochs: float = 1.0) -> Phase:
    """Training; the tokens of every epoch count."""
    told = job.told(prompts, sides) + ("" if epochs == 1 else f" x {epochs:g} epochs")
    passes = job.groups(prompts, sides) * epochs
    return Phase(name, "train", passes, (told,), training_multiple(job.shape, job.recomputes))


def generation(job: Job, name: str, prompts: float, count: int) -> Phase:
    sides = (FRESH,) * count
    passes, told = job.groups(prompts, sides), (job.told(prompts, sides),)
    return Phase(name, "generate", passes, told, prompts=prompts, responses=prompts * count)


def annotation(job: Job, name: str, prompts: float, sides: Sides, matches: int | None = None) -> Phase:
    """Annotation; `calls` is one for each response, or one for each comparison, of prompt and both responses.
    `matches`: pairs of responses that are compared, each in both orders; None: those of a ranking."""
    calls = job.annotator.calls(len(sides), matches)
    told = f"{prompts:,.0f} prompts x {len(sides)} responses"
    if job.annotator.opponents is None:
        passes = replace(job.groups(prompts, sides), logits=0.0)
    else:
        both = np.asarray(2 * sum(job.lengths(side) for side in sides) / len(sides))
        passes = separate_rows(job.data.prompt, [both]) * (prompts / job.data.sampled * calls)
        told += f", {calls} comparisons each"
    return Phase(name, "annotate", passes, (told,), annotations=prompts * len(sides), calls=prompts * calls)


# The opening


def opening(job: Job) -> Iterator[Phase]:
    method = job.method
    if job.annotator.trained:
        yield reward_training(job)
    uses_pairs = method.trainer.uses_pairs or job.warmup_epochs > 0 or method.selection.needs_margins
    if method.objective.needs_reference and uses_pairs:
        yield forward(job, "reference", job.data.pairs)
    yield from filtering(job)
    for feature in method.features():
        if not feature.follows_policy:
            yield feature_phase(job, feature, job.kept)
    if job.warmup_epochs:
        yield training(job, "warmup", job.kept, OFFLINE_PAIR, job.warmup_epochs)


def reward_training(job: Job) -> Phase:
    """Training of a reward model by TRL's trainer, with a row for each response."""
    epochs = float(job.config.reward_training.get("num_train_epochs", 1))
    rows = separate_rows(job.data.prompt, [job.data.chosen, job.data.rejected]) * (job.data.scale * epochs)
    recomputes = bool(job.config.training.get("gradient_checkpointing", False))
    lengths = [job.lengths(side).mean() for side in OFFLINE_PAIR]
    told = f"{job.data.pairs:,} x (2 x {job.data.prompt.mean():.1f} prompt + {sum(lengths):.1f} chosen and rejected)"
    told += "" if epochs == 1 else f" x {epochs:g} epochs"
    return Phase("reward", "train", rows, (told,), 4.0 if recomputes else 3.0)


def filtering(job: Job) -> Iterator[Phase]:
    needs, pairs = job.method.filter.needs, job.data.pairs
    if "perplexity" in needs:
        yield forward(job, "filter: perplexity", pairs)
    if needs & {"margin", "held_out_margin"}:
        yield training(job, "filter: proxy", pairs, OFFLINE_PAIR)
        yield forward(job, "filter: margins", pairs)
    if "reward_gap" in needs:
        yield annotation(job, "filter: rewards", pairs, OFFLINE_PAIR)


def feature_phase(job: Job, feature: PairFeature, prompts: float) -> Phase:
    return forward(job, f"features/{feature.name}", prompts)


# An iteration


def iteration(job: Job, number: int) -> Iterator[Phase]:
    method = job.method_in(number)
    if job.has_pairs:
        yield from measuring(job, number)
    selected = job.part * job.expected_share(number).value
    if count := method.pairing.num_generations:
        ranked = (FRESH,) * count + (OFFLINE_PAIR if method.pairing.ranks_offline and job.has_pairs else ())
        yield generation(job, "generate", selected, count)
        yield annotation(job, "annotate", selected, ranked)
    yield from TRAINING[method.trainer.trains_on](job, number, selected)


def measuring(job: Job, number: int) -> Iterator[Phase]:
    """What an iteration measures on offline pairs."""
    method = job.method_in(number)
    if job.method.needs_stage(number):
        prompts = min(job.config.stage.prompts, job.part)
        yield generation(job, "stage: generate", prompts, 2)
        yield annotation(job, "stage: annotate", prompts, STAGE_SIDES, STAGE_MATCHES)
    if method.selection.needs_margins:
        yield forward(job, "score", job.part)
    for feature in method.features():
        if feature.follows_policy:
            yield feature_phase(job, feature, job.part)


def on_pairs(job: Job, number: int, selected: float) -> Iterator[Phase]:
    pairing = job.method_in(number).pairing
    for prompts, made in (
        (selected, contribution(pairing, selected=True, has_pair=job.has_pairs)),
        (job.part - selected, contribution(pairing, selected=False, has_pair=job.has_pairs)),
    ):
        if prompts and made.group:
            yield from pair_references(job, prompts, made)
            yield training(job, "train", prompts, made.group, job.epochs)
            yield from live_reference(job, prompts, made)


def pair_references(job: Job, prompts: float, made: Contribution) -> Iterator[Phase]:
    if job.method.objective.needs_reference and job.reference != "synced":
        for sides in made.pairs if job.reference == "previous" else made.new_pairs:
            yield forward(job, "pair reference", prompts, sides)


def live_reference(job: Job, prompts: float, made: Contribution) -> Iterator[Phase]:
    """Extra work of a reference in training: its forward pass in every step and, for the exact divergence, the policy's
    logits again."""
    if job.method.objective.needs_reference and job.reference == "synced":
        phase = forward(job, "reference in training", prompts, made.group)
        yield replace(phase, passes=phase.passes * job.epochs)
    if "divergence" in job.method.weighting.measures:
        phase = forward(job, "reference in training", prompts, made.group)
        passes = replace(phase.passes, logits=2 * phase.passes.logits) * job.epochs
        yield replace(phase, passes=passes)


def on_rollouts(job: Job, number: int, selected: float) -> Iterator[Phase]:
    """PPO: log-probs of policy and reference and the critic's values, then training of both models."""
    trainer, sides = job.method.trainer, (FRESH,) * job.method.pairing.num_generations
    for _ in ("old", "reference", "values"):
        yield forward(job, "rollouts", selected, sides)
    epochs = float(job.config.training.get("num_train_epochs", trainer.epochs))
    for _ in ("policy", "critic"):
        yield training(job, "train", selected, sides, epochs)


def on_groups(job: Job, number: int, selected: float) -> Iterator[Phase]:
    """GRPO and RLOO by TRL, with a row for each response: log-probs of the reference, then training."""
    sides = (FRESH,) * job.method.pairing.num_generations
    fresh = job.lengths(FRESH)
    rows = separate_rows(job.data.prompt, [fresh] * len(sides)) * (selected / job.data.sampled)
    passes = replace(rows, logits=selected * len(sides) * float(fresh.mean()))
    told = (f"{selected:,.0f} x {len(sides)} x ({job.data.prompt.mean():.1f} prompt + {fresh.mean():.1f} fresh)",)
    yield Phase("reference in training", "forward", passes, told)
    yield Phase("train", "train", passes * job.epochs, told, training_multiple(job.shape, job.recomputes))


TRAINING: dict[str, Callable[[Job, int, float], Iterator[Phase]]] = {
    "pairs": on_pairs,
    "rollouts": on_rollouts,
    "groups": on_groups,
}
"""Training phases by what the policy's trainer trains on."""


# Evaluations: of the initial policy, of the warm-up, and after each iteration


def evaluation(job: Job) -> Iterator[Phase]:
    if not job.eval_prompts:
        return
    before = 0 if job.config.branch_of else 1 + (job.warmup_epochs > 0)
    times = before + job.iterations
    prompts = float(job.eval_prompts * times)
    yield generation(job, "evaluate: generate", prompts, 1)
    if job.annotator.opponents:
        compared = times if job.config.branch_of else times - 1
        yield annotation(job, "evaluate: annotate", float(job.eval_prompts * compared), (FRESH, FRESH))
    else:
        yield annotation(job, "evaluate: annotate", prompts, (FRESH,))
    if job.eval_pairs:
        reference = job.eval_prompts if job.method.objective.needs_reference and not job.config.branch_of else 0
        yield forward(job, "evaluate: margins", prompts + reference)
