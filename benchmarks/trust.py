"""What it costs that a run can be trusted: deterministic operations in training, and checksums of what is written.

`deterministic` is a training step as adaptpo takes it on a CPU. The share of checksums is the CPU time that a whole run
spends on hashing, on listing, and on the checks before reading.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from material import byte_tokenizer, model_16m, preference_texts, prompt_groups
from measure import Ratio, alternate, arguments, compare, finish, show

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.distributed.repeatable import repeatable
from adaptpo.models.collate import GroupCollator
from adaptpo.models.packing import RowPacking
from adaptpo.run.manifest import Manifest
from adaptpo.training import checkpoints
from adaptpo.training.step import preference_step


def step(groups: int, prompt: int, response: int) -> Callable[[], None]:
    model, method = model_16m(shared=True), methods.metaapo()
    batch = GroupCollator(0, RowPacking(shared_prompts=True))(prompt_groups(groups, prompt, response))
    return lambda: preference_step(model, batch, method, groups).loss.backward()


def determinism(groups: int, prompt: int, response: int, repeats: int) -> Ratio:
    any_order = step(groups, prompt, response)

    def deterministic() -> None:
        with repeatable(torch.get_num_threads()):
            any_order()

    times = alternate({"deterministic": deterministic, "any order": any_order}, repeats)
    ratio = compare(f"step, {groups} x P={prompt}, R=4x{response}", "deterministic", "any order", times)
    show(ratio, times)
    return ratio


@contextmanager
def clocked(spent: dict[str, float]) -> Iterator[None]:
    """Adds up the seconds of CPU time in what the checks call, each call once."""
    inside: list[str] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if inside:
                return function(*args, **kwargs)
            inside.append(name)
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                inside.pop()
                spent[name] = spent.get(name, 0.0) + time.process_time() - started

        return call

    methods_of_manifest = ("refresh", "add", "append", "remove", "fault", "of_phase")
    patches = [patch.object(Manifest, name, timed(name, getattr(Manifest, name))) for name in methods_of_manifest]
    patches.append(patch.object(checkpoints, "checksum", timed("checkpoint", checkpoints.checksum)))
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def share_of_checks(rows: int, folder: Path) -> None:
    """The share of a run of MetaAPO with a model of 16.8 million parameters."""
    policy = folder / "policy"
    model_16m().save_pretrained(policy)
    byte_tokenizer(8192).save_pretrained(policy)
    trainer = AlignmentTrainer(
        model=str(policy),
        args=AlignmentConfig(
            output_dir=str(folder / "run"),
            num_iterations=2,
            generation={"max_new_tokens": 64},
            training={"per_device_train_batch_size": 4, "save_steps": 8},
            show_progress=False,
        ),
        method=methods.metaapo(num_generations=2),
        train_dataset=preference_texts(rows, 96, 96),
        reward_funcs=letters,
    )
    spent: dict[str, float] = {}
    started = time.process_time()
    with clocked(spent):
        trainer.train()
    taken = time.process_time() - started
    size = sum(file.stat().st_size for file in (folder / "run").rglob("*") if file.is_file())
    checks = sum(spent.values())
    print(f"run of {rows} pairs: {taken:.1f} s of CPU time, {size / 2**20:.0f} MiB; checks {checks:.2f} s, ", end="")
    print(f"{checks / taken:.2%} of it ({', '.join(f'{name} {seconds:.2f} s' for name, seconds in spent.items())})")


def letters(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    return [float(len(set(str(text)))) for text in completions]


def main() -> None:
    options = arguments(__doc__ or "")
    quiet_libraries()
    repeats = 3 if options.quick else 7
    ratios = [determinism(*case, repeats) for case in ((1, 190, 300), (4, 190, 64), (8, 64, 64))]
    with tempfile.TemporaryDirectory() as folder:
        share_of_checks(32 if options.quick else 128, Path(folder))
    finish(ratios, options, "Deterministic training steps")


if __name__ == "__main__":
    main()
