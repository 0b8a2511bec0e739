"""MetaPO: weights learned from each pair's training history."""

from adaptpo.choices.learners.temporal.features import FeatureSet
from adaptpo.choices.learners.temporal.goal import ValidationGoal
from adaptpo.choices.learners.temporal.temporal_learner import TemporalLearner

__all__ = ["FeatureSet", "TemporalLearner", "ValidationGoal"]
