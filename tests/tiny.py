"""Tiny tokenizers, models and data, built in code."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<pad>", "<bos>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def byte_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte, no merges; `<|end|>` ends a turn and is the end-of-sequence token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(SPECIAL + alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[3:],
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
FAMILIES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def tiny_config(tokenizer: PreTrainedTokenizerFast, family: str = "llama", **overrides: Any) -> Any:
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    extra = {"head_dim": 8} if family == "qwen3" else {}
    return FAMILIES[family](vocab_size=len(tokenizer), **(SIZES | tokens | extra | overrides))


def tiny_model(tokenizer: PreTrainedTokenizerFast, family: str = "llama", seed: int = 0, **kw: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_config(tokenizer, family, **kw), dtype=torch.float32)


def save_policy(folder: Path, chat: bool = True, family: str = "llama", seed: int = 0, **sizes: int) -> str:
    tokenizer = byte_tokenizer(chat)
    tiny_model(tokenizer, family, seed, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_reward_model(folder: Path, seed: int = 1, num_labels: int = 1) -> str:
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = tiny_config(tokenizer, num_labels=num_labels)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


WORDS = ["red", "blue", "cat", "dog", "sun", "sea", "tea", "ice"]


def preference_rows(count: int, seed: int = 0, chat: bool = True) -> list[dict[str, Any]]:
    """Prompts ask for a word; the chosen response names it, the rejected one another."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        right, wrong = rng.sample(WORDS, 2)
        texts = (f"say {right} {number}", right, f"{wrong} no" if number % 3 else wrong)
        roles = ("user", "assistant", "assistant")
        keys = ("prompt", "chosen", "rejected")
        values = [[{"role": r, "content": t}] if chat else t for r, t in zip(roles, texts, strict=True)]
        rows.append(dict(zip(keys, values, strict=True)) | {"answer": right})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def two_rewards(prompts: list, completions: list, **columns: Any) -> list[list[float]]:
    """One for vowels and one for being short."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    vowels = vowel_reward(prompts, completions)
    return [[vowel, -len(set(text)) - 0.1 * vowel] for vowel, text in zip(vowels, texts, strict=True)]


def vowel_reward(prompts: list, completions: list, **columns: Any) -> list[float]:
    """A reward that fresh responses of a random model differ in."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [sum(text.count(v) for v in "aeiou") - 0.01 * len(text) for text in texts]
