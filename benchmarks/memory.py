"""Memory of the process that runs MetaAPO, by phase, against the number of prompts.

Each number of prompts is a run of its own in a process of its own, on prompts and responses of a few bytes. Measured is
the peak of anonymous memory, sampled 50 times a second: what the process holds and the system cannot drop. Pages of
mapped files are not in it: the system drops them when it needs the memory.

Up to `--real` prompts a tiny model does everything. Beyond, functions stand in for what costs processor time and holds
nothing: tokenizer, forward passes of reference and scores, generation. Reading, writing, selection, annotation (by a
function), pairing, shuffling, batching and training with its checkpoints are always those of a run; `--steps` ends the
training of larger runs after that many optimizer steps. Measured are the opening, which goes through all prompts, and
the first of three iterations, which goes through a third of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from head import resident
from material import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.choices.learners.temporal import TemporalLearner
from adaptpo.data.tokenization import TokenizedPair
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.models.inference import PromptedPair, TokenLogps
from adaptpo.pipeline.loop import run_iteration, run_opening
from adaptpo.run.directory import RunDirectory
from adaptpo.training.prompt_group_trainer import load_method, save_method
from adaptpo.types import PairBatch, PairLogps, PreferenceExample, Prompt, Response

MIB = 2**20
HISTORY = "MetaPO's history"
SETTINGS: dict[str, Any] = {
    "num_iterations": 3,
    "warmup_epochs": 0,
    "shard_size": 1024,
    "max_prompt_length": 32,
    "generation": {"max_new_tokens": 4},
    "show_progress": False,
}
TRAINING = {"per_device_train_batch_size": 64, "save_steps": 50, "use_cpu": True}


class Meter:
    """Peaks of anonymous memory (bytes) and seconds of processor time, by phase."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        peaks, over, started = [resident("RssAnon")], threading.Event(), time.process_time()

        def watch() -> None:
            while not over.wait(0.02):
                peaks.append(resident("RssAnon"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            seconds = round(time.process_time() - started, 1)
            self.found[phase] = {"bytes": max(peaks), "seconds": seconds}
            print(f"  {phase:28s} {max(peaks) / MIB:7.0f} MiB {seconds:8.1f} s", flush=True)

    def phase_of(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def measured(run: RunDirectory, name: str, work: Callable[[], Any]) -> Any:
            with self.measure(name):
                return original(run, name, work)

        return measured


# What a run is made of


def write_data(path: Path, prompts: range) -> str:
    with path.open("w") as file:
        for number in prompts:
            file.write(f'{{"prompt": "p{number} ", "chosen": "a{number % 7}", "rejected": "b{number % 5}"}}\n')
    return str(path)


def write_model(folder: Path) -> str:
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(**sizes, **tokens)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [float(sum(map(ord, text)) % 11) for text in completions]


# Stand-ins


def tokenized(example: PreferenceExample, *_: Any, **__: Any) -> TokenizedPair:
    prompt, chosen, rejected = (list(str(text).encode()) for text in (example.prompt, example.chosen, example.rejected))
    return TokenizedPair(prompt, *(Response(bytes(ids).decode(), [*ids, 1]) for ids in (chosen, rejected)))


def logps_of(items: Sequence[PromptedPair]) -> PairLogps:
    sides = zip(*((len(pair.chosen.ids), len(pair.rejected.ids)) for _, pair in items), strict=True)
    chosen, rejected = (torch.tensor(lengths, dtype=torch.float32) for lengths in sides)
    noise = torch.tensor([prompt.id % 97 / 97 for prompt, _ in items])
    sums = (-3 * chosen - noise, -3 * rejected, chosen, rejected, -3 * chosen, -3 * rejected)
    return PairLogps(*sums, shared=torch.stack(sums[:2], dim=1))


def evaluated(model: Any, pad_id: int, items: Sequence[PromptedPair], *_: Any, **__: Any) -> PairLogps:
    return logps_of(items)


def evaluated_tokens(*arguments: Any, **_: Any) -> tuple[PairLogps, list[TokenLogps]]:
    return evaluated(*arguments), []


class Answering:
    def generate(self, prompts: Sequence[Prompt], count: int, seeds: Sequence[int]) -> list[list[Response]]:
        return [[answer(seed + number) for number in range(count)] for seed in seeds]


def answer(seed: int) -> Response:
    text = f"{seed % 1000:03d}"
    return Response(text, [*text.encode(), 1])


@contextmanager
def answering(*_: Any) -> Iterator[Answering]:
    yield Answering()


PHASES = "adaptpo.pipeline.phases"
STAND_INS: dict[str, Any] = {
    "adaptpo.pipeline.reading.tokenize_pair": tokenized,
    f"{PHASES}.score.evaluate_pairs": evaluated,
    f"{PHASES}.reference.evaluate_tokens": evaluated_tokens,
    "adaptpo.pipeline.generator.generating": answering,
}


@contextmanager
def patched(replacements: dict[str, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, value in replacements.items():
            stack.enter_context(patch(name, value))
        yield


# One number of prompts


def align(folder: Path, prompts: int, meter: Meter, real: bool, steps: int | None, sets: int) -> None:
    training = TRAINING | ({} if steps is None else {"max_steps": steps})
    trainer = AlignmentTrainer(
        model=write_model(folder / "model"),
        args=AlignmentConfig(output_dir=str(folder / "run"), **SETTINGS, training=training),
        method=methods.metaapo(num_generations=2),
        train_dataset=[write_data(folder / f"data{n}.jsonl", range(n, prompts, sets)) for n in range(sets)],
        reward_funcs=reward,
    )
    measured = {"adaptpo.run.directory.RunDirectory.phase": meter.phase_of(RunDirectory.phase)}
    with patched(measured | ({} if real else STAND_INS)), trainer.open() as context:
        run_opening(context)
        run_iteration(context, 0)


def remember(folder: Path, prompts: int, meter: Meter, together: int = 4096) -> None:
    """MetaPO's history of all pairs: written pair by pair, saved and read again."""
    method = methods.metapo()
    learner = next(learner for learner in method.learners() if isinstance(learner, TemporalLearner))
    with meter.measure(HISTORY):
        for start in range(0, prompts, together):
            learner.observe(observed(start, min(start + together, prompts)))
            learner.update(lambda rows: rows)
        save_method(method, folder)
        load_method(method, folder)


def observed(start: int, end: int) -> PairBatch:
    ids, zeros, ones = torch.arange(start, end), torch.zeros(end - start), torch.ones(end - start)
    whole = torch.ones(end - start, dtype=torch.long)
    places = torch.arange(end - start)
    return PairBatch(ids, places, whole, 0 * whole, zeros, ones, ones, torch.zeros(end - start, 2), divergence=zeros)


def peaks(prompts: int, real: bool, steps: int | None, where: Path | None, sets: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    quiet_libraries()
    gc.freeze()  # Collections would go through all that was imported, again and again.
    meter = Meter()
    with tempfile.TemporaryDirectory(dir=where) as folder:
        align(Path(folder), prompts, meter, real, steps, sets)
        remember(Path(folder), prompts, meter)
    return {"prompts": prompts, "stand_ins": not real, "steps": steps, "phases": meter.found}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Peaks in MiB, in Markdown: a row a phase, a column a number of prompts."""
    names = list(dict.fromkeys(name for result in results for name in result["phases"]))
    lines = [["phase", *(f"{result['prompts']:,}" for result in results)], ["---"] * (len(results) + 1)]
    for name in names:
        cells = [result["phases"].get(name) for result in results]
        lines.append([name, *("" if cell is None else f"{cell['bytes'] / MIB:.0f}" for cell in cells)])
    highest = [max(cell["bytes"] for cell in result["phases"].values()) for result in results]
    lines.append(["highest", *(f"{value / MIB:.0f}" for value in highest)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--real", type=int, default=10**4, help="the largest run without stand-ins")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of runs with stand-ins")
    parser.add_argument("--where", type=Path, help="a folder on a disk with room for the runs (2 kB a prompt)")
    parser.add_argument("--sets", type=int, default=1, help="data sets that the prompts come from")
    parser.add_argument("--json", type=Path, help="write the peaks to this file")
    options = parser.parse_args()
    results = []
    for prompts in options.prompts:
        print(f"{prompts:,} prompts", flush=True)
        real = prompts <= options.real
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            results.append(
                pool.apply(peaks, (prompts, real, None if real else options.steps, options.where, options.sets))
            )
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
