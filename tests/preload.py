"""Imported once by the process that test runs are forked from."""

import adaptpo.trainer
import adaptpo.training.phases.reward
import tests.runs
import tests.tiny  # noqa: F401
from trl import RewardTrainer  # noqa: F401
