"""The libraries below say a lot that is of no use to whoever watches a run."""

from __future__ import annotations

import logging
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
