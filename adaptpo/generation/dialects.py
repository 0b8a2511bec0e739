"""How the servers of one API differ: what a request may say, and what may be believed of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from adaptpo.config.generation import Api
from adaptpo.generation.base import Sampling
from adaptpo.remote.store import Json

Fields = dict[str, Json]


@dataclass(frozen=True)
class Dialect:
    """One server's form of `/v1/completions`.

    `sampling_fields`: a request's fields for the sampling. `takes_ids`: prompts may be token ids; otherwise they are
    texts. `several`: `n` responses of a seed are different ones. `shared_seed`: a request's seed is that of the whole
    server, so that only one request at a time can be reproduced. `samples_top_k`: it can be told `top_k`.
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
    }


def vllm_fields(sampling: Sampling) -> Fields:
    return {
        **plain_fields(sampling),
        "top_k": sampling.top_k or -1,
        "stop_token_ids": sorted(sampling.stop_ids),
        "return_token_ids": True,
    }


def sglang_fields(sampling: Sampling) -> Fields:
    return {
        **plain_fields(sampling),
        "top_k": sampling.top_k or -1,
        "stop_token_ids": sorted(sampling.stop_ids),
    }


def transformers_fields(sampling: Sampling) -> Fields:
    """`transformers serve` samples as a whole generation config says, whose defaults hold for what it leaves out: a
    `top_k` of 50 among them."""
    config = {
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
