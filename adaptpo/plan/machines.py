"""Machines, from their makers' data sheets, and the shares of them that a plan assumes.

To add an accelerator, add its line to `ACCELERATORS`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from adaptpo.config.base import Settings, explain, nearest
from adaptpo.config.numbers import Count, Positive, PositiveFraction
from adaptpo.config.strict_yaml import read_yaml
from adaptpo.errors import ConfigError


@dataclass(frozen=True)
class Accelerator:
    """Dense bfloat16 and float32 TFLOP/s, memory in GB (10^9 bytes), and memory bandwidth in GB/s of one
    accelerator."""

    tflops: float
    float32_tflops: float
    memory_gb: float
    bandwidth_gb: float


ACCELERATORS = {
    "a100": Accelerator(312, 19.5, 80, 2039),
    "h100": Accelerator(989, 67, 80, 3350),
    "h200": Accelerator(989, 67, 141, 4800),
    "l40s": Accelerator(362, 91.6, 48, 864),
    "rtx4090": Accelerator(165, 82.6, 24, 1008),
}


class Machine(Settings):
    """`count` accelerators, and the shares of their data sheet that work reaches."""

    name: str = "custom"
    """The machine's name in the plan."""
    tflops: Positive
    """Peak matrix rate of one accelerator in bfloat16, in TFLOP/s."""
    float32_tflops: Positive | None = None
    """Peak matrix rate in float32; null is `tflops`."""
    memory_gb: Positive
    """Memory of one accelerator, in GB."""
    bandwidth_gb: Positive
    """Memory bandwidth of one accelerator, in GB/s."""
    count: Count = 1
    """Number of accelerators."""
    training_utilization: PositiveFraction = 0.27
    """Share of the peak matrix rate in training."""
    rank_balance: PositiveFraction = 0.99
    """Mean over largest work of the ranks in a training step, if there are several."""
    inference_utilization: PositiveFraction = 0.4
    """Share of the peak matrix rate in passes without gradients."""
    decoding_utilization: PositiveFraction = 0.6
    """Share of the bandwidth in decoding."""
    engine: Literal["transformers", "continuous"] | None = None
    """What samples: adaptpo's own sampler, or a server with continuous batching on every accelerator; null is the
    recipe's engine."""

    def peak(self, number_bytes: int) -> float:
        """Peak FLOP/s of one accelerator with numbers of this many bytes."""
        tflops = self.tflops if number_bytes < 4 else self.float32_tflops or self.tflops
        return tflops * 1e12

    @property
    def bandwidth(self) -> float:
        """Bytes per second that one accelerator reads in decoding."""
        return self.bandwidth_gb * 1e9 * self.decoding_utilization


def read_machine(text: str) -> Machine:
    """Reads a name such as `h100x8`, a YAML file, or YAML with fields of `Machine`; `accelerator: h100` stands for its
    data sheet.

    Raises ConfigError with the nearest valid name.
    """
    if text.isalnum():
        return build_machine(named_machine(text))
    try:
        path = Path(text)
        found = read_yaml(path.read_text(encoding="utf-8") if path.is_file() else text)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--machine '{text}' is neither a file nor YAML: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--machine takes a name such as h100x8, a YAML file, or a mapping (found {text!r})")
    return build_machine(found)


def named_machine(text: str) -> dict[str, Any]:
    name, times, count = text.rpartition("x")
    if text in ACCELERATORS or not times or not count.isdigit():
        return {"accelerator": text}
    return {"accelerator": name, "count": int(count)}


def build_machine(values: dict[str, Any]) -> Machine:
    given = dict(values)
    name = given.pop("accelerator", None)
    sheet: dict[str, Any] = {}
    if name is not None:
        if name not in ACCELERATORS:
            raise ConfigError(f"unknown accelerator '{name}': {nearest(str(name), list(ACCELERATORS))}")
        sheet = asdict(ACCELERATORS[name]) | {"name": f"{name}x{given.get('count', 1)}"}
    try:
        return Machine(**(sheet | given))
    except ValidationError as error:
        raise ConfigError(explain(error, Machine, "machine")) from error
