"""Imported once by the process that test runs are forked from."""

from trl import RewardTrainer  # noqa: F401

import tests.runs
import tests.tiny  # noqa: F401
