"""The time and memory of sampling: by adaptpo's own sampler, or by a server with continuous batching."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

from adaptpo.generation.build import requests_at_once, shards_at_once
from adaptpo.generation.transformers_engine import reserved_bytes
from adaptpo.plan.arithmetic import Passes, cache_bytes, forward_operations
from adaptpo.plan.job import Job
from adaptpo.plan.machines import Machine
from adaptpo.plan.phases import Phase
from adaptpo.plan.rates import Assumption, Rates

GB = 1e9
Engine = Literal["transformers", "continuous"]

STEP_MS: dict[Engine, float] = {"transformers": 25.0, "continuous": 6.0}
"""Milliseconds of a decoding step beyond reading weights and caches: the launches of PyTorch without CUDA graphs;
scheduling and seeded sampling of a server."""
MEMORY_SHARE: dict[Engine, float] = {"transformers": 0.4, "continuous": 0.9}
"""Shares of an accelerator's memory: the default of `generation.memory_gb`, and vLLM's default for everything."""
MOST_SEQUENCES = 256
"""Sequences that one replica of a server decodes at once."""


@dataclass(frozen=True)
class Sampler:
    """What samples in a plan: `replicas`, each on `accelerators`, which decode `rows` responses at once in `room` bytes
    besides the weights."""

    engine: Engine
    replicas: int
    accelerators: int
    room: float
    rows: int
    row_bytes: float
    weight_bytes: float

    @property
    def memory(self) -> float:
        """Bytes of one accelerator."""
        return (self.weight_bytes + self.rows * self.row_bytes) / self.accelerators


def engine_of(job: Job, machine: Machine) -> Engine:
    """The machine's engine, else the recipe's."""
    return machine.engine or ("transformers" if job.config.generation.engine == "transformers" else "continuous")


def sampler_of(job: Job, phase: Phase, machine: Machine) -> Sampler:
    settings = job.config.generation
    if engine_of(job, machine) == "transformers":
        return own_sampler(job, phase, machine)
    if machine.engine or settings.engine != "vllm":
        return server(job, phase, machine, machine.count, 1)
    accelerators = min(settings.tensor_parallel_size, machine.count)
    room = machine.count // accelerators
    return server(job, phase, machine, max(1, min(settings.data_parallel_size or room, room)), accelerators)


def own_sampler(job: Job, phase: Phase, machine: Machine) -> Sampler:
    """adaptpo's sampler: whole prompts, with room for the longest response allowed, as in `row_bytes` of
    `adaptpo.generation.transformers_engine`."""
    settings, shape = job.config.generation, job.shape
    count = responses_each(phase)
    longest = int(job.data.prompt.mean()) + settings.max_new_tokens
    vocabulary = shape.head // shape.hidden
    row = reserved_bytes(longest, shape.layers * shape.keys_values, vocabulary, job.weight_bytes)
    room = settings.memory or MEMORY_SHARE["transformers"] * machine.memory_gb * GB
    fit = settings.batch_size or max(1, int(room // (count * row)))
    prompts = min(fit, job.config.shard_size, ceil(phase.prompts / machine.count))
    return Sampler("transformers", machine.count, 1, room, prompts * count, row, job.reading_bytes)


def server(job: Job, phase: Phase, machine: Machine, replicas: int, accelerators: int) -> Sampler:
    """A server with continuous batching, whose requests are prompts: each occupies its responses' caches."""
    settings = job.config.generation
    weights = job.shape.parameters * job.number_bytes
    share = settings.gpu_memory_utilization or MEMORY_SHARE["continuous"]
    room = accelerators * share * machine.memory_gb * GB - weights
    row = cache_bytes(job.shape, float(job.data.prompt.mean()) + job.fresh, job.number_bytes)
    asked = min(prompts_open(job, replicas) / replicas * responses_each(phase), phase.responses / replicas)
    rows = max(1, min(int(room // row), MOST_SEQUENCES, ceil(asked)))
    return Sampler("continuous", replicas, accelerators, room, rows, row, weights)


def prompts_open(job: Job, replicas: int) -> float:
    """Prompts that are asked for at a time, by the recipe's settings of its server with these replicas."""
    settings = job.config.generation.model_copy(update={"data_parallel_size": replicas})
    if settings.engine == "transformers":
        return inf
    return min(shards_at_once(settings) * job.config.shard_size, requests_at_once(settings))


def responses_each(phase: Phase) -> int:
    """Responses to a prompt."""
    return max(1, round(phase.responses / phase.prompts)) if phase.prompts else 1


def decoding_seconds(job: Job, phase: Phase, machine: Machine, rates: Rates) -> tuple[float, str]:
    """Seconds of a phase that samples, and their arithmetic."""
    sampler = sampler_of(job, phase, machine)
    used = sampler.replicas * sampler.accelerators
    if each := rates.sampling(sampler.engine):
        tokens = phase.responses * job.fresh
        return tokens / (used * each), f"{tokens:,.0f} response tokens / ({used} x {each:,.0f} tokens/s, measured)"
    steps = decoding_steps(job, phase, sampler)
    read = bytes_read(job, phase, sampler, steps)
    step = STEP_MS[sampler.engine]
    prefill = prefill_operations(job, phase) / used / (rates.scoring().flops / machine.count)
    on = f" of {sampler.accelerators} accelerators" if sampler.accelerators > 1 else ""
    told = (
        f"{steps:,.0f} steps of {sampler.rows} sequences on each of {sampler.replicas}{on}: {read / GB:,.3g} GB / "
        f"({sampler.accelerators * machine.bandwidth_gb:g} GB/s x {machine.decoding_utilization:.0%}) + {step:g} ms a "
        f"step + {prefill:,.3g} s of prefill"
    )
    return read / (sampler.accelerators * machine.bandwidth) + steps * step / 1000 + prefill, told


def decoding_assumptions(job: Job, machine: Machine, rates: Rates) -> list[Assumption]:
    engine = engine_of(job, machine)
    if each := rates.sampling(engine):
        scaled = f"{rates.origin}, times its parameters over the model's"
        return [Assumption("generation", each, "response tokens per second of one accelerator", scaled)]
    why = {"transformers": "PyTorch without CUDA graphs", "continuous": "scheduling and seeded sampling of a server"}
    step = Assumption("step_ms", STEP_MS[engine], "ms of a decoding step beyond its reads", why[engine])
    most = Assumption("sequences", MOST_SEQUENCES, "sequences that a replica decodes at most", "vLLM's usual limit")
    found = [rates.assumed("decoding_utilization", "of the bandwidth in decoding"), step]
    return [*found, most] if engine == "continuous" else found


def decoding_steps(job: Job, phase: Phase, sampler: Sampler) -> float:
    """Steps of each replica. The own sampler decodes batches of whole prompts until their longest response ends; a
    server refills each place at once, and drains at the end."""
    share = phase.responses / sampler.replicas
    longest = job.longest(sampler.rows)
    if sampler.engine == "continuous":
        return share * job.fresh / sampler.rows + longest - job.fresh
    return ceil(share / sampler.rows) * longest


def bytes_read(job: Job, phase: Phase, sampler: Sampler, steps: float) -> float:
    """Bytes that each replica reads: the weights once per step, and for each token the earlier keys and values."""
    context = float(job.data.prompt.mean()) + job.fresh / 2
    cache = cache_bytes(job.shape, context, job.number_bytes)
    weights = (job.shape.body + job.shape.head) * job.number_bytes
    if sampler.engine == "transformers" and job.mixed:
        # The head is read in its own precision, converted, and read again.
        weights += job.shape.head * (job.weight_bytes + job.number_bytes)
    return steps * weights + phase.responses / sampler.replicas * job.fresh * cache


def prefill_operations(job: Job, phase: Phase) -> float:
    """FLOPs of the prompts, each computed once."""
    prompt = job.data.prompt
    passes = Passes(float(prompt.sum()), len(prompt), float((prompt * (prompt + 1) / 2).sum()))
    return forward_operations(job.shape, passes * (phase.prompts / len(prompt)))
