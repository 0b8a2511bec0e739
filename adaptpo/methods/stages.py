"""Methods of the alignment-stages paper, and methods that act on its measurement."""

from __future__ import annotations

from dataclasses import replace

from adaptpo.choices.learners.meta_learner import MetaLearner
from adaptpo.choices.method import Method
from adaptpo.choices.objectives import DPO, Objective, SimPO
from adaptpo.choices.pairing import Offline, OfflineAndOnline, Online, Pairing, PairingByStage, PairingSchedule
from adaptpo.choices.selection import SelectAll, SelectByStage
from adaptpo.choices.weighting import StageBlend, Uniform
from adaptpo.config.numbers import Count, LearningRate, Responses
from adaptpo.methods.metaapo import trusting
from adaptpo.methods.named import named


def scheduled(objective: Objective, measured: bool, *plan: Pairing) -> Method:
    """Pairings that divide a run's iterations evenly; each iteration's reference is the policy that started it."""
    return Method(SelectAll(), PairingSchedule(plan, measured), objective, Uniform(), reference="previous")


@named
def off_off(objective: Objective = DPO(), measured: bool = False) -> Method:  # noqa: B008
    """Offline pairs in both halves of the iterations.

    Paper: the alignment-stages paper, Tables 1 and 3 (DPO) and 5 (SLiC-HF), "PC_off, PC_off".
    Deviation: each iteration has its own part of the data, and offline pairs keep the labels of the data.
    """
    return scheduled(objective, measured, Offline(), Offline())


@named
def off_on(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 2,
    measured: bool = False,
) -> Method:
    """Offline pairs in the first half of the iterations, the policy's own in the second.

    Paper: the alignment-stages paper, Tables 1 and 3 (DPO) and 5 (SLiC-HF), "PC_off, PC_on".
    Deviation: each iteration has its own part of the data, and offline pairs keep the labels of the data.
    """
    return scheduled(objective, measured, Offline(), Online(num_generations))


@named
def on_off(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 2,
    measured: bool = False,
) -> Method:
    """The policy's own pairs in the first half of the iterations, offline ones in the second.

    Paper: the alignment-stages paper, Tables 1 and 3 (DPO) and 5 (SLiC-HF), "PC_on, PC_off".
    Deviation: each iteration has its own part of the data, and offline pairs keep the labels of the data.
    """
    return scheduled(objective, measured, Online(num_generations), Offline())


@named
def on_on(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 2,
    measured: bool = False,
) -> Method:
    """The policy's own pairs in both halves of the iterations.

    Paper: the alignment-stages paper, Tables 1 and 3 (DPO) and 5 (SLiC-HF), "PC_on, PC_on".
    Deviation: each iteration has its own part of the data.
    """
    return scheduled(objective, measured, Online(num_generations), Online(num_generations))


@named
def two_stage(objective: Objective = DPO(), num_generations: Responses = 2) -> Method:  # noqa: B008
    """Measures the alignment stage before each iteration: offline pairs under injection, own pairs under fine-tuning.

    Paper: the alignment-stages paper, Algorithm 1.
    Deviation: an undecided measurement follows Algorithm 1's rule, V_off > V_on; the paper's own runs are fixed
    schedules, and none switches by the measurement.
    """
    return Method(SelectAll(), PairingByStage(num_generations), objective, Uniform(), reference="previous")


def boundary_measurement() -> Method:
    """The method of `adaptpo stage`: only the measurement. The objective needs no reference, and nothing is trained."""
    return replace(two_stage(SimPO()), name="boundary measurement")


@named
def stage_blend(objective: Objective = DPO(), num_generations: Responses = 8) -> Method:  # noqa: B008
    """The boundary score as the share of prompts to generate for, and as the weight of their online pair.

    Paper: none; section 7 of the alignment-stages paper leaves smooth blending to future work. `stage.groups` of the
    recipe gives each group of prompts its own score.
    """
    pairing = OfflineAndOnline(num_generations, keep_unselected=True)
    return Method(SelectByStage(), pairing, objective, StageBlend(), reference="previous")


@named
def metaapo_stage(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
) -> Method:
    """MetaAPO whose meta-learner starts from the stage: under injection, it trusts offline pairs more at first.

    Paper: none; MetaAPO (Yang et al., 2025) with the boundary score of the alignment-stages paper.
    """
    return trusting(MetaLearner(learning_rate, update_interval, stage_start=True), objective, num_generations)
