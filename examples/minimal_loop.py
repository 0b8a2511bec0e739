"""MetaAPO on one screen: score, select, generate, annotate, pair, train, learn, in plain PyTorch over adaptpo's pieces.

    adaptpo sandbox build --out sandbox
    python examples/minimal_loop.py sandbox/recipe.yaml

The result equals that of `adaptpo train sandbox/recipe.yaml`: same selection, same pairs, same weights. The library
adds what surrounds the loop: a run directory that resumes, several processes, other methods, evaluation, a report.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments, get_scheduler

from adaptpo.annotation.base import Annotator
from adaptpo.annotation.build import Workplace, build_annotator
from adaptpo.choices.iteration import Iteration
from adaptpo.choices.method import Method
from adaptpo.choices.pairing import Candidates, NoPair
from adaptpo.choices.selection import ScoredPrompts
from adaptpo.config.recipe import Recipe, load_recipe
from adaptpo.config.reward import reward_parts
from adaptpo.generation.base import Sampling
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.methods.build import build_method
from adaptpo.models.collate import GroupCollator
from adaptpo.models.inference import PromptedPair, evaluate_pairs
from adaptpo.models.loading import load_causal_lm, load_tokenizer
from adaptpo.models.packing import RowPacking
from adaptpo.models.shared_prompt.attention import share_prompts
from adaptpo.pipeline.data_inputs import DataInputs
from adaptpo.pipeline.reading import Reader
from adaptpo.seeds import seed_for, uniform_for
from adaptpo.training.step import preference_step
from adaptpo.types import Dropped, PairLogps, PreferencePair, Prompt, PromptGroup, Response

CPU = TrainingArguments(use_cpu=True)


class MinimalLoop:
    """A run in memory. `selected` and `pairs` hold, by iteration, prompt ids and the pairs that were trained on."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.seed, self.size = recipe, recipe.seed, recipe.shard_size
        self.tokenizer = load_tokenizer(recipe.model)
        self.method: Method = build_method(recipe)
        self.reader = Reader.of(recipe, recipe.model, self.tokenizer, self.method)
        self.packing = RowPacking(shared_prompts=True, chunked_head=True, max_tokens=recipe.max_tokens_per_batch)
        self.policy, self.reference = (load_causal_lm(recipe.model, {}) for _ in range(2))
        assert share_prompts(self.policy) and share_prompts(self.reference)
        wanted = recipe.generation
        sampling = (wanted.temperature, wanted.top_p, wanted.top_k, wanted.max_new_tokens)
        self.sampling = Sampling(*sampling, self.reader.stop_ids)
        place = Workplace(CPU.device, recipe.max_tokens_per_batch, None)
        self.annotator: Annotator = build_annotator(reward_parts(recipe.reward), place)
        self.offline = self.with_reference(list(self.read_pairs()))
        self.method.reset(self.seed)
        self.selected: list[list[int]] = []
        self.pairs: list[list[PreferencePair]] = []

    def read_pairs(self) -> Iterator[PromptedPair]:
        data, number = DataInputs.of(self.recipe.data), 0
        assert data is not None
        for _, example in self.reader.examples(data.mixture().samples(self.seed)):
            found = example if isinstance(example, Dropped) else self.reader.tokenized(number, example)
            if not isinstance(found, Dropped):
                prompt, pair = found
                assert pair is not None
                yield prompt, pair
                number += 1

    def shards(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        return (items[start : start + self.size] for start in range(0, len(items), self.size))

    def logps(self, model: nn.Module, items: Sequence[PromptedPair]) -> Iterator[PairLogps]:
        pad = self.tokenizer.pad_token_id
        return (evaluate_pairs(model, pad, shard, CPU, self.packing) for shard in self.shards(items))

    def with_reference(self, items: Sequence[PromptedPair]) -> list[PromptedPair]:
        found = [
            row for part in self.logps(self.reference, items) for row in zip(part.chosen, part.rejected, strict=True)
        ]
        kept = [(float(chosen), float(rejected)) for chosen, rejected in found]
        return [(prompt, replace(pair, reference_logps=own)) for (prompt, pair), own in zip(items, kept, strict=True)]

    def run(self) -> nn.Module:
        epochs = self.method.warmup_epochs if self.recipe.warmup_epochs is None else self.recipe.warmup_epochs
        if epochs:
            self.train("warmup", self.offline, self.method.warmup(), epochs)
        count, total = self.recipe.num_iterations, len(self.offline)
        for number in range(count):
            part = [item for item in self.offline if item[0].id * count // total == number]
            self.iterate(number, part)
        return self.policy

    def iterate(self, number: int, part: Sequence[PromptedPair]) -> None:
        """Algorithm 1 of the MetaAPO paper on one part of the data."""
        self.method.start_iteration(Iteration(number, self.recipe.num_iterations))
        margins = torch.cat([self.method.objective.margin(found) for found in self.logps(self.policy, part)])
        chance = self.method.selection.probability(ScoredPrompts(len(part), margins)).double().tolist()
        draws = [uniform_for(self.seed, "select", number, prompt.id) for prompt, _ in part]
        chosen = [prompt for (prompt, _), p, u in zip(part, chance, draws, strict=True) if u >= 1 - p]
        answers = {prompt.id: own for shard in self.shards(chosen) for prompt, own in self.answer(number, shard)}
        made = [self.method.pairing.pairs(replace(pair, iteration=number), answers.get(p.id)) for p, pair in part]
        items = [
            (p, pair) for (p, _), some in zip(part, made, strict=True) if not isinstance(some, NoPair) for pair in some
        ]
        fresh = iter(self.with_reference([item for item in items if item[1].source != "offline"]))
        items = [item if item[1].source == "offline" else next(fresh) for item in items]
        self.selected.append([prompt.id for prompt in chosen])
        self.pairs.append([pair for _, pair in items])
        epochs = self.recipe.training.get("num_train_epochs", self.method.num_train_epochs)
        self.train(f"iterations/{number}", items, self.method, epochs)

    def answer(self, number: int, prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, Candidates]]:
        """K fresh responses to each prompt, with their rewards."""
        engine = TransformersGenerator(self.policy, self.tokenizer, self.sampling, **self.in_process())
        seeds = [seed_for(self.seed, "generate", number, prompt.id) for prompt in prompts]
        answers: list[list[Response]] = engine.generate(prompts, self.method.pairing.num_generations, seeds)
        asked = [(prompt, response) for prompt, own in zip(prompts, answers, strict=True) for response in own]
        rewards = iter(self.annotator.rewards(asked))
        for prompt, own in zip(prompts, answers, strict=True):
            yield prompt, Candidates(prompt.id, number, tuple(own), tuple(next(rewards) for _ in own))

    def in_process(self) -> dict[str, Any]:
        return {"batch_size": self.recipe.generation.batch_size, "memory": self.recipe.generation.memory}

    def train(self, phase: str, items: Sequence[PromptedPair], method: Method, epochs: int) -> None:
        """Eq. 5 on whole prompt groups; after every optimizer step the meta-learner may learn (Eq. 6)."""
        pairs = [(prompt, [pair for _, pair in own]) for prompt, own in groupby(items, key=lambda item: item[0])]
        groups = [PromptGroup(prompt, tuple(own)) for prompt, own in pairs]
        settings, collate = self.recipe.training, GroupCollator(self.tokenizer.pad_token_id, self.packing)
        size = settings.get("per_device_train_batch_size", 8)
        steps = int(epochs) * -(-len(groups) // size)
        optimizer = torch.optim.AdamW(self.policy.parameters(), settings["learning_rate"], weight_decay=0.0, fused=True)
        kind, warmup = settings.get("lr_scheduler_type", "linear"), settings.get("warmup_steps", 0)
        schedule = get_scheduler(kind, optimizer, warmup, steps, settings.get("lr_scheduler_kwargs"))
        seed = seed_for(self.seed, "training", phase) % 2**31
        self.policy.train()
        for epoch in range(int(epochs)):
            order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed + epoch))
            for chosen in order.split(size):
                for batch in collate.batches([groups[index] for index in chosen.tolist()]):
                    step = preference_step(self.policy, batch, method, len(chosen), self.packing.chunked_head)
                    step.loss.backward()
                    method.observe(step.pairs)
                nn.utils.clip_grad_norm_(self.policy.parameters(), settings.get("max_grad_norm", 1.0))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                method.update(lambda rows: rows)


if __name__ == "__main__":
    loop = MinimalLoop(load_recipe(Path(sys.argv[1])))
    loop.run()
    for number, (selected, pairs) in enumerate(zip(loop.selected, loop.pairs, strict=True)):
        print(f"iteration {number}: {len(selected)} prompts selected, {len(pairs)} pairs, {loop.method.metrics()}")
