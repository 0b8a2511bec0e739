"""Silences the underlying libraries: messages that do not help the user of a run, and telemetry."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Hides progress bars and warnings of the underlying libraries. Their errors and our own messages stay visible."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|accelerate|trl|peft")


def turn_off_telemetry() -> None:
    """Turns telemetry off for this process and its children. Call before creating a TRL trainer or starting Ray."""
    from huggingface_hub import constants

    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    constants.HF_HUB_DISABLE_TELEMETRY = True  # The variable was read when the module was imported.
