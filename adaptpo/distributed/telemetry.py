"""TRL's trainers and Ray report their use over the network; runs of this library do not."""

from __future__ import annotations

import os


def turn_off_telemetry() -> None:
    """For this process and its children. Call before a TRL trainer is made, or Ray started."""
    from huggingface_hub import constants

    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    constants.HF_HUB_DISABLE_TELEMETRY = True  # The variable was read when the module was imported.
