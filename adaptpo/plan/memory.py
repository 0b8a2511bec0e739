"""Memory of one accelerator at the peak of each kind of work, and disk space, each with its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaptpo.plan.arithmetic import activation_bytes
from adaptpo.plan.decoding import GB, sampler_of
from adaptpo.plan.job import Job
from adaptpo.plan.machines import Machine
from adaptpo.plan.phases import parts_of, phases

TOKEN_BYTES = 8
"""Bytes per token on disk before compression: an id of 4 bytes and about as many bytes of text."""
ADAPTER_BYTES = 4


@dataclass(frozen=True)
class Line:
    """A quantity in GB with the formula it comes from."""

    name: str
    gigabytes: float
    formula: str


@dataclass(frozen=True)
class Part:
    """A part of the memory, in bytes."""

    name: str
    size: float

    def __str__(self) -> str:
        return f"{self.size / GB:.3g} GB {self.name}"


def total(name: str, parts: Sequence[Part]) -> Line:
    kept = [part for part in parts if part.size]
    return Line(name, sum(part.size for part in kept) / GB, " + ".join(map(str, kept)))


def memory(job: Job, machine: Machine) -> list[Line]:
    """One model is in memory at a time, except for a reference model that training needs as well."""
    lines = [total("training, not sharded", unsharded(job, machine.count))]
    if machine.count > 1:
        lines.append(total(f"training, sharded over {machine.count}", sharded(job, machine.count)))
    lines += reward_training(job, machine)
    lines.append(total("passes without gradients", [Part("weights", job.reading_bytes)]))
    if job.annotator.shape is not None:
        size = job.annotator.shape.parameters * job.annotator.number_bytes
        lines.append(total("annotation", [Part(f"weights in {8 * job.annotator.number_bytes} bits", size)]))
    return [*lines, *generation(job, machine)]


def reward_training(job: Job, machine: Machine) -> list[Line]:
    """`reward: train` trains all weights of its model in float32, also where the policy has an adapter."""
    if not job.annotator.trained or job.annotator.shape is None:
        return []
    size, name = 4.0 * job.annotator.shape.parameters, "reward model's training"
    parts = [Part("weights", size), Part("gradients", size), Part("Adam's two moments", 2 * size)]
    shares = [Part(f"{part.name} in {machine.count} shares", part.size / machine.count) for part in parts]
    alone = total(f"{name}, not sharded", parts)
    return [alone] if machine.count == 1 else [alone, total(f"{name}, sharded over {machine.count}", shares)]


def weights(job: Job) -> Part:
    return Part("weights", job.shape.parameters * job.weight_bytes)


def trained_bytes(job: Job) -> int:
    """Bytes of a trained weight: adapters are in float32."""
    return job.weight_bytes if job.shape.trained == job.shape.parameters else ADAPTER_BYTES


def states(job: Job) -> list[Part]:
    """Weights, gradients and Adam's moments."""
    size, width = job.shape.trained, trained_bytes(job)
    adapter = size * width if size < job.shape.parameters else 0
    moments = Part("Adam's two moments", 2 * size * width)
    return [weights(job), Part("adapter", adapter), Part("gradients", size * width), moments]


def autocast_copies(job: Job) -> Part:
    """Autocast keeps a low-precision copy of every weight matrix for the whole forward pass."""
    size = (job.shape.body + job.shape.head) * job.number_bytes
    return Part("autocast copies", size if job.mixed else 0)


def activations(job: Job) -> Part:
    tokens = job.config.max_tokens_per_batch
    kept = "recomputed" if job.recomputes else "stored"
    size = activation_bytes(job.shape, tokens, job.number_bytes, job.recomputes)
    return Part(f"activations of {tokens:,} tokens, {kept}", size)


def unsharded(job: Job, count: int) -> list[Part]:
    """One process, or DDP, whose buckets hold the gradients a second time."""
    buckets = job.shape.trained * trained_bytes(job) if count > 1 else 0
    reference = job.shape.parameters * job.weight_bytes if job.second_model else 0
    rest = [Part("DDP's gradient buckets", buckets), Part("reference", reference)]
    return [*states(job), *rest, autocast_copies(job), activations(job)]


def sharded(job: Job, count: int) -> list[Part]:
    """FSDP2: states in shares, embedding, head and two layers gathered, and whole gradients in float32 between the
    passes of an optimizer step."""
    shape = job.shape
    ends = shape.parameters - shape.body + (shape.head if shape.tied else 0)
    gathered = (ends + 2 * shape.body / shape.layers) * job.number_bytes
    waiting = 4 * shape.trained if job.accumulates else 0
    reference = shape.parameters * job.weight_bytes / count if job.second_model else 0
    shares = [Part(f"{part.name} in {count} shares", part.size / count) for part in states(job)]
    return [
        *shares,
        Part("reference", reference),
        Part("gathered", gathered),
        Part("gradients that accumulate", waiting),
        activations(job),
    ]


def generation(job: Job, machine: Machine) -> list[Line]:
    phase = next((phase for phase in phases(job) if phase.name == "generate"), None)
    if phase is None:
        return []
    sampler = sampler_of(job, phase, machine)
    cache = sampler.rows * sampler.row_bytes / sampler.accelerators
    kind = "reserved for" if sampler.engine == "transformers" else "cache of"
    name = f"{kind} {sampler.rows} sequences ({sampler.row_bytes / 1e6:,.0f} MB each)"
    held = Part("weights", sampler.weight_bytes / sampler.accelerators)
    return [total("generation", [held, Part(name, cache)])]


def disk(job: Job) -> list[Line]:
    """Disk space at the end of the run, and the additional space during training."""
    shape, width = job.shape, job.weight_bytes
    saved = shape.trained * 4 if shape.trained < shape.parameters else shape.parameters * width
    kept = 1 + job.iterations + (job.warmup_epochs > 0)
    lines = [
        Line("checkpoints and final", kept * saved / GB, f"{kept} x {saved / GB:.3g} GB"),
        Line(
            "while training", 2 * 3 * saved / GB, f"2 x 3 x {saved / GB:.3g} GB (weights, two moments; new beside old)"
        ),
    ]
    if job.annotator.trained:
        lines.append(Line("reward model", shape.parameters * 4 / GB, f"{shape.parameters:,} x 4 bytes"))
    facts = [part.data for part in parts_of(job)]
    offline = sum(one.scale * float((one.prompt + one.chosen + one.rejected).sum()) for one in facts)
    fresh = sum(phase.responses for phase in phases(job)) * job.fresh
    formula = f"({offline:,.0f} offline + {fresh:,.0f} fresh tokens) x {TOKEN_BYTES} bytes before compression"
    return [*lines, Line("data and responses", (offline + fresh) * TOKEN_BYTES / GB, formula)]
