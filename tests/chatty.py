"""A tiny chat model whose responses are letters and whose token ids a text therefore tells."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer

LETTERS = "abcdefgh "


def chatty_tokenizer(adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """`adds_bos`: it puts BOS before every text, as Llama's does."""
    tokenizer = byte_tokenizer()
    if adds_bos:
        bos = ("<bos>", tokenizer.bos_token_id)
        tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    return tokenizer


def chatty_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """A Markov chain over letters: what follows a token depends on that token alone, and differs with `seed`."""
    size = -(-len(tokenizer) // 64) * 64  # vLLM's kernels take multiples of 64, here and below.
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        head_dim=64, max_position_embeddings=512, pad_token_id=0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    said = [*tokenizer(LETTERS.replace(" ", ""), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), size))
        model.lm_head.weight.fill_(-2.0)
        # A one-hot vector leaves the last norm with the length of the square root of its size.
        model.lm_head.weight[said] = torch.randn(len(said), size, generator=generator) * 1.5 / size**0.5
    return model


def save_chatty(folder: Path, seed: int = 0, adds_bos: bool = False) -> str:
    tokenizer = chatty_tokenizer(adds_bos)
    chatty_model(tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
