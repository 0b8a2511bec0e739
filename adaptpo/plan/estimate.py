"""Computes operations, seconds, memory and disk from the work of a run, each with its arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from adaptpo.choices.learners.trust import Share
from adaptpo.plan.arithmetic import forward_operations
from adaptpo.plan.decoding import decoding_assumptions, decoding_seconds
from adaptpo.plan.job import Job
from adaptpo.plan.machines import Machine
from adaptpo.plan.memory import Line, disk, memory
from adaptpo.plan.phases import Phase, phases
from adaptpo.plan.published import beside_paper
from adaptpo.plan.rates import Assumption, Rates
from adaptpo.plan.throughput import Throughput


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
class Plan:
    job: Job
    machine: Machine
    costs: list[Cost]
    memory: list[Line]
    disk: list[Line]
    shares: list[Share]
    assumptions: list[Assumption]
    notes: list[str]

    def total(self, name: str) -> float:
        """The sum of a field of `Cost` over all phases."""
        return sum(getattr(cost, name) for cost in self.costs)

    @property
    def hours(self) -> float:
        return self.total("seconds") / 3600


def make_plan(job: Job, machine: Machine, measured: Throughput | None = None) -> Plan:
    """The plan of a job on a machine, with measured rates in place of the assumed ones."""
    rates = Rates(job, machine, measured)
    costs = [cost_of(job, phase, machine, rates) for phase in phases(job)]
    return Plan(
        job=job,
        machine=machine,
        costs=costs,
        memory=memory(job, machine),
        disk=disk(job),
        shares=[job.expected_share(number) for number in range(job.iterations)],
        assumptions=assumptions(job, machine, rates),
        notes=[*notes(job, machine), *rates.notes(), *beside_paper(job, costs)],
    )


# Time


def cost_of(job: Job, phase: Phase, machine: Machine, rates: Rates) -> Cost:
    operations = phase_operations(job, phase)
    seconds, arithmetic = seconds_of(job, phase, operations, machine, rates)
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


def seconds_of(job: Job, phase: Phase, operations: float, machine: Machine, rates: Rates) -> tuple[float, str]:
    if phase.kind == "generate":
        return decoding_seconds(job, phase, machine, rates)
    rate = {"train": rates.training, "forward": rates.scoring, "annotate": rates.annotation}[phase.kind]()
    return operations / rate.flops, f"{phase.multiple:g} x forward = {operations:.3g} FLOP / ({rate.told})"


# Assumptions and notes


def assumptions(job: Job, machine: Machine, rates: Rates) -> list[Assumption]:
    """Everything that was read neither from the recipe nor from the data."""
    found = [Assumption("fresh_tokens", job.fresh, "tokens of a fresh response", source_of_length(job))]
    sampled = decoding_assumptions(job, machine, rates) if job.method.pairing.num_generations else []
    return [*found, *rates.assumptions(), *sampled]


def source_of_length(job: Job) -> str:
    limit, chosen = job.config.generation.max_new_tokens, float(job.data.chosen.mean())
    known = {min(limit, chosen): "as the chosen ones", float(limit): "the limit of the recipe"}
    return known.get(job.fresh, "--fresh-tokens")


def notes(job: Job, machine: Machine) -> list[str]:
    found = [
        "Not counted: loading, tokenizing, checkpoints, servers' starts and the self-check.",
        "Selected prompts are assumed to be like the others, and fresh responses to be spread in length as the chosen "
        "ones are.",
    ]
    if machine.count > 1:
        found.append(f"Work of every phase is divided among {machine.count} accelerators.")
    if (steps := int(job.config.training.get("max_steps", -1))) > 0:
        found.append(f"Whole epochs are counted, although training.max_steps ends each iteration after {steps} steps.")
    if job.config.branch_of is not None:
        found.append("branch_of: what comes before the first iteration is taken from another run and not counted.")
    if job.number_bytes == 4:
        found.append("The recipe computes in float32; training.bf16 is several times as fast on accelerators.")
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
        "assumptions": [asdict(one) for one in plan.assumptions],
        "memory": [asdict(line) for line in plan.memory],
        "disk": [asdict(line) for line in plan.disk],
        "notes": plan.notes,
    }
