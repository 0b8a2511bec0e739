"""Sampling and scoring on a GPU."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from gpu_material import Row, Setting, forward_flops, group_passes, peak_of, row
from gpu_steps import SHARED, passes
from material import VOCABULARY, byte_tokenizer, random_ids
from measure import alternate
from transformers import GenerationConfig

from adaptpo.annotation.reward_model import RewardModelAnnotator
from adaptpo.generation.base import Sampling
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.models.collate import pad
from adaptpo.models.logps import pair_logps
from adaptpo.plan.arithmetic import forward_operations, separate_rows, shared_prompt
from adaptpo.plan.model import shape_of_encoder
from adaptpo.types import Prompt, Response

COUNT, PROMPTS, PROMPT, NEW_TOKENS = 8, 16, 256, 128


def prompts_of(setting: Setting) -> list[Prompt]:
    rng = random.Random(0)
    return [Prompt(i, "", random_ids(rng, setting.short(PROMPT))) for i in range(max(2, PROMPTS // setting.scale))]


def generation(setting: Setting) -> Iterator[Row]:
    """Eight responses of 128 tokens to each of 16 prompts of 256; a random model ends none of them earlier."""
    model = setting.reading()
    prompts, new = prompts_of(setting), setting.short(NEW_TOKENS)
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=new, stop_ids=frozenset({1}))
    tokenizer = byte_tokenizer(VOCABULARY)
    ours = TransformersGenerator(model, tokenizer, sampling, precision=setting.precision)
    plain = GenerationConfig(
        do_sample=True, top_k=0, num_return_sequences=COUNT, max_new_tokens=new, pad_token_id=0, eos_token_id=1
    )

    @torch.inference_mode()
    def generate() -> None:
        ids = pad([prompt.ids for prompt in prompts], 0, left=True).to(setting.device)
        with setting.precision():
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=plain)

    variants: dict[str, Callable[[], object]] = {
        "adaptpo": lambda: ours.generate(prompts, COUNT, seeds=range(len(prompts))),
        "generate": generate,
    }
    times = alternate(variants, max(1, setting.repeats // 2))
    for name, work in variants.items():
        rate = len(prompts) * COUNT * new / median(times[name])
        peak = peak_of(work, setting.device)
        yield row("generation", f"P={PROMPT}, 8x{NEW_TOKENS}", name, times[name], peak, tokens_per_second=rate)


def annotation(setting: Setting) -> Iterator[Row]:
    """Rewards of four responses of 300 tokens to prompts of 190, by a classifier of this shape."""
    groups = setting.groups(190, 300, pairs=2, tokens=2 * setting.tokens)
    letters = random.Random(0)

    def text(length: int) -> str:
        return "".join(letters.choice("abcdefghij") for _ in range(length))

    prompt, response = setting.short(190), setting.short(300)
    requests = [
        (Prompt(i, text(prompt), []), Response(text(response), [], ended=True))
        for i in range(len(groups))
        for _ in range(4)
    ]
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        annotator = RewardModelAnnotator(setting.classifier(dtype), byte_tokenizer())
        work = lambda annotator=annotator: annotator.rewards(requests)  # noqa: E731
        times = alternate({name: work}, setting.repeats)[name]
        peak = peak_of(work, setting.device)
        lengths = np.full(len(groups), float(prompt)), [np.full(len(groups), response + 1.0)] * 4
        shape = shape_of_encoder(setting.config())
        computed = replace((shared_prompt if annotator.shares else separate_rows)(*lengths), logits=0.0)
        taken, rate = median(times), forward_operations(shape, computed)
        yield row(
            "annotation", f"{len(requests)} responses", name, times, peak, tflops=rate / taken / 1e12,
            tokens_per_second=computed.tokens / taken, shared=str(bool(annotator.shares)),
        )  # fmt: skip


def scoring(setting: Setting) -> Iterator[Row]:
    """Log-probs of pairs without gradients, as a reference is computed."""
    model = setting.reading()
    groups = setting.groups(256, 256, pairs=1, tokens=4 * setting.tokens)
    batches = passes(groups, replace(SHARED, max_tokens=2 * setting.tokens), setting)

    @torch.inference_mode()
    def score() -> Any:
        with setting.precision():
            return [pair_logps(model, batch, chunked_head=True) for batch in batches]

    times = alternate({"adaptpo": score}, setting.repeats)["adaptpo"]
    needed = group_passes(groups)
    yield row(
        "scoring", "P=256, R=256", "adaptpo", times, peak_of(score, setting.device),
        tflops=forward_flops(model, needed) / median(times) / 1e12, tokens_per_second=needed.tokens / median(times),
    )  # fmt: skip
