"""Computes operations, seconds, memory and disk from the work of a run, each with its arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from adaptpo.choices.learners.trust import Share
from adaptpo.plan.arithmetic import (
    Decoding,
    activation_bytes,
    cache_bytes,
    concurrent_sequences,
    decoding_bytes,
    decoding_steps,
    forward_operations,
    state_bytes,
)
from adaptpo.plan.job import Job
from adaptpo.plan.machines import Machine
from adaptpo.plan.phases import Phase, parts_of, phases
from adaptpo.plan.published import beside_paper

GB = 1e9
TOKEN_BYTES = 8
"""Bytes per token on disk before compression: an id of 4 bytes and about as many bytes of text."""


@dataclass(frozen=True)
class Cost:
    """The cost of one phase. `tokens` pass through the model once for each of the `operations`' multiples; `arithmetic`
    shows how the seconds are computed."""

    name: str
    kind: str
    tokens: float
    operations: float
    seconds: float
    responses: float
    annotations: float
    calls: float
    formulas: tuple[str, ...]
    arithmetic: str


@dataclass(frozen=True)
class Line:
    """A quantity in GB with the formula it comes from."""

    name: str
    gigabytes: float
    formula: str


@dataclass(frozen=True)
class Plan:
    job: Job
    machine: Machine
    costs: list[Cost]
    memory: list[Line]
    disk: list[Line]
    shares: list[Share]
    notes: list[str]

    def total(self, name: str) -> float:
        """The sum of a field of `Cost` over all phases."""
        return sum(getattr(cost, name) for cost in self.costs)

    @property
    def hours(self) -> float:
        return self.total("seconds") / 3600


def make_plan(job: Job, machine: Machine) -> Plan:
    costs = [cost_of(job, phase, machine) for phase in phases(job)]
    return Plan(
        job=job,
        machine=machine,
        costs=costs,
        memory=memory(job, machine),
        disk=disk(job),
        shares=[job.expected_share(number) for number in range(job.iterations)],
        notes=[*notes(job, machine), *beside_paper(job, costs)],
    )


# Time


def cost_of(job: Job, phase: Phase, machine: Machine) -> Cost:
    operations = phase_operations(job, phase)
    seconds, arithmetic = seconds_of(job, phase, operations, machine)
    return Cost(
        phase.name,
        phase.kind,
        phase.passes.tokens,
        operations,
        seconds,
        phase.responses,
        phase.annotations,
        phase.calls,
        phase.formulas,
        arithmetic,
    )


def phase_operations(job: Job, phase: Phase) -> float:
    if phase.kind == "annotate" and job.annotator.shape is None:
        return 0.0
    shape = job.annotator.shape if phase.kind == "annotate" and job.annotator.shape else job.shape
    return phase.multiple * forward_operations(shape, phase.passes)


def seconds_of(job: Job, phase: Phase, operations: float, machine: Machine) -> tuple[float, str]:
    if phase.kind == "generate":
        return decoding_seconds(job, phase, operations, machine)
    trains = phase.kind == "train"
    rate = machine.training_rate if trains else machine.inference_rate
    used = machine.training_utilization if trains else machine.inference_utilization
    peak = f"{machine.count} x {machine.tflops:g} TFLOP/s x {used:.0%}"
    return operations / rate, f"{phase.multiple:g} x forward = {operations:.3g} FLOP / ({peak})"


def decoding_seconds(job: Job, phase: Phase, operations: float, machine: Machine) -> tuple[float, str]:
    """Time to read weights and cache plus the overhead of the steps, or time of the operations if that is longer."""
    engine, work = machine.decoder, decoding_of(job, phase)
    concurrent = sequences(job, machine, work)
    steps = decoding_steps(work, concurrent, machine.count, engine.continuous)
    read = decoding_bytes(job.shape, work, steps, machine.count, decoder_bytes(job, machine), job.number_bytes)
    waiting = read / machine.decoding_rate + steps * engine.step_ms / 1000
    told = (
        f"{steps:,.0f} steps of {concurrent} sequences on each of {machine.count}: {read / GB:,.3g} GB / "
        f"({machine.bandwidth_gb:g} GB/s x {machine.decoding_utilization:.0%}) + {engine.step_ms:g} ms a step"
    )
    return max(waiting, operations / machine.inference_rate), told


def decoding_of(job: Job, phase: Phase) -> Decoding:
    longest = job.config.generation.max_new_tokens
    return Decoding(phase.responses, float(job.data.prompt.mean()), job.fresh, longest)


def decoder_bytes(job: Job, machine: Machine) -> int:
    """Bytes per weight in decoding: the transformers engine uses the weights that are trained, others have a copy."""
    return job.number_bytes if machine.decoder.continuous else job.weight_bytes


def sequences(job: Job, machine: Machine, work: Decoding) -> int:
    """Number of sequences decoded at once on each accelerator."""
    engine, needed = machine.decoder, work.responses / machine.count
    most = engine.most_sequences if engine.continuous else batch_responses(job)
    each = cache_bytes(job.shape, room_per_sequence(machine, work), job.number_bytes)
    return concurrent_sequences(cache_room(job, machine), each, most, needed)


def batch_responses(job: Job) -> int:
    """Maximum batch of the transformers engine: the responses to `generation.batch_size` prompts, or to a shard's."""
    prompts = min(job.config.generation.batch_size or job.config.shard_size, job.config.shard_size)
    return prompts * max(1, job.method.pairing.num_generations)


def cache_room(job: Job, machine: Machine) -> float:
    """Bytes available for keys and values."""
    room = machine.decoder.memory_share * machine.memory_gb * GB
    if machine.decoder.continuous:
        return room - job.shape.parameters * decoder_bytes(job, machine)
    return job.config.generation.memory or room


def room_per_sequence(machine: Machine, work: Decoding) -> float:
    """Tokens reserved per sequence; the transformers engine reserves the maximum response length."""
    return work.prompt + (work.length if machine.decoder.continuous else work.longest)


# Memory and disk


def memory(job: Job, machine: Machine) -> list[Line]:
    """Memory of one accelerator at the peak of each kind of work. One model is in memory at a time, except for a
    reference model that training needs as well."""
    shape, tokens = job.shape, job.config.max_tokens_per_batch
    state = state_bytes(shape, job.weight_bytes)
    activations = activation_bytes(shape, tokens, job.number_bytes, job.recomputes)
    weights = shape.parameters * job.weight_bytes
    beside, told = (weights, f" + {weights / GB:.3g} GB reference") if job.second_model else (0, "")
    lines = [
        Line(
            "training, not sharded",
            (state + activations + beside) / GB,
            told_state(job, state, activations) + told,
        ),
        Line(
            f"training, sharded over {machine.count}",
            (state / machine.count + activations) / GB,
            f"{state / GB:.3g} GB / {machine.count} + {activations / GB:.3g} GB activations",
        ),
        Line("passes without gradients", weights / GB, f"{shape.parameters:,} x {job.weight_bytes} bytes"),
    ]
    lines = lines if machine.count > 1 else [lines[0], lines[2]]
    return [*lines, generation_memory(job, machine)] if job.method.pairing.num_generations else lines


def told_state(job: Job, state: float, activations: float) -> str:
    shape, recomputed = job.shape, "recomputed" if job.recomputes else "stored"
    if shape.trained == shape.parameters:
        counted = f"{shape.parameters:,} x 4 x {job.weight_bytes} bytes (weight, gradient, Adam)"
    else:
        counted = f"{shape.parameters:,} x {job.weight_bytes} bytes + {shape.trained:,} trained x 12 bytes"
    tokens = job.config.max_tokens_per_batch
    return f"{counted} + {activations / GB:.3g} GB activations of {tokens:,} tokens, {recomputed}"


def generation_memory(job: Job, machine: Machine) -> Line:
    selected = job.part * job.expected_share(0).value * job.method.pairing.num_generations
    work = Decoding(selected, float(job.data.prompt.mean()), job.fresh, job.config.generation.max_new_tokens)
    count = sequences(job, machine, work)
    length, width = room_per_sequence(machine, work), decoder_bytes(job, machine)
    each, weights = cache_bytes(job.shape, length, job.number_bytes), job.shape.parameters * width
    cache = f"{count} sequences x {length:,.0f} tokens x {each / length / 1000:.1f} kB of cache"
    formula = f"{weights / GB:.3g} GB weights + {cache}"
    return Line("generation", (weights + count * each) / GB, formula)


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


# Notes


def notes(job: Job, machine: Machine) -> list[str]:
    found = [
        f"Assumed: {machine.training_utilization:.0%} of the peak in training, {machine.inference_utilization:.0%} in "
        f"passes without gradients, {machine.decoding_utilization:.0%} of the bandwidth in decoding; loading, "
        "tokenizing, checkpoints and the self-check are not counted.",
        f"Fresh responses are assumed to have {job.fresh:.1f} tokens (--fresh-tokens), and selected prompts to be like "
        "the others.",
    ]
    if machine.count > 1:
        found.append(f"Work is assumed to divide evenly among {machine.count} accelerators.")
    if job.number_bytes == 4:
        found.append("The recipe computes in float32, but the peak is that of bfloat16; set training.bf16.")
    if job.annotator.shape is None and job.method.pairing.num_generations:
        found.append("The annotator is a function or a remote service: its annotations are counted, its time is not.")
    if job.data.rows > 2 * job.data.sampled:
        found.append(f"Lengths are those of {job.data.sampled:,} of {job.data.pairs:,} pairs (--sample).")
    return found


def with_measured(job: Job, share: float, fresh: float) -> Job:
    """The job with a finished run's share and length, to check the arithmetic apart from the assumptions."""
    return replace(job, share=share, fresh=fresh)


def as_json(plan: Plan) -> dict[str, Any]:
    job = plan.job
    facts = {
        "parameters": job.shape.parameters,
        "trained": job.shape.trained,
        "pairs": job.data.pairs if job.has_pairs else 0,
        "prompts_alone": job.alone.data.pairs if job.alone else 0 if job.has_pairs else job.data.pairs,
        "sampled": job.data.sampled,
        "prompt_tokens": float(job.data.prompt.mean()),
        "chosen_tokens": float(job.data.chosen.mean()),
        "rejected_tokens": float(job.data.rejected.mean()),
        "fresh_tokens": job.fresh,
    }
    totals = {
        name: plan.total(name) for name in ("tokens", "operations", "seconds", "responses", "annotations", "calls")
    }
    return {
        "facts": facts,
        "machine": plan.machine.model_dump(),
        "shares": [asdict(share) for share in plan.shares],
        "phases": [asdict(cost) for cost in plan.costs],
        "totals": totals,
        "memory": [asdict(line) for line in plan.memory],
        "disk": [asdict(line) for line in plan.disk],
        "notes": plan.notes,
    }
