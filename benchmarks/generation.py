"""Sampling K = 8 responses a prompt against `generate(num_return_sequences=8)`, same model, same prompts, same batch.

A random model never ends a response by itself. Here one token in 32 is a stop token, so that lengths are spread as
those of real responses: half of them end before 22 tokens, 13 % reach the limit of 64.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import mean, median

import torch
from material import VOCABULARY, byte_tokenizer, model_16m, random_ids
from measure import Ratio, alternate, arguments, compare, finish, show
from torch import nn
from transformers import GenerationConfig

from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.generation.base import Sampling
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.models.collate import pad
from adaptpo.types import Prompt

COUNT, NEW_TOKENS = 8, 64
STOPS = frozenset(range(2, 2 + VOCABULARY // 32))


def flat(model: nn.Module) -> nn.Module:
    """Nearly uniform next tokens, so that every 32nd token drawn is a stop token."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.1)
    return model.eval()


def prompts_of(lengths: Sequence[int], seed: int = 0) -> list[Prompt]:
    rng = random.Random(seed)
    return [Prompt(number, "", random_ids(rng, length)) for number, length in enumerate(lengths)]


@torch.inference_mode()
def generate(model: nn.Module, prompts: Sequence[Prompt], batch_size: int) -> list[int]:
    """Lengths of the responses of transformers' own sampler."""
    config = GenerationConfig(
        do_sample=True, top_k=0, num_return_sequences=COUNT, max_new_tokens=NEW_TOKENS, pad_token_id=0,
        eos_token_id=sorted(STOPS),
    )  # fmt: skip
    lengths: list[int] = []
    for start in range(0, len(prompts), batch_size):
        rows = [prompt.ids for prompt in prompts[start : start + batch_size]]
        ids, mask = pad(rows, 0, left=True), pad([[1] * len(row) for row in rows], 0, left=True)
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        lengths += (output[:, ids.shape[1] :] != 0).sum(dim=1).tolist()
    return lengths


def ratios_of(case: str, lengths: Sequence[int], batch_size: int, repeats: int) -> list[Ratio]:
    model, prompts = flat(model_16m()), prompts_of(lengths)
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=NEW_TOKENS, stop_ids=STOPS)
    tokenizer = byte_tokenizer(VOCABULARY)  # The sampler never draws ids that the tokenizer lacks.
    ours = TransformersGenerator(model, tokenizer, sampling, batch_size=batch_size)
    produced: dict[str, list[int]] = {"adaptpo": [], "generate": []}

    def sample() -> None:
        responses = ours.generate(prompts, COUNT, seeds=range(len(prompts)))
        produced["adaptpo"] += [len(response.ids) for several in responses for response in several]

    variants: dict[str, Callable[[], object]] = {
        "adaptpo": sample,
        "generate": lambda: produced["generate"].extend(generate(model, prompts, batch_size)),
    }
    times = alternate(variants, repeats)
    means = ", ".join(f"{name} {mean(counts):.1f}" for name, counts in produced.items())
    print(f"{case:28s} tokens a response: {means}; {len(prompts) / median(times['adaptpo']):.1f} prompts/s")
    ratio = compare(case, "adaptpo", "generate", times)
    show(ratio, times)
    return [ratio]


def main() -> None:
    options = arguments(__doc__ or "")
    quiet_libraries()
    repeats = 3 if options.quick else 7
    ratios: list[Ratio] = []
    for length in (64, 256) if options.quick else (64, 256, 1024):
        ratios += ratios_of(f"P={length}", [length] * 8, 4, repeats)
    rng = random.Random(0)
    ratios += ratios_of("P=32..256, shuffled", [rng.randint(32, 256) for _ in range(16)], 4, repeats)
    finish(ratios, options, "Sampling 8 responses a prompt, 64 new tokens, random Llama of 16.8M parameters")


if __name__ == "__main__":
    main()
