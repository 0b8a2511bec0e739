"""Differences between the servers of one API: the fields that a request may have, and those that a server respects."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from adaptpo.config.generation import Api
from adaptpo.generation.base import NEUTRAL, Sampling
from adaptpo.remote.store import Json

Fields = dict[str, Json]


@dataclass(frozen=True)
class Dialect:
    """One server's variant of `/v1/completions`.

    `sampling_fields`: makes a request's sampling fields. `takes_ids`: prompts may be token ids; otherwise they are
    texts. `several`: the `n` responses to one seed differ. `shared_seed`: a request's seed is that of the whole server,
    and only one request at a time is reproducible. `samples_top_k`: the server accepts `top_k`.
    """

    sampling_fields: Callable[[Sampling], Fields]
    takes_ids: bool = False
    several: bool = False
    shared_seed: bool = False
    samples_top_k: bool = True


def plain_fields(sampling: Sampling) -> Fields:
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


WITHOUT_PENALTY: Fields = {"repetition_penalty": 1.0, "min_p": 0.0}
"""Further fields of vLLM and SGLang that would otherwise take the value of the model's generation_config.json."""


def vllm_fields(sampling: Sampling) -> Fields:
    return {
        **sglang_fields(sampling),
        "min_tokens": 0,
        "return_token_ids": True,
    }


def sglang_fields(sampling: Sampling) -> Fields:
    return {
        **plain_fields(sampling),
        **WITHOUT_PENALTY,
        "top_k": sampling.top_k or -1,
        "stop_token_ids": sorted(sampling.stop_ids),
    }


def transformers_fields(sampling: Sampling) -> Fields:
    """The sampling fields of `transformers serve`: a whole generation config, as defaults (such as a `top_k` of 50)
    apply to every field that it leaves out."""
    config = {
        **NEUTRAL,
        "do_sample": sampling.temperature > 0,
        "temperature": sampling.temperature or None,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_new_tokens": sampling.max_new_tokens,
        "eos_token_id": sorted(sampling.stop_ids),
        "pad_token_id": min(sampling.stop_ids),
    }
    return {"generation_config": json.dumps(config)}


DIALECTS: dict[Api, Dialect] = {
    "vllm": Dialect(vllm_fields, takes_ids=True, several=True),
    "sglang": Dialect(sglang_fields, takes_ids=True),
    "transformers": Dialect(transformers_fields, shared_seed=True),
    "openai": Dialect(plain_fields, samples_top_k=False),
}
