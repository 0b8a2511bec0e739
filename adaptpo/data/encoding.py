"""Encodes a text as the model reads it: with the special tokens that belong to it, and none twice."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

WORD_START = "\u2581"
ANCHORS = ("\n", ".", "0", "\u00e9")


def encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # A rendered conversation already has its special tokens; the tokenizer's own would double BOS.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def tokenize_continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the ids of a text that continues another one."""
    ids = encode_rendered(tokenizer, text)
    if not ids or not str(tokenizer.convert_ids_to_tokens(ids[0])).startswith(WORD_START):
        return ids
    # SentencePiece puts a space before every text, some tokenizers even before a space, but none after an anchor.
    for anchor in ANCHORS:
        before, together = encode_rendered(tokenizer, anchor), encode_rendered(tokenizer, anchor + text)
        if together[: len(before)] == before:
            return together[len(before) :]
    return ids


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns ids with the special tokens that the tokenizer puts before a text, without those it puts after it."""
    ids, plain = list(tokenizer(text)["input_ids"]), encode_rendered(tokenizer, text)
    before = next((start for start in range(len(ids) - len(plain) + 1) if ids[start : start + len(plain)] == plain), 0)
    ids = ids[: before + len(plain)]
    while before and len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]  # the text itself began with BOS
    return ids
