"""Training steps of adaptpo against the MetaAPO authors' way and against TRL's `DPOTrainer`.

The authors' way: every response of a group in a padded row with its prompt, logits of all positions, and a forward of
the reference in every step. A step is forward and backward of one micro-batch; the optimizer's part is the same for
all. "charged" adds the reference forward that adaptpo makes once a run: here to each step, as if a run had one epoch.
TRL's and adaptpo's whole trainers are compared, with optimizers and data loaders. TRL's default computes activations
twice and the reference in every step; it is also measured without the one, and without both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from statistics import median
from typing import Any

import torch
from material import byte_tokenizer, model_16m, preference_texts, prompt_groups
from measure import Ratio, alternate, arguments, compare, finish, show
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import PrinterCallback, TrainingArguments

from adaptpo import methods
from adaptpo.distributed.quiet import quiet_libraries, turn_off_telemetry
from adaptpo.models.collate import GroupCollator, pad
from adaptpo.models.logps import pair_logps
from adaptpo.models.packing import PADDED, RowPacking
from adaptpo.training.preference_trainer import PreferenceTrainer
from adaptpo.training.step import preference_step
from adaptpo.types import PreferencePair, Prompt, PromptGroup, Response

SHARED = RowPacking(shared_prompts=True)
AUTHORS = "authors' way"


def full_logps(model: nn.Module, ids: Tensor, mask: Tensor, response: Tensor) -> Tensor:
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    logps = logits.log_softmax(dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (logps * response[:, 1:]).sum(dim=1)


def padded_batch(groups: Sequence[PromptGroup]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and response mask of chosen rows followed by rejected rows."""
    members = [(group.prompt.ids, pair) for group in groups for pair in group.pairs]
    rows = [(ids, pair.chosen.ids) for ids, pair in members] + [(ids, pair.rejected.ids) for ids, pair in members]
    return (
        pad([p + r for p, r in rows], 0),
        pad([[1] * len(p + r) for p, r in rows], 0),
        pad([[0] * len(p) + [1] * len(r) for p, r in rows], 0),
    )


def authors_step(model: nn.Module, reference: nn.Module, groups: Sequence[PromptGroup]) -> None:
    batch = padded_batch(groups)
    with torch.no_grad():
        reference_chosen, reference_rejected = full_logps(reference, *batch).chunk(2)
    chosen, rejected = full_logps(model, *batch).chunk(2)
    margins = 0.1 * ((chosen - reference_chosen) - (rejected - reference_rejected))
    (-logsigmoid(margins) / 2).sum().div(len(groups)).backward()


def our_step(model: nn.Module, groups: Sequence[PromptGroup], rows: RowPacking, method: Any) -> None:
    preference_step(model, GroupCollator(0, rows)(groups), method, len(groups)).loss.backward()


@torch.inference_mode()
def reference_pass(model: nn.Module, groups: Sequence[PromptGroup]) -> None:
    pair_logps(model, GroupCollator(0, SHARED)(groups))


def step_ratios(case: str, groups: Sequence[PromptGroup], repeats: int) -> list[Ratio]:
    plain, reference, shared = model_16m(), model_16m(), model_16m(shared=True)
    method = methods.metaapo()
    variants: dict[str, Callable[[], None]] = {
        AUTHORS: lambda: authors_step(plain, reference, groups),
        "padded rows": lambda: our_step(plain, groups, PADDED, method),
        "adaptpo": lambda: our_step(shared, groups, SHARED, method),
        "reference pass": lambda: reference_pass(shared, groups),
    }
    times = alternate(variants, repeats)
    times["adaptpo, charged"] = [sum(both) for both in zip(times["adaptpo"], times["reference pass"], strict=True)]
    pairs = [("adaptpo", AUTHORS), ("adaptpo, charged", AUTHORS), ("adaptpo", "padded rows")]
    return [shown(case, variant, against, times) for variant, against in pairs]


def shown(case: str, variant: str, against: str, times: dict[str, list[float]]) -> Ratio:
    ratio = compare(case, variant, against, times)
    show(ratio, times)
    return ratio


TRAINING: dict[str, Any] = {
    "report_to": "none", "save_strategy": "no", "logging_steps": 1000, "disable_tqdm": True, "max_steps": 4,
    "per_device_train_batch_size": 4, "learning_rate": 1e-6, "dataloader_pin_memory": False, "bf16": False,
}  # fmt: skip


def trl_trainer(out: str, rows: list[dict[str, str]], **settings: Any) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    turn_off_telemetry()
    with redirect_stderr(StringIO()):  # The bar of the reference pass.
        trainer = DPOTrainer(
            model=model_16m(),
            ref_model=model_16m(),
            args=DPOConfig(output_dir=out, **TRAINING, **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=byte_tokenizer(),
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def groups_of(trainer: Any) -> list[PromptGroup]:
    """The very tokens that TRL's trainer trains on."""
    groups = []
    for number, row in enumerate(trainer.train_dataset):
        sides = (Response("", list(row["chosen_ids"])), Response("", list(row["rejected_ids"])))
        pair = PreferencePair(number, "offline", *sides, reference_logps=(-10.0, -11.0))
        groups.append(PromptGroup(Prompt(number, "", list(row["prompt_ids"])), (pair,)))
    return groups


def our_trainer(out: str, groups: list[PromptGroup]) -> PreferenceTrainer:
    config = TrainingArguments(output_dir=out, remove_unused_columns=False, **TRAINING)
    method, tokenizer = methods.dpo(), byte_tokenizer()
    model = model_16m(shared=True)
    return PreferenceTrainer(model, config, groups, tokenizer, method, log=lambda *_: None, rows=SHARED)


TRL_SETTINGS: dict[str, dict[str, Any]] = {
    "TRL's default": {},
    "TRL, no recomputation": {"gradient_checkpointing": False},
    "TRL, precomputed reference": {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
}


def trl_ratios(case: str, prompt: int, response: int, repeats: int) -> list[Ratio]:
    rows = preference_texts(16, prompt, response)
    with tempfile.TemporaryDirectory() as out:
        trainers = {name: trl_trainer(out, rows, **settings) for name, settings in TRL_SETTINGS.items()}
        groups = groups_of(trainers["TRL's default"])
        assert {len(group.prompt.ids) for group in groups} == {prompt}
        ours = our_trainer(out, groups)
        variants: dict[str, Callable[[], object]] = {name: trainer.train for name, trainer in trainers.items()}
        variants |= {"adaptpo": ours.train, "reference pass": lambda: reference_pass(ours.model, groups)}
        times = alternate(variants, repeats)
    times["adaptpo, charged"] = [sum(both) for both in zip(times["adaptpo"], times["reference pass"], strict=True)]
    rates = {name: len(rows) / median(taken) for name, taken in times.items()}
    print(f"{case:28s} pairs/s: " + ", ".join(f"{name} {rates[name]:.1f}" for name in (*TRL_SETTINGS, "adaptpo")))
    pairs = [("adaptpo", name) for name in TRL_SETTINGS] + [("adaptpo, charged", "TRL's default")]
    return [shown(case, variant, against, times) for variant, against in pairs]


def main() -> None:
    options = arguments(__doc__ or "")
    quiet_libraries()
    repeats = 2 if options.quick else 7
    ratios: list[Ratio] = []
    for prompt in (190, 1000):
        ratios += step_ratios(f"P={prompt}, R=4x300", prompt_groups(1, prompt, 300), repeats)
    if not options.quick:
        ratios += step_ratios("P=190, R=4x75..300, 2 groups", prompt_groups(2, 190, 300, ragged=True), repeats)
    length = 192 if options.quick else 1024
    for name, share in (("1:3", 1 / 4), ("1:1", 1 / 2), ("3:1", 3 / 4), ("8:1", 8 / 9)):
        prompt = round(length * share)
        groups = prompt_groups(1, prompt, length - prompt)
        ratios += step_ratios(f"prompt:response {name}, {length}", groups, repeats)
    ratios += step_ratios("P=16, R=4x4..16, 8 groups", prompt_groups(8, 16, 16, ragged=True), repeats)
    for prompt, response in ((64, 64),) if options.quick else ((32, 96), (64, 64), (96, 32), (114, 14)):
        ratios += trl_ratios(f"DPO, P={prompt}, R={response}", prompt, response, repeats)
    finish(ratios, options, "Training step, random Llama of 16M parameters")


if __name__ == "__main__":
    main()
