"""Measured throughput: the file that a GPU benchmark writes and `adaptpo plan --measured FILE` reads.

A benchmark writes it with `throughput.model_dump_json(indent=1)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt
from pydantic import ConfigDict, ValidationError
from pydantic.types import AllowInfNan

from adaptpo.config.base import Settings, explain
from adaptpo.config.numbers import Count, Positive, PositiveFraction
from adaptpo.errors import ConfigError

Flops = Annotated[float, Gt(0), AllowInfNan(False)]


class Measurement(Settings):
    """A part of the file; types are strict: a number is no text."""

    model_config = ConfigDict(strict=True)


class PassesMeasured(Measurement):
    """Passes of whole batches through the model on one GPU.

    Tokens count as computed: a prompt that its responses share counts once, padding does not count
    (`adaptpo.plan.arithmetic.shared_prompt` for groups, `separate_rows` for rows).
    """

    tokens_per_second: Positive
    """Tokens per second of one GPU; a training pass counts each token once, not once per direction."""
    share_of_peak: PositiveFraction
    """FLOP/s of one GPU over `peak_flops`. The FLOPs are `adaptpo.plan.arithmetic.forward_operations`, in training
    times `training_multiple`, which counts recomputed activations."""


class GenerationMeasured(Measurement):
    """Sampling on one GPU, prefill included."""

    engine: Literal["transformers", "vllm"]
    """What sampled: adaptpo's own sampler, or vLLM."""
    tokens_per_second: Positive
    """Response tokens per second of one GPU, over the whole job: first request to last response. Prompt tokens do not
    count, and neither do rows that run on after their response has ended."""


class Throughput(Measurement):
    """What one GPU did with one model. Parts that were not measured are null."""

    device: str
    """The GPU's name, as `torch.cuda.get_device_name` gives it."""
    shape: str
    """The model's name, such as `1b`."""
    parameters: Count
    """All parameters of the model, embeddings included."""
    dtype: Literal["bfloat16", "float16", "float32"]
    """The dtype of the matrix products."""
    peak_flops: Flops
    """Dense peak of one GPU in this dtype, in FLOP/s, from its data sheet (`adaptpo.plan.machines.ACCELERATORS`)."""
    training: PassesMeasured | None = None
    """Forward, backward and optimizer steps."""
    scoring: PassesMeasured | None = None
    """Log-probs without gradients."""
    annotation: PassesMeasured | None = None
    """Passes of a reward model; tokens count after sharing the prompt, if it was shared."""
    generation: GenerationMeasured | None = None
    """Sampling."""


def read_throughput(path: Path) -> Throughput:
    """Reads the file of a benchmark. Raises ConfigError that names the wrong key."""
    try:
        return Throughput.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--measured: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--measured: {path} is no text file; give the JSON file of a GPU benchmark") from error
    except ValidationError as error:
        raise ConfigError(f"--measured {path}: {explain(error, Throughput)}") from error
