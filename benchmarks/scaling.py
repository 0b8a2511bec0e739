"""Cost of a training step and of a scoring pass against the number of prompts, and the distance from the ceiling.

The fit is a line through the medians; its R^2 and the cost per prompt are printed. The ceiling is arithmetic: the
multiply-adds of all matrix products for the tokens that must be processed (a prompt once, responses without their last
token, the head for response tokens; attention for the pairs of tokens that see each other), over the rate that this
machine reaches in a large matrix product, measured in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from material import model_16m, prompt_groups
from measure import Ratio, alternate, arguments, finish
from training import SHARED, our_step, reference_pass

from adaptpo import methods
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.models.packing import RowPacking, row_tokens, token_batches
from adaptpo.types import PromptGroup

BUDGET = RowPacking(shared_prompts=True, max_tokens=4096)


def matrix_rate(size: int = 1536, repeats: int = 7) -> float:
    """Floating-point operations per second of a square matrix product in float32."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - start)
    return 2 * size**3 / median(taken)


def needed_operations(config: Any, group: PromptGroup) -> int:
    """Of one forward pass over a group."""
    prompt = len(group.prompt.ids)
    lengths = [len(response.ids) for pair in group.pairs for response in (pair.chosen, pair.rejected)]
    tokens = row_tokens([group], SHARED)
    heads = config.num_attention_heads * config.head_dim
    weights = config.num_hidden_layers * (
        config.hidden_size * (2 * heads + 2 * config.num_key_value_heads * config.head_dim)
        + 3 * config.hidden_size * config.intermediate_size
    )
    seen = prompt * (prompt + 1) // 2 + sum((n - 1) * prompt + n * (n - 1) // 2 for n in lengths)
    head = config.hidden_size * config.vocab_size
    return 2 * (tokens * weights + sum(lengths) * head) + 4 * config.num_hidden_layers * seen * heads


def by_passes(work: Callable[[Sequence[PromptGroup]], None], groups: Sequence[PromptGroup]) -> Callable[[], None]:
    def run() -> None:
        for indices in token_batches(groups, BUDGET):
            work([groups[i] for i in indices])

    return run


def main() -> None:
    options = arguments(__doc__ or "")
    quiet_libraries()
    model, method = model_16m(shared=True), methods.metaapo()
    counts = (2, 4, 8, 16) if options.quick else (4, 8, 16, 32, 64)
    groups = prompt_groups(max(counts), 128, 64, ragged=True)
    rate = matrix_rate()
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s")
    works: dict[str, tuple[int, Callable[[Sequence[PromptGroup]], None]]] = {
        "training step": (3, lambda some: our_step(model, some, SHARED, method)),
        "scoring pass": (1, lambda some: reference_pass(model, some)),
    }
    ratios: list[Ratio] = []
    for name, (passes, work) in works.items():
        times = alternate({str(n): by_passes(work, groups[:n]) for n in counts}, 2 if options.quick else 5)
        medians = [median(times[str(n)]) for n in counts]
        slope, start = np.polyfit(counts, medians, 1)
        explained = np.corrcoef(counts, medians)[0, 1] ** 2
        print(f"{name}: {1000 * slope:.0f} ms a prompt, {1000 * start:.0f} ms at none, R^2 {explained:.5f}")
        for n, taken in zip(counts, medians, strict=True):
            ceiling = passes * sum(needed_operations(model.config, group) for group in groups[:n]) / rate
            spread = (ceiling / max(times[str(n)]), ceiling / min(times[str(n)]))
            share = Ratio(f"{name}, {n} prompts", "adaptpo", "arithmetic ceiling", ceiling / taken, spread)
            print(
                f"{share.case:28s} {1000 * taken:8.0f} ms   ceiling {1000 * ceiling:8.0f} ms   {share.ratio:.0%} of it"
            )
            ratios.append(share)
    finish(ratios, options, "Share of the machine's matrix rate, random Llama of 16.8M parameters")


if __name__ == "__main__":
    main()
