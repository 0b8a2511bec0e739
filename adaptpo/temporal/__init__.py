"""MetaPO: weights learned from each pair's training history."""

from adaptpo.temporal.features import FeatureSet
from adaptpo.temporal.goal import ValidationGoal
from adaptpo.temporal.learner import TemporalLearner

__all__ = ["FeatureSet", "TemporalLearner", "ValidationGoal"]
