"""MetaPO: weights learned from each pair's training history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from adaptpo.choices.hold_out import Split, Validation
from adaptpo.choices.learners.base import Estimator
from adaptpo.choices.learners.temporal import FeatureSet, TemporalLearner, ValidationGoal
from adaptpo.choices.learners.temporal.cadence import Cadence
from adaptpo.choices.learners.temporal.features import BASE, Centre
from adaptpo.choices.learners.temporal.networks import Architecture
from adaptpo.choices.learners.temporal.temporal_learner import Divergence
from adaptpo.choices.method import Method
from adaptpo.choices.objectives import DPO, Objective
from adaptpo.choices.pairing import Offline
from adaptpo.choices.selection import SelectNone
from adaptpo.choices.weighting import Temporal
from adaptpo.config.numbers import (
    Count,
    Decay,
    Fraction,
    InnerFraction,
    LargestWeight,
    LearningRate,
    NonNegative,
    Responses,
)
from adaptpo.methods.metaapo import metaapo
from adaptpo.methods.named import named
from adaptpo.methods.online import iterative_dpo

EPOCHS = 3
"""Those of the paper's Table 22. A pair trained on once has no history."""


@named
def metapo(
    objective: Objective = DPO(),  # noqa: B008
    meta_interval: Count | InnerFraction | None = 0.02,
    meta_learning_rate: LearningRate = 0.03,
    margin_weight: NonNegative = 0.1,
    entropy: NonNegative = 0.0,
    features: Sequence[str] = BASE,
    decay: Decay = 0.9,
    centre: Centre = "mean",
    architecture: Architecture = "linear",
    estimator: Estimator = "central",
    validation_share: InnerFraction = 0.03,
    validation_split: Split = "stratified",
    divergence: Divergence = "k3",
    dense_start: Fraction = 0.0,
    normalize_weights: bool = False,
    max_weight: LargestWeight | None = None,
    validation_batch: Count | Literal["step"] | None = "step",
) -> Method:
    """MetaPO: a meta-learner trained on held-out pairs computes each pair's weight from its training history.

    Paper: Li et al., 2026 (MetaPO), Algorithm 1, Eqs. 3-13.
    Deviations: the meta-learner takes Adam steps (the paper names no optimizer) of 0.03 (1e-4), in every fiftieth of
    the steps (every 100 steps); with the paper's values weights stay at 1. An update sees as many held-out pairs as a
    step trains on, not all; difficulty is the initial model's preference, because its loss is the same for all pairs;
    the divergence is estimated from the stored log-probs of the data's tokens (`divergence: exact`: over the whole
    vocabulary).

    `meta_interval`: optimizer steps between updates, or their share of an iteration's steps if below 1. `dense_start`:
    share of the steps, at the start, in which each updates. `normalize_weights`: weights of mean 1. `validation_batch`:
    held-out pairs in an update, null for all of them. The paper's values are `meta_interval: 100` and
    `meta_learning_rate: 1e-4`, and the defaults of all other settings that it names.
    """
    learner = TemporalLearner(
        features=FeatureSet(tuple(features), decay, centre),
        architecture=architecture,
        learning_rate=meta_learning_rate,
        cadence=Cadence(meta_interval, dense_start),
        goal=ValidationGoal(margin_weight),
        entropy=entropy,
        estimator=estimator,
        divergence=divergence,
        normalize=normalize_weights,
        max_weight=max_weight,
    )
    validation = Validation(validation_share, validation_split, validation_batch)
    return Method(SelectNone(), Offline(), objective, Temporal(learner), num_train_epochs=EPOCHS, validation=validation)


@named
def iterative_dpo_metapo(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    meta_interval: Count | InnerFraction | None = 0.02,
    meta_learning_rate: LearningRate = 0.03,
) -> Method:
    """Iterative DPO whose fresh pairs have MetaPO's weights, learned on held-out offline pairs.

    Paper: Li et al., 2026 (MetaPO), Table 21.
    Deviation: a fresh pair has a history only if it is trained on for more than one epoch.
    """
    method = iterative_dpo(objective, num_generations)
    weighting = metapo(objective, meta_interval, meta_learning_rate).weighting
    return replace(method, weighting=weighting, num_train_epochs=EPOCHS, validation=Validation())


@named
def metaapo_metapo(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
    meta_interval: Count | InnerFraction | None = 0.02,
    meta_learning_rate: LearningRate = 0.03,
) -> Method:
    """MetaAPO whose blend of offline and online pair is multiplied by MetaPO's weight of each.

    Paper: none; MetaAPO (Yang et al., 2025) and MetaPO (Li et al., 2026) combined.
    """
    method = metaapo(objective, num_generations, learning_rate, update_interval)
    temporal = TemporalLearner(learning_rate=meta_learning_rate, cadence=Cadence(meta_interval))
    weighting = Temporal(temporal, method.weighting)
    return replace(method, weighting=weighting, num_train_epochs=EPOCHS, validation=Validation())
