"""Sampling responses from a sandbox policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adaptpo.data.tokenization import stop_token_ids, tokenize_prompt
from adaptpo.generation.base import Sampling
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.run.progress import progress_bar
from adaptpo.sandbox.world import plain_text, user
from adaptpo.seeds import seed_for
from adaptpo.types import Prompt

MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn: by default from the policy's own distribution."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def of(cls, generation: Mapping[str, Any]) -> Decoding:
        """That of a run, whose `generation` section this is."""
        return cls(**{each.name: generation[each.name] for each in fields(cls) if each.name in generation})

    def __str__(self) -> str:
        """What differs from the default, as a part of a file's name."""
        changed = {each.name: getattr(self, each.name) for each in fields(self)}
        return "".join(f"_{name}-{value:g}" for name, value in changed.items() if value != getattr(OWN, name))

    def sampling(self, tokenizer: PreTrainedTokenizerBase) -> Sampling:
        values = (self.temperature, self.top_p, self.top_k)
        return Sampling(*values, max_new_tokens=MAX_NEW_TOKENS, stop_ids=stop_token_ids(tokenizer))


OWN = Decoding()


def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    per_prompt: int,
    seed: int,
    batch_rows: int = 512,
    progress: bool = False,
    decoding: Decoding = OWN,
) -> list[list[str]]:
    """`per_prompt` responses to each prompt, as text; at most 32 tokens each.

    Deterministic for a given seed; torch's global random state does not change.
    """
    step = max(1, batch_rows // per_prompt)
    generator = TransformersGenerator(model, tokenizer, decoding.sampling(tokenizer), batch_size=step)
    tokenized = [Prompt(i, text, tokenize_prompt(tokenizer, user(text))) for i, text in enumerate(prompts)]
    groups = []
    with progress_bar("sandbox: samples", len(prompts), "prompt", progress) as bar:
        for start in range(0, len(prompts), step):
            batch = tokenized[start : start + step]
            seeds = [seed_for(seed, "sandbox samples", prompt.id) for prompt in batch]
            groups += generator.generate(batch, per_prompt, seeds)
            bar.update(len(batch))
    return [[plain_text(response.text) for response in group] for group in groups]
