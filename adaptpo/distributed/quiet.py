"""Silence the libraries below: messages that do not help the reader of a run, and reports of use over the network."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Progress bars and messages of our own stay; warnings of the libraries below go, errors stay."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|accelerate|trl|peft")


def turn_off_telemetry() -> None:
    """For this process and its children. Call before a TRL trainer is made, or Ray started."""
    from huggingface_hub import constants

    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    constants.HF_HUB_DISABLE_TELEMETRY = True  # The variable was read when the module was imported.
