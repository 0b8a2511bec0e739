"""Imported once by the process that test runs are forked from."""

import deepspeed
from trl import GRPOTrainer, RewardTrainer

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.pipeline.phases import reward
from tests import quick, runs, tiny

PRELOADED = (AlignmentConfig, AlignmentTrainer, GRPOTrainer, RewardTrainer, deepspeed, reward, runs, tiny)
"""All that a run imports; accelerate imports DeepSpeed where it is installed."""
quick.wait_for_no_disk()
quick.leave_out_of_collections()
