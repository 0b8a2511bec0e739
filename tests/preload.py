"""Imported once by the process that test runs are forked from."""

from trl import RewardTrainer

from adaptpo.pipeline.phases import reward
from tests import quick, runs, tiny

PRELOADED = (RewardTrainer, reward, runs, tiny)
quick.wait_for_no_disk()
quick.leave_out_of_collections()
