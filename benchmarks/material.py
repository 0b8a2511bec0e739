"""Models, tokenizers and prompt groups to measure with, built in code."""

from __future__ import annotations

import random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adaptpo.models.shared_prompt.attention import share_prompts
from adaptpo.types import PreferencePair, Prompt, PromptGroup, Response

VOCABULARY = 8192
SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
}


def model_16m(shared: bool = False, **overrides: Any) -> nn.Module:
    """A random Llama of 16.8 million parameters, a quarter of them embeddings as in models of a billion parameters."""
    torch.manual_seed(0)
    settings = SHAPE | {"vocab_size": VOCABULARY, "tie_word_embeddings": True} | overrides
    model = LlamaForCausalLM(LlamaConfig(**settings)).float()
    if shared:
        assert share_prompts(model)
    return model


def random_ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(8, VOCABULARY) for _ in range(count)]


def prompt_groups(
    count: int, prompt: int, response: int, pairs: int = 2, ragged: bool = False, seed: int = 0
) -> list[PromptGroup]:
    """Groups of one prompt and `pairs` pairs; ragged responses have between a quarter and all of `response` tokens."""
    rng = random.Random(seed)

    def reply() -> Response:
        return Response("", random_ids(rng, rng.randint(response // 4, response) if ragged else response))

    def pair(number: int, index: int) -> PreferencePair:
        source: Any = ("offline", "online")[index]
        return PreferencePair(number, source, reply(), reply(), reference_logps=(-10.0, -11.0))

    return [
        PromptGroup(Prompt(number, "", random_ids(rng, prompt)), tuple(pair(number, i) for i in range(pairs)))
        for number in range(count)
    ]


def byte_tokenizer(size: int = 0) -> PreTrainedTokenizerFast:
    """One token a byte, and unused ones up to `size` in all, as many as a model's embedding has rows."""
    special = ["<pad>", "<end>"]
    tokens = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [f"<unused {number}>" for number in range(len(tokens), size)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")


def preference_texts(count: int, prompt: int, response: int, seed: int = 0) -> list[dict[str, str]]:
    """Texts of that many bytes; a response's end-of-sequence token is its last."""
    rng = random.Random(seed)

    def letters(length: int) -> str:
        return "".join(rng.choice("abcdefghij") for _ in range(length))

    lengths = {"prompt": prompt, "chosen": response - 1, "rejected": response - 1}
    return [{name: letters(length) for name, length in lengths.items()} for _ in range(count)]
