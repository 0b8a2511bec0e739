"""The generation engine of a phase: made for one policy, and closed when the phase ends."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pyarrow as pa
from torch import nn

from adaptpo.config.recipe import GenerationSettings
from adaptpo.distributed.launch import local_process_count
from adaptpo.errors import ConfigError
from adaptpo.generation.agreement import Expected, expected_answers
from adaptpo.generation.base import Generator
from adaptpo.generation.build import access, check_server, running_server, shards_at_once, started_server
from adaptpo.generation.dialects import DIALECTS
from adaptpo.generation.process import Server
from adaptpo.generation.server import ServerGenerator
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.models.adapters import is_adapter
from adaptpo.models.inference import autocast
from adaptpo.pipeline.context import Context
from adaptpo.remote.usage import Usage, take
from adaptpo.types import Prompt, Response

Item = TypeVar("Item")

MISSING = (
    "the generation server refused the request, gave no usable answer within generation.retries and timeout, answered "
    "with ids that the tokenizer has not, or takes text and no text tokenizes to the prompt's tokens"
)
SERVED, LOGS = "served", "servers"
"""Folders of the run: the policy with its adapter merged, while it is served, and the output of servers."""


def engine_settings(context: Context) -> GenerationSettings:
    """The recipe's engine, with as many vLLM replicas as the run has accelerators for."""
    settings = context.config.generation
    if settings.engine != "vllm" or settings.data_parallel_size is not None:
        return settings
    replicas = max(1, local_process_count() // settings.tensor_parallel_size)
    return settings.model_copy(update={"data_parallel_size": replicas})


def generate_shards(
    context: Context,
    policy: str,
    phase: str,
    folder: str,
    items: Sequence[Item],
    work: Callable[[Generator, Sequence[Item]], pa.Table],
) -> None:
    """Computes shards with the recipe's engine and the policy at this path; all ranks call it.

    A server is asked by process 0 alone: it starts one for the whole machine, once all have left the accelerator.
    """
    settings, served = engine_settings(context), leave_to_server(context)
    with generating(context, policy, phase) as generator:
        size, at_once = context.config.shard_size, shards_at_once(settings)
        context.run.shards(folder, items, size, partial(work, generator), context.shows, at_once, by_first=served)


def generate_one_each(
    context: Context, policy: str, phase: str, prompts: Sequence[Prompt], seeds: Sequence[int]
) -> list[list[Response]]:
    """A response to each prompt, or none if it is missing; all ranks call it. Each samples a share of the prompts, or
    process 0 asks a server for all of them."""

    def sampled(numbers: Sequence[int]) -> list[list[Response]]:
        with generating(context, policy, phase) as generator:
            return generator.generate([prompts[n] for n in numbers], 1, [seeds[n] for n in numbers])

    every = range(len(prompts))
    if leave_to_server(context):
        return context.ranks.on_first(partial(sampled, every))
    return context.ranks.gather_shares(sampled(context.ranks.share(every)))


def leave_to_server(context: Context) -> bool:
    """Whether a server samples; if so, all ranks have left the accelerator to it."""
    if context.config.generation.engine == "transformers":
        return False
    context.slot.clear()
    context.ranks.wait()
    return True


@contextmanager
def generating(context: Context, policy: str, phase: str) -> Iterator[Generator]:
    """Yields the recipe's engine with the policy at this path; a server's usage goes to the metrics of the phase."""
    if context.config.generation.engine == "transformers":
        yield InProcess(context, policy)
        return
    usage: Usage = Counter()
    generator = by_server(context, policy, phase, usage)
    try:
        yield generator
    finally:
        generator.close()
        shutil.rmtree(context.run.path / SERVED, ignore_errors=True)
        if counts := take(usage):
            context.run.log(phase, {f"generation/{name}": count for name, count in counts.items()})


@dataclass(frozen=True)
class InProcess:
    """Loads the policy in the process that generates, which need not be the one that entered the phase."""

    context: Context
    policy: str

    def generate(self, prompts: Sequence[Prompt], count: int, seeds: Sequence[int]) -> list[list[Response]]:
        return in_process(self.context, self.policy).generate(prompts, count, seeds)


def in_process(context: Context, policy: str) -> TransformersGenerator:
    return sampler(context, context.policy(policy))


def sampler(context: Context, model: nn.Module) -> TransformersGenerator:
    """Samples from a model that is in this process."""
    return TransformersGenerator(
        model,
        context.tokenizer,
        context.sampling,
        batch_size=context.config.generation.batch_size,
        memory=context.config.generation.memory,
        precision=lambda: autocast(context.inference_arguments),
    )


def by_server(context: Context, policy: str, phase: str, usage: Usage) -> ServerGenerator:
    return ServerGenerator(
        opening=opening(context, policy, phase),
        expect=partial(expected, context, policy),
        reach=partial(access, engine_settings(context)),
        dialect=DIALECTS[context.config.generation.spoken],
        tokenizer=context.tokenizer,
        sampling=context.sampling,
        folder=policy,
        usage=usage,
    )


def expected(context: Context, policy: str, prompts: Sequence[Prompt]) -> list[Expected]:
    dtype = context.compute_dtype  # Before the policy, because this may load the initial one.
    return expected_answers(
        model=context.policy(policy),
        tokenizer=context.tokenizer,
        prompts=prompts,
        sampling=context.sampling,
        precision=lambda: autocast(context.inference_arguments),
        dtype=dtype,
    )


def opening(context: Context, policy: str, phase: str) -> Callable[[], Server]:
    settings = context.config.generation
    return partial(running if settings.base_url is not None else serve, context, policy, phase)


def running(context: Context, policy: str, phase: str) -> Server:
    """The server at `base_url`, with the policy's weights if it takes them."""
    return running_server(context.config.generation, policy, partial(as_model, context, policy))


def serve(context: Context, policy: str, phase: str) -> Server:
    """The run's server with this policy, after freeing the accelerator's memory for it: the one of an earlier phase
    with new weights, or one that is started, in the precision of training."""
    settings, dtype = engine_settings(context), context.compute_dtype
    model = as_model(context, policy)
    context.slot.clear()
    log = context.run.path / LOGS / f"{phase.replace('/', '-')}.log"
    longest = context.config.max_prompt_length + settings.max_new_tokens
    kept = context.server.value
    if kept is None:
        kept = started_server(settings, model, log, dtype, longest, context.config.trusts_code, kept=True)
        context.server.value = kept
    else:
        kept.serve(model, log, settings.restarts)
    return kept


def as_model(context: Context, policy: str) -> str:
    return merged(context, policy) if is_adapter(policy) else policy


def merged(context: Context, policy: str) -> str:
    """A folder with the policy as one model, which every server can load without rounding an adapter its own way."""
    folder = context.run.path / SERVED
    shutil.rmtree(folder, ignore_errors=True)
    model = context.take_policy(policy)
    if not hasattr(model, "merge_and_unload"):
        raise ConfigError(f"'{policy}' is an adapter alone; merge it into its model and set `model` to the result")
    model.merge_and_unload().save_pretrained(folder)
    context.tokenizer.save_pretrained(folder)
    return str(folder)


def check_generation(context: Context) -> None:
    """Checks the settings of a generation server before one is started. Raises ConfigError."""
    settings, method = context.config.generation, context.method
    if settings.engine == "transformers":
        return
    if method.trainer.trains_on == "groups":
        raise ConfigError(
            f"method '{method.name}' generates inside TRL's trainer and would not use the server; set "
            "generation.engine to transformers"
        )
    check_server(settings, settings.top_k)
