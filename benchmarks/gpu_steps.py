"""Parts of a training step on a GPU: shared prompts in their forms, the head in its forms, waits and launches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from gpu_material import Row, Setting, forward_flops, group_passes, peak_of, row, without_varlen
from measure import alternate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from adaptpo import methods
from adaptpo.models import head
from adaptpo.models.collate import GroupCollator
from adaptpo.models.inference import to_device
from adaptpo.models.logps import token_logps
from adaptpo.models.packing import PADDED, RowPacking, token_batches
from adaptpo.training.step import preference_step
from adaptpo.types import PromptGroup

SHARED = RowPacking(shared_prompts=True, chunked_head=True)
APART = replace(PADDED, chunked_head=True)
FORMS = VARLEN, BUCKETS, PADDED_ROWS = "one call a layer", "buckets", "padded rows"


def training_step(model: nn.Module, batches: Sequence[dict], prompts: int) -> Callable[[], None]:
    """Forward and backward of the passes of a step, as the trainer makes them, without the optimizer."""
    method = methods.metaapo()

    def step() -> None:
        for batch in batches:
            preference_step(model, batch, method, prompts, chunked_head=True).loss.backward()
        model.zero_grad()

    return step


def passes(groups: Sequence[PromptGroup], rows: RowPacking, setting: Setting) -> list[dict]:
    rows = replace(rows, max_tokens=setting.tokens)
    collate = GroupCollator(0, rows)
    device = torch.device(setting.device)
    return [to_device(collate([groups[i] for i in some]), device) for some in token_batches(groups, rows)]


def group_step(setting: Setting) -> Iterator[Row]:
    """Two pairs to a prompt, responses of 300 tokens, in passes of the same number of tokens."""
    model = setting.prepared()
    for prompt in (190, 1000):
        groups = setting.groups(prompt, 300, pairs=2)
        one = training_step(model, passes(groups, SHARED, setting), len(groups))
        padded = training_step(model, passes(groups, APART, setting), len(groups))

        def buckets(step: Callable[[], None] = one) -> None:
            with without_varlen():
                step()

        variants = {VARLEN: one, BUCKETS: buckets, PADDED_ROWS: padded}
        times = alternate(variants, setting.repeats)
        operations = 3 * forward_flops(model, group_passes(groups))
        for name, work in variants.items():
            peak, taken = peak_of(work, setting.device), times[name]
            rate = operations / sorted(taken)[len(taken) // 2]
            yield row("group", f"P={prompt}, R=4x300", name, taken, peak, tflops=rate / 1e12)


def exactness(setting: Setting) -> Iterator[Row]:
    """Log-probs and gradients of each form in the run's precision against padded rows in float32."""
    model, groups = setting.model(), setting.groups(190, 300, pairs=2, tokens=2048)
    exact = measured(model, groups, PADDED, replace(setting, bf16=False))
    with without_varlen():
        forms = {BUCKETS: measured(model, groups, SHARED, setting)}
    forms |= {VARLEN: measured(model, groups, SHARED, setting), PADDED_ROWS: measured(model, groups, APART, setting)}
    for name, (logps, gradients) in forms.items():
        nats = (logps - exact[0]).abs().max().item()
        apart = [(a - b).norm() ** 2 for a, b in zip(gradients, exact[1], strict=True)]
        norm = torch.stack([g.norm() ** 2 for g in exact[1]]).sum().sqrt()
        error = (torch.stack(apart).sum().sqrt() / norm).item()
        yield row("exactness", "P=190, R=4x300", name, [0.0], nats_a_response=nats, gradient_error=error)


def measured(
    model: nn.Module, groups: Sequence[PromptGroup], rows: RowPacking, setting: Setting
) -> tuple[Tensor, list[Tensor]]:
    sums = []
    for batch in passes(groups, replace(rows, max_tokens=1 << 30), setting):
        with setting.precision():
            some = token_logps(model, batch, rows.chunked_head).sum(dim=1)
        (torch.linspace(-1, 1.5, len(some), device=some.device) * some).sum().backward()
        sums.append(some.detach())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(sums), gradients


def head_forms(setting: Setting) -> Iterator[Row]:
    """Log-probs of a pass's tokens from the states that reach the head, forward and backward."""
    model = setting.model()
    layer = model.get_output_embeddings()
    count = setting.tokens // setting.scale
    states = torch.randn(count, model.config.hidden_size, device=setting.device, requires_grad=True)
    targets = torch.randint(model.config.vocab_size, (count,), device=setting.device)
    size = head.tokens_at_once(model)

    def chunks() -> Tensor:
        fits, head.fused_head_fits = head.fused_head_fits, lambda *_: False
        try:
            return head.head_logps(layer, states, targets, size)
        finally:
            head.fused_head_fits = fits

    forms: dict[str, Callable[[], Tensor]] = {
        "whole logits": lambda: head.chosen_logps(layer(states), targets),
        "recomputed chunks": chunks,
        "TRL's kernel": lambda: head.fused_logps(layer, states, targets),
        **torch_forms(layer, states, targets),
    }

    def step(logps: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            with setting.precision():
                total = logps().sum()
            total.backward()
            states.grad = layer.weight.grad = None

        return run

    variants = {name: step(form) for name, form in forms.items()}
    times = alternate(variants, setting.repeats)
    for name, work in variants.items():
        yield row("head", f"{count} tokens", name, times[name], peak_of(work, setting.device))


def torch_forms(layer: nn.Linear, states: Tensor, targets: Tensor) -> dict[str, Callable[[], Tensor]]:
    """PyTorch's own chunked form, where this PyTorch has it."""
    fused = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if fused is None:
        return {}
    options = torch.nn.LinearCrossEntropyOptions()
    return {
        "linear_cross_entropy": lambda: (
            -fused(states, layer.weight, targets, reduction="none", options=options)
            if options
            else -cross_entropy(linear(states, layer.weight), targets, reduction="none")
        )
    }


def waits_and_launches(setting: Setting) -> Iterator[Row]:
    """How often a step waits for the GPU, and how many kernels it launches."""
    if setting.device != "cuda":
        return
    model = setting.prepared()
    groups = setting.groups(190, 300, pairs=2)
    batches = passes(groups, SHARED, setting)
    step = training_step(model, batches, len(groups))
    for name, context in ((VARLEN, nullcontext()), (BUCKETS, without_varlen())):
        with context:
            step()
            yield row("launches", "P=190, R=4x300", name, [0.0], waits=waits(step), launches=launches(step))


def waits(work: Callable[[], object]) -> int:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def launches(work: Callable[[], object]) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    return sum(event.count for event in profiler.key_averages() if event.device_type.name == "CUDA")
