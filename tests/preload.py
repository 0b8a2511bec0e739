"""Imported once by the process that test runs are forked from."""

import gc

from trl import RewardTrainer

from adaptpo.pipeline.phases import reward
from tests import runs, tiny

PRELOADED = (RewardTrainer, reward, runs, tiny)
gc.collect()
gc.freeze()  # As in tests/conftest.py.
