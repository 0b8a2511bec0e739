"""Peak memory and time of a training step with a vocabulary of 128k, by what the language-model head computes.

`full logits`: all positions, log-softmax in float32 (the usual form). `response logits`: positions that predict
response tokens. `chunked`: the same in recomputed chunks, which adaptpo switches on by itself above 128 MiB of logits.
Each peak is that of a process of its own: the growth of its resident memory over the state before the step, which
holds the model already.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from material import model_16m, prompt_groups
from measure import Ratio, alternate, arguments, compare, finish, show
from training import authors_step

from adaptpo import methods
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.models.collate import GroupCollator
from adaptpo.models.packing import RowPacking
from adaptpo.training.step import preference_step

LARGE = {"vocab_size": 128_000, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2}


def step_of(variant: str, prompt: int, response: int) -> Callable[[], None]:
    model, groups = model_16m(shared=variant != "full logits", **LARGE), prompt_groups(1, prompt, response)
    if variant == "full logits":
        reference = model_16m(**LARGE)
        return lambda: authors_step(model, reference, groups)
    rows, method = RowPacking(shared_prompts=True), methods.metaapo()
    batch = GroupCollator(0, rows)(groups)
    chunked = variant == "chunked"
    return lambda: preference_step(model, batch, method, 1, chunked).loss.backward()


def peak_bytes(variant: str, prompt: int, response: int, threads: int) -> int:
    torch.set_num_threads(threads)
    quiet_libraries()
    step = step_of(variant, prompt, response)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts again from here.
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes, from the process's own status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def memory_ratios(prompt: int, response: int, threads: int) -> list[Ratio]:
    case = f"memory, P={prompt}, R=4x{response}"
    peaks: dict[str, list[float]] = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for variant in ("full logits", "response logits", "chunked"):
            peaks[variant] = [float(pool.apply(peak_bytes, (variant, prompt, response, threads)))]
            print(f"{case:28s} {variant:18s} {peaks[variant][0] / 2**20:8.0f} MiB", flush=True)
    ratios = [compare(case, name, "full logits", peaks) for name in ("response logits", "chunked")]
    for ratio in ratios:
        print(f"{case:28s} {ratio.variant}: {ratio.ratio:.2f} times less than {ratio.against}", flush=True)
    return ratios


def main() -> None:
    options = arguments(__doc__ or "")
    quiet_libraries()
    ratios: list[Ratio] = []
    for prompt, response in ((190, 300), (512, 128)):
        ratios += memory_ratios(prompt, response, options.threads)
        steps = {name: step_of(name, prompt, response) for name in ("response logits", "chunked")}
        times = alternate(steps, 2 if options.quick else 5)
        ratio = compare(f"time, P={prompt}, R=4x{response}", "chunked", "response logits", times)
        show(ratio, times)
        print(f"{'':28s} chunked: {median(times['chunked']):.1f} s a step", flush=True)
        ratios.append(ratio)
    finish(ratios, options, "Head of a vocabulary of 128k: memory (times less) and time (times as fast)")


if __name__ == "__main__":
    main()
