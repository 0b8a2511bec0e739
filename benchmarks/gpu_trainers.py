"""Whole trainers on a GPU, step by step: adaptpo against TRL's `DPOTrainer`, and MetaPO's weights against DPO."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from statistics import median
from typing import Any

import torch
from gpu_material import Row, Setting, forward_flops, group_passes, row
from material import byte_tokenizer, preference_texts
from measure import synchronize
from metapo import with_token_reference
from training import groups_of
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from adaptpo import Method, methods
from adaptpo.choices.iteration import Iteration
from adaptpo.distributed.quiet import turn_off_telemetry
from adaptpo.models.packing import RowPacking
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


def trl_trainer(setting: Setting, model: Any, reference: Any, rows: list[dict[str, str]], **own: Any) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    turn_off_telemetry()
    # A computed reference needs no second model.
    given = {} if own.get("precompute_ref_log_probs") else {"ref_model": reference}
    with redirect_stderr(StringIO()), tempfile.TemporaryDirectory() as out:
        return DPOTrainer(
            model=model,
            **({"ref_model": reference} | given),
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


def step_times(trainer: Any) -> list[float]:
    """Trains once, from the model as it is, and drops the optimizer's state, so that several trainers share a GPU."""
    times = StepTimes()
    trainer.add_callback(times)
    trainer.remove_callback(PrinterCallback)
    if not trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_disable()
    if isinstance(trainer, PreferenceTrainer):
        trainer.method.start_iteration(Iteration(0, 1))
    trainer.train()
    trainer.remove_callback(times)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    trainer.model.zero_grad()
    gc.collect()
    return times.taken


def in_turns(trainers: dict[str, Any], setting: Setting) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    times: dict[str, list[float]] = {name: [] for name in trainers}
    peaks: dict[str, float | None] = {}
    for _ in range(setting.repeats):
        for name, trainer in trainers.items():
            if setting.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            times[name] += step_times(trainer)
            peaks[name] = torch.cuda.max_memory_allocated() / 1e9 if setting.device == "cuda" else None
    return times, peaks


def dpo(setting: Setting) -> Iterator[Row]:
    """DPO on the same tokens: eight pairs a step, prompts and responses of 256 tokens."""
    model, reference = setting.model(), setting.model(shared=False)
    prompt, response = setting.short(PROMPT), setting.short(RESPONSE)
    rows = preference_texts(BATCH * STEPS, prompt, response)
    trainers = {name: trl_trainer(setting, model, reference, rows, **own) for name, own in TRL_SETTINGS.items()}
    groups = groups_of(trainers["TRL's default"])
    trainers[OURS] = our_trainer(setting, model, groups, methods.dpo())
    yield from rows_of("dpo", f"P={prompt}, R={response}", trainers, setting, groups)
    if find_spec("liger_kernel") and setting.device == "cuda":
        # The kernels replace the model's own layers, so they come last.
        trainers = {
            "TRL, no recomputation": trl_trainer(
                setting, model, reference, rows, gradient_checkpointing=False, **KERNELS
            ),
            OURS: our_trainer(setting, model, groups, methods.dpo(), **KERNELS),
        }
        yield from rows_of("dpo, Liger kernels", f"P={prompt}, R={response}", trainers, setting, groups)


def rows_of(
    section: str, case: str, trainers: dict[str, Any], setting: Setting, groups: list[PromptGroup]
) -> Iterator[Row]:
    times, peaks = in_turns(trainers, setting)
    passes = group_passes(groups[:BATCH])
    operations = 3 * forward_flops(trainers[OURS].model, passes)
    for name, taken in times.items():
        rates = {"tflops": operations / median(taken) / 1e12, "tokens_per_second": passes.tokens / median(taken)}
        yield row(section, case, name, taken, peaks[name], **(rates if name == OURS else {}))


def metapo(setting: Setting) -> Iterator[Row]:
    """DPO; MetaPO without updates; MetaPO with an update after each step. Eight held-out pairs an update."""
    model = setting.model()
    groups = setting.groups(PROMPT, RESPONSE, pairs=1, tokens=BATCH * STEPS * (PROMPT + 2 * RESPONSE))
    weighed = [with_token_reference(group) for group in groups]
    makers: dict[str, Callable[[], Any]] = {
        "DPO": lambda: our_trainer(setting, model, groups, methods.dpo()),
        "MetaPO, no update": lambda: weighing(setting, model, weighed, None),
        "MetaPO, K = 1": lambda: weighing(setting, model, weighed, 1),
    }
    yield from metapo_rows(setting, {name: make() for name, make in makers.items()})


def weighing(setting: Setting, model: Any, groups: list[PromptGroup], interval: int | None) -> PreferenceTrainer:
    method = methods.metapo(meta_interval=interval)
    return our_trainer(setting, model, groups, method, validation=groups[:BATCH])


def metapo_rows(setting: Setting, trainers: dict[str, Any]) -> Iterator[Row]:
    times, peaks = in_turns(trainers, setting)
    step, still, moving = (median(times[name]) for name in trainers)
    for name, taken in times.items():
        overheads = {f"percent_at_{k}": 100 * ((still + (moving - still) / k) / step - 1) for k in (50, 100)}
        yield row("metapo", f"P={PROMPT}, R={RESPONSE}", name, taken, peaks[name], **overheads)
