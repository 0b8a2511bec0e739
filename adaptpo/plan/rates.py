"""The rates of a plan: those of the data sheet, times assumed shares, which measured ones replace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adaptpo.plan.job import Job
from adaptpo.plan.machines import ACCELERATORS, Machine
from adaptpo.plan.throughput import PassesMeasured, Throughput

REASONS = {
    "training_utilization": "PyTorch without compilation; measured on an H200: 29 % at 1B, 44 % at the width of 8B",
    "rank_balance": "each optimizer step is dealt to the ranks by tokens",
    "inference_utilization": "log-probs and rewards of full batches",
    "decoding_utilization": "weights and caches of large batches",
}
"""What the default of a share assumes."""
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Assumption:
    """A number that the plan did not read from recipe or data, in words, and where it comes from."""

    name: str
    value: float
    meaning: str
    source: str


@dataclass(frozen=True)
class Rate:
    """FLOP/s of all accelerators together; `told` is its arithmetic."""

    flops: float
    told: str


class Rates:
    """The rates of a machine for a job, from `measured` where it says so.

    Measured shares of the peak carry over to models of other sizes. Measured response tokens per second scale with the
    inverse of the parameters, because each decoding step reads all weights. A measurement holds for its own precision
    only.
    """

    def __init__(self, job: Job, machine: Machine, measured: Throughput | None = None) -> None:
        self.job, self.machine, self.measured = job, machine, measured
        self.training_share = self._share("training", "training_utilization", job.number_bytes)
        self.scoring_share = self._share("scoring", "inference_utilization", job.number_bytes)
        self.annotation_share = self._share("annotation", "inference_utilization", job.annotator.number_bytes)

    def training(self) -> Rate:
        several = self.machine.count > 1
        share = self.training_share.value * (self.machine.rank_balance if several else 1.0)
        told = f" x {self.machine.rank_balance:.0%} balance" if several else ""
        return self._rate(self.training_share.value, share, self.job.number_bytes, told)

    def scoring(self) -> Rate:
        return self._rate(self.scoring_share.value, self.scoring_share.value, self.job.number_bytes)

    def annotation(self) -> Rate:
        return self._rate(self.annotation_share.value, self.annotation_share.value, self.job.annotator.number_bytes)

    def sampling(self, engine: str) -> float | None:
        """Measured response tokens per second of one accelerator, for this model; None if this engine (`transformers`
        or `continuous`) was not measured on this accelerator."""
        told = self.measured
        if told is None or told.generation is None or not self._same_device or not self._holds(self.job.number_bytes):
            return None
        if (told.generation.engine == "transformers") != (engine == "transformers"):
            return None
        return told.generation.tokens_per_second * told.parameters / self.job.shape.parameters

    def assumptions(self) -> list[Assumption]:
        machine = self.machine
        found = [self.training_share, self.scoring_share, self.annotation_share]
        if machine.count > 1:
            found.append(self.assumed("rank_balance", "mean over largest work of the ranks in a training step"))
        return found

    def notes(self) -> Iterator[str]:
        """What of the measurement the plan does not use, or uses on another device."""
        if self.measured is None:
            return
        told = self.measured
        for part, width in (("training", self.job.number_bytes), ("annotation", self.job.annotator.number_bytes)):
            if getattr(told, part) is not None and not self._holds(width):
                yield f"The measured {part} is not used: it is in {told.dtype}, and the recipe's is not."
        if told.generation is not None and not self._holds(self.job.number_bytes):
            yield f"The measured response tokens per second are not used: they are in {told.dtype}."
        if not self._same_device:
            yield (
                f"Throughput was measured on {told.device} (peak {told.peak_flops / 1e12:g} TFLOP/s), another "
                "accelerator than the plan's: the shares of the peak are used, the response tokens per second are not."
            )

    @property
    def _same_device(self) -> bool:
        told = self.measured
        if told is None or not 0.99 < told.peak_flops / self.machine.peak(BYTES[told.dtype]) < 1.01:
            return False
        # An H200 has the peak of an H100, and 1.4 times its bandwidth, by which responses are decoded.
        known = [facts.bandwidth_gb for name, facts in ACCELERATORS.items() if name in told.device.lower()]
        return not known or known[0] == self.machine.bandwidth_gb

    def _holds(self, number_bytes: int) -> bool:
        """Whether the measurement is in the precision of this work."""
        return self.measured is not None and BYTES[self.measured.dtype] == number_bytes

    def _share(self, part: str, name: str, number_bytes: int) -> Assumption:
        meaning = f"of the peak in {part}"
        found: PassesMeasured | None = getattr(self.measured, part, None)
        if found is None or self.measured is None or not self._holds(number_bytes):
            return self.assumed(name, meaning)
        source = f"{self.origin}, {found.tokens_per_second:,.0f} tokens/s there"
        return Assumption(part, found.share_of_peak, meaning, source)

    @property
    def origin(self) -> str:
        """What was measured, in words."""
        told = self.measured
        return f"measured with {told.shape} in {told.dtype} on {told.device}" if told else ""

    def assumed(self, name: str, meaning: str) -> Assumption:
        """The machine's key of this name."""
        given = name in self.machine.model_fields_set
        return Assumption(name, getattr(self.machine, name), meaning, "--machine" if given else REASONS[name])

    def _rate(self, share: float, whole: float, number_bytes: int, told: str = "") -> Rate:
        peak = self.machine.peak(number_bytes)
        count = self.machine.count
        return Rate(count * peak * whole, f"{count} x {peak / 1e12:g} TFLOP/s x {share:.0%}{told}")
