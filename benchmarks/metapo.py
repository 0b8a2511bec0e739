"""What MetaPO's weights cost: time and peak memory of training against DPO on the same pairs, by the interval K.

Whole trainers take a few steps each, in turn: `DPO`; `MetaPO, K = none`, which weighs pairs by their histories and
never updates; and `MetaPO, K = 1`, whose every step but the first is followed by an update. An update's cost is the
difference of the last two, per update; the overhead at an interval K is what a step of the second and a K-th of an
update cost beside a step of DPO. Each repetition gives one number; shown are the median, the lowest and the highest.
On a CPU the time is that of the processor: differences of a few percent drown in what else a machine does.

A peak of memory is that of a process of its own: the growth of its resident memory by model, optimizer and training.
It does not depend on K.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from head import resident
from material import byte_tokenizer, model_16m, prompt_groups
from measure import Clock, Ratio, alternate, arguments, compare, finish
from training import SHARED, TRAINING
from transformers import TrainingArguments

from adaptpo import Method, methods
from adaptpo.choices.iteration import Iteration
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.training.preference_trainer import PreferenceTrainer
from adaptpo.types import PreferencePair, PromptGroup

INTERVALS = (10, 50, 100, 200, 500)
STEPS, BATCH = 4, 4
UPDATES = STEPS - 1
VARIANTS = BASELINE, WEIGHING, UPDATING = "DPO", "MetaPO, K = none", "MetaPO, K = 1"


def method_of(variant: str) -> Method:
    if variant == BASELINE:
        return methods.dpo()
    return methods.metapo(meta_interval=None if variant == WEIGHING else 1)


def with_token_reference(group: PromptGroup) -> PromptGroup:
    def kept(pair: PreferencePair) -> PreferencePair:
        sides = array("f", [-9.0] * len(pair.chosen.ids)), array("f", [-9.0] * len(pair.rejected.ids))
        return replace(pair, reference_tokens=sides)

    return replace(group, pairs=tuple(map(kept, group.pairs)))


def trainer_of(variant: str, prompt: int, response: int, out: str) -> PreferenceTrainer:
    settings = TRAINING | {"max_steps": STEPS, "per_device_train_batch_size": BATCH}
    config = TrainingArguments(output_dir=out, remove_unused_columns=False, **settings)
    groups = prompt_groups(BATCH * STEPS, prompt, response, pairs=1)
    if variant != BASELINE:
        groups = list(map(with_token_reference, groups))
    held_out = groups[:BATCH]
    model, tokenizer, method = model_16m(shared=True), byte_tokenizer(), method_of(variant)
    return PreferenceTrainer(
        model, config, groups, tokenizer, method, log=lambda *_: None, rows=SHARED, validation=held_out
    )


def training(trainer: PreferenceTrainer) -> Callable[[], object]:
    def train() -> None:
        trainer.method.start_iteration(Iteration(0, 1))
        trainer.train()

    return train


def overheads(case: str, times: dict[str, list[float]]) -> list[Ratio]:
    """DPO's time as a ratio to MetaPO's for each interval; prints it as a share of DPO's."""
    costs = {BASELINE: [taken / STEPS for taken in times[BASELINE]]}
    for interval in INTERVALS:
        pairs = zip(times[WEIGHING], times[UPDATING], strict=True)
        costs[f"MetaPO, K = {interval}"] = [w / STEPS + (u - w) / UPDATES / interval for w, u in pairs]
    ratios = [compare(case, name, BASELINE, costs) for name in costs if name != BASELINE]
    for ratio in ratios:
        share = [100 * (1 / value - 1) for value in (ratio.ratio, ratio.spread[1], ratio.spread[0])]
        print(f"{case:20s} {ratio.variant:18s} {share[0]:+6.1f} %  ({share[1]:+.1f} to {share[2]:+.1f})", flush=True)
    return ratios


def clock() -> Clock:
    return time.perf_counter if torch.cuda.is_available() else time.process_time


def time_ratios(prompt: int, response: int, repeats: int) -> list[Ratio]:
    case = f"time, P={prompt}, R={response}"
    with tempfile.TemporaryDirectory() as out:
        trainers = {name: training(trainer_of(name, prompt, response, out)) for name in VARIANTS}
        times = alternate(trainers, repeats, clock=clock())
    step, weighing = median(times[BASELINE]) / STEPS, median(times[WEIGHING]) / STEPS
    update = (median(times[UPDATING]) - median(times[WEIGHING])) / UPDATES
    print(
        f"{case:20s} a step of DPO {1000 * step:.0f} ms, of MetaPO {1000 * weighing:.0f} ms, "
        f"an update {1000 * update:.0f} ms ({update / step:.2f} steps)",
        flush=True,
    )
    return overheads(case, times)


def peak_bytes(variant: str, prompt: int, response: int, threads: int) -> int:
    torch.set_num_threads(threads)
    quiet_libraries()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts again from here.
    before = resident("VmRSS")
    with tempfile.TemporaryDirectory() as out:
        training(trainer_of(variant, prompt, response, out))()
    return resident("VmHWM") - before


def memory_ratio(prompt: int, response: int, threads: int) -> Ratio:
    case = f"memory, P={prompt}, R={response}"
    peaks: dict[str, list[float]] = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for variant in (BASELINE, UPDATING):
            peaks[variant] = [float(pool.apply(peak_bytes, (variant, prompt, response, threads)))]
            print(f"{case:20s} {variant:18s} {peaks[variant][0] / 2**20:8.0f} MiB", flush=True)
    ratio = compare(case, UPDATING, BASELINE, peaks)
    print(f"{case:20s} {'any K':18s} {100 * (1 / ratio.ratio - 1):+6.1f} %", flush=True)
    return ratio


def main() -> None:
    options = arguments(__doc__ or "")
    quiet_libraries()
    ratios: list[Ratio] = []
    for prompt, response in ((64, 64),) if options.quick else ((64, 64), (128, 128), (256, 256)):
        ratios += time_ratios(prompt, response, repeats=2 if options.quick else 7)
        ratios.append(memory_ratio(prompt, response, options.threads))
    finish(ratios, options, "MetaPO against DPO (1: no more time or memory)")


if __name__ == "__main__":
    main()
