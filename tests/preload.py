"""Imported once by the process that test runs are forked from."""

import deepspeed
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from trl import GRPOTrainer, RewardTrainer

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.pipeline.phases import reward
from tests import quick, runs, tiny
from tests.campaign import commands

PRELOADED = (AlignmentConfig, AlignmentTrainer, GRPOTrainer, RewardTrainer, commands, deepspeed, reward, runs, tiny)
"""All that a run imports; accelerate imports DeepSpeed where it is installed."""
get_checkpoint_conversion_mapping("llama")  # Compiles the patterns of all models, once.
quick.wait_for_no_disk()
quick.leave_out_of_collections()
