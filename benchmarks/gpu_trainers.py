"""Whole trainers on a GPU, step by step: adaptpo against TRL's `DPOTrainer`, and MetaPO's weights against DPO."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from io import StringIO
from statistics import median
from typing import Any

import torch
from gpu_material import Row, Setting, group_passes, row
from material import byte_tokenizer, preference_texts
from measure import synchronize
from metapo import with_token_reference
from training import groups_of
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from adaptpo import Method, methods
from adaptpo.choices.iteration import Iteration
from adaptpo.distributed.quiet import turn_off_telemetry
from adaptpo.models.packing import RowPacking
from adaptpo.plan.arithmetic import forward_operations
from adaptpo.plan.model import shape_of
from adaptpo.training.preference_trainer import PreferenceTrainer
from adaptpo.types import PromptGroup

SHARED = RowPacking(shared_prompts=True, chunked_head=True, max_tokens=8192)
PROMPT, RESPONSE, BATCH, STEPS = 256, 256, 8, 5
OURS = "adaptpo"
TRL_SETTINGS: dict[str, dict[str, Any]] = {
    "TRL's default": {},
    "TRL, no recomputation": {"gradient_checkpointing": False},
    "TRL, kept reference": {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
}
KERNELS = {"use_liger_kernel": True}


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step but the first, which warms up."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        synchronize()
        self.started = time.perf_counter()

    def on_step_end(self, arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        synchronize()
        if state.global_step > 1:
            self.taken.append(time.perf_counter() - self.started)


def settings_of(setting: Setting) -> dict[str, Any]:
    return {
        "report_to": "none", "save_strategy": "no", "logging_steps": 1000, "disable_tqdm": True, "max_steps": STEPS,
        "per_device_train_batch_size": BATCH, "learning_rate": 1e-6, "bf16": setting.bf16,
        "use_cpu": setting.device == "cpu",
        "optim": "adamw_torch_fused" if setting.device == "cuda" else "adamw_torch",
    }  # fmt: skip


def trl_trainer(setting: Setting, rows: list[dict[str, str]], **own: Any) -> Any:
    """With a reference of the policy's own precision, as TRL loads it; a kept reference needs no second model."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    turn_off_telemetry()
    with redirect_stderr(StringIO()), tempfile.TemporaryDirectory() as out:
        return DPOTrainer(
            model=setting.model(shared=False),
            # TRL computes a reference that it keeps with the policy itself.
            ref_model=None if own.get("precompute_ref_log_probs") else setting.model(shared=False),
            args=DPOConfig(output_dir=out, max_length=None, **settings_of(setting), **own),
            train_dataset=Dataset.from_list(rows),
            processing_class=byte_tokenizer(),
        )


def our_trainer(
    setting: Setting, model: Any, groups: list[PromptGroup], method: Method, **own: Any
) -> PreferenceTrainer:
    held_out = own.pop("validation", ())
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(output_dir=out, remove_unused_columns=False, **settings_of(setting), **own)
    return PreferenceTrainer(
        model, arguments, groups, byte_tokenizer(), method, log=lambda *_: None, rows=SHARED, validation=held_out
    )


Maker = Callable[[], Any]
"""Builds a trainer with models of its own."""


def step_times(trainer: Any) -> list[float]:
    times = StepTimes()
    trainer.add_callback(times)
    trainer.remove_callback(PrinterCallback)
    if isinstance(trainer, PreferenceTrainer):
        trainer.method.start_iteration(Iteration(0, 1))
    trainer.train()
    trainer.accelerator.free_memory()
    return times.taken


def in_turns(makers: dict[str, Maker], setting: Setting) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    """Seconds of steps and peaks of memory. Each turn builds its trainer anew: trainers change their models for good,
    and a GPU does not hold all of them."""
    times: dict[str, list[float]] = {name: [] for name in makers}
    peaks: dict[str, float | None] = {}
    for _ in range(setting.repeats):
        for name, make in makers.items():
            trainer = make()
            if setting.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            times[name] += step_times(trainer)
            peaks[name] = torch.cuda.max_memory_allocated() / 1e9 if setting.device == "cuda" else None
            del trainer
            gc.collect()
            if setting.device == "cuda":
                torch.cuda.empty_cache()
    return times, peaks


def dpo(setting: Setting) -> Iterator[Row]:
    """DPO on the same tokens: eight pairs a step, prompts and responses of 256 tokens."""
    yield from against_trl("dpo", setting, TRL_SETTINGS)


def liger(setting: Setting) -> Iterator[Row]:
    """The same with the fused kernels of the package liger-kernel on both sides."""
    if find_spec("liger_kernel") is None or setting.device != "cuda":
        print("liger: left out; it needs a GPU and the package liger-kernel")
        return
    yield from against_trl("liger", setting, {"TRL, kept reference": TRL_SETTINGS["TRL, kept reference"]}, KERNELS)


def against_trl(
    section: str, setting: Setting, theirs: dict[str, dict[str, Any]], kernels: dict[str, Any] | None = None
) -> Iterator[Row]:
    prompt, response = setting.short(PROMPT), setting.short(RESPONSE)
    rows, kernels = preference_texts(BATCH * STEPS, prompt, response), kernels or {}
    groups = groups_of(trl_trainer(replace(setting, shape="tiny"), rows, gradient_checkpointing=False))
    makers: dict[str, Maker] = {
        name: partial(trl_trainer, setting, rows, **own, **kernels) for name, own in theirs.items()
    }
    makers[OURS] = lambda: our_trainer(setting, setting.model(), groups, methods.dpo(), **kernels)
    times, peaks = in_turns(makers, setting)
    passes = group_passes(groups[:BATCH])
    operations = 3 * forward_operations(shape_of(setting.config()), passes)
    for name, taken in times.items():
        rates = {"tflops": operations / median(taken) / 1e12, "tokens_per_second": passes.tokens / median(taken)}
        yield row(section, f"P={prompt}, R={response}", name, taken, peaks[name], **(rates if name == OURS else {}))


def metapo(setting: Setting) -> Iterator[Row]:
    """DPO; MetaPO without updates; MetaPO with an update after each step. Eight held-out pairs an update."""
    groups = setting.groups(PROMPT, RESPONSE, pairs=1, tokens=BATCH * STEPS * (PROMPT + 2 * RESPONSE))
    weighed = [with_token_reference(group) for group in groups]
    makers: dict[str, Maker] = {
        "DPO": lambda: our_trainer(setting, setting.model(), groups, methods.dpo()),
        "MetaPO, no update": lambda: weighing(setting, weighed, None),
        "MetaPO, K = 1": lambda: weighing(setting, weighed, 1),
    }
    times, peaks = in_turns(makers, setting)
    step, still, moving = (median(times[name]) for name in makers)
    case = f"P={setting.short(PROMPT)}, R={setting.short(RESPONSE)}"
    yield row("metapo", case, "DPO", times["DPO"], peaks["DPO"])
    yield row("metapo", case, "MetaPO, no update", times["MetaPO, no update"], peaks["MetaPO, no update"])
    overheads = {f"percent_at_K_{k}": 100 * ((still + (moving - still) / k) / step - 1) for k in (50, 100)}
    yield row("metapo", case, "MetaPO, K = 1", times["MetaPO, K = 1"], peaks["MetaPO, K = 1"], **overheads)


def weighing(setting: Setting, groups: list[PromptGroup], interval: int | None) -> PreferenceTrainer:
    method = methods.metapo(meta_interval=interval)
    return our_trainer(setting, setting.model(), groups, method, validation=groups[:BATCH])
