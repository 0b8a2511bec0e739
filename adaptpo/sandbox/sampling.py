"""Sampling responses from a sandbox policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adaptpo.progress import progress_bar
from adaptpo.sandbox.world import user

MAX_NEW_TOKENS = 32


def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    per_prompt: int,
    seed: int,
    batch_rows: int = 512,
    progress: bool = False,
) -> list[list[str]]:
    """`per_prompt` responses to each prompt at temperature 1, as text; at most 32 tokens each.

    Deterministic for a given seed; torch's global random state is left as it was.
    """
    step = max(1, batch_rows // per_prompt)
    batches = []
    with torch.random.fork_rng(), progress_bar("sandbox: samples", len(prompts), "prompt", progress) as bar:
        torch.manual_seed(seed)
        for start in range(0, len(prompts), step):
            batches.append(_sample_batch(model, tokenizer, prompts[start : start + step], per_prompt))
            bar.update(len(prompts[start : start + step]))
    return [responses for batch in batches for responses in batch]


@torch.inference_mode()
def _sample_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], per_prompt: int
) -> list[list[str]]:
    conversations = [user(prompt) for prompt in prompts]
    inputs = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    output = model.eval().generate(
        **inputs, do_sample=True, top_k=0, num_return_sequences=per_prompt, max_new_tokens=MAX_NEW_TOKENS
    )
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[i : i + per_prompt] for i in range(0, len(texts), per_prompt)]
