"""A text without end costs what a long one does, and comes out as if the whole of it had been read."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from adaptpo.data import limits
from adaptpo.data.limits import NO_ROOM, PROMPT_TOO_LONG, SEVERAL_TURNS_CUT, STOP_TOKEN_INSIDE
from adaptpo.data.tokenization import TokenizedPair, prompt_tokens, stop_token_ids, tokenize_pair
from adaptpo.types import PreferenceExample
from tests.tiny import CHAT_TEMPLATE, SPECIAL, byte_tokenizer

CORPUS = [
    "the cat said that the dog was there",
    "aaaa bbbb abab   spaces\n\nlines",
    "this is that, it's 1234 or 99",
] * 3
TRAINED = {"vocab_size": 320, "special_tokens": [*SPECIAL, "<unk>"]}
ENDLESS = {
    "words": "the cat said that it's 1234 there\n" * 100,
    "one word": "a" * 3000,
    "ab": "ab" * 1500,
    "spaces": "the" + " " * 3000 + "end",
    "blank": " \n" * 1500,
    "emoji": "\U0001f600\u200d\u2764\ufe0f" * 700,
    "accents": "e\u0301\u0301" * 1000,
    "stop at the end": "the dog " * 300 + "<|end|>",
    "stop before spaces": "the dog<|end|>" + " " * 1000,
    "stop far inside": "the dog " * 300 + "<|end|> said",
    "stop near the beginning": "that<|end|>" + " " * 3000 + "was",
    "many stops": "the cat" + "<|end|>" * 300,
}

ONE_WORD = ("one word", "ab")
"""Unigram weighs all ways to read a word without end, so that the end decides between equals at the beginning."""


@cache
def trained(kind: str) -> Any:
    """A tokenizer that merges, as its kind does."""
    if kind == "bytes":
        return byte_tokenizer()
    raw, trainer = {
        "bpe": lambda: (
            Tokenizer(models.BPE()),
            trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **TRAINED),
        ),
        "unigram": lambda: (Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token="<unk>", **TRAINED)),
        "wordpiece": lambda: (Tokenizer(models.WordPiece(unk_token="<unk>")), trainers.WordPieceTrainer(**TRAINED)),
    }[kind]()
    raw.pre_tokenizer = {
        "bpe": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "unigram": pre_tokenizers.Metaspace(),
        "wordpiece": pre_tokenizers.BertPreTokenizer(),
    }[kind]
    raw.decoder = {"bpe": decoders.ByteLevel(), "unigram": decoders.Metaspace(), "wordpiece": decoders.WordPiece()}[
        kind
    ]
    if kind == "wordpiece":
        raw.normalizer = normalizers.BertNormalizer()  # Strips accents: a token may cover any number of characters.
    raw.train_from_iterator(CORPUS, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<|end|>")
    found.chat_template = CHAT_TEMPLATE
    return found


def example(prompt: str, chosen: str, chat: bool) -> PreferenceExample:
    texts = (prompt, chosen, "no")
    if not chat:
        return PreferenceExample(0, *texts)
    roles = ("user", "assistant", "assistant")
    return PreferenceExample(0, *([{"role": r, "content": t}] for r, t in zip(roles, texts, strict=True)))


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram", "wordpiece"])
def test_endless_text_comes_out_as_if_it_had_been_read(kind: str, chat: bool, monkeypatch: Any) -> None:
    tokenizer = trained(kind)
    several: list[tuple[PreferenceExample, Any]] = []
    for name, text in ENDLESS.items():
        if kind == "unigram" and name in ONE_WORD:
            continue
        several += [(example("say it", text, chat), room) for room in ((50, 40, None), (50, None, 99), (50, 1, 99))]
        several += [(example(text, "yes", chat), room) for room in ((60, 40, None), (None, 40, 90))]

    def found() -> list[TokenizedPair | str]:
        stops = stop_token_ids(tokenizer)
        return [tokenize_pair(one, tokenizer, *two, stops, max_length=both) for one, (*two, both) in several]

    monkeypatch.setattr(limits, "CHARACTERS", 10**9)
    whole = found()
    monkeypatch.setattr(limits, "CHARACTERS", 2)
    assert found() == whole
    if kind == "bytes":
        reasons = {STOP_TOKEN_INSIDE, f"{PROMPT_TOO_LONG} (60)", f"{NO_ROOM} (90)"}
        assert reasons <= {one for one in whole if isinstance(one, str)}
        assert sum(isinstance(one, TokenizedPair) and not one.chosen.ended for one in whole) >= 20


class Counting:
    """A tokenizer that counts the characters which it encodes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.characters = tokenizer, 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self.tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
@pytest.mark.parametrize("place", ["prompt", "response"])
def test_ten_megabytes_cost_no_more_than_their_beginning(place: str, chat: bool) -> None:
    tokenizer = Counting(byte_tokenizer())
    endless = "word and more " * 750_000
    row = example(endless, "yes", chat) if place == "prompt" else example("say", endless, chat)
    found = tokenize_pair(row, tokenizer, 400, 200, stop_token_ids(tokenizer), max_length=512)  # type: ignore[arg-type]
    if place == "prompt":
        assert found == f"{PROMPT_TOO_LONG} (400)"
        prompt_tokens(tokenizer, row.prompt, limit=400)  # type: ignore[arg-type]
    else:
        assert isinstance(found, TokenizedPair) and len(found.chosen.ids) == 200 and not found.chosen.ended
    assert tokenizer.characters < 50_000


def test_endless_response_of_several_turns_is_left_out_unread() -> None:
    tokenizer = Counting(byte_tokenizer())
    turns = [
        [
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": text},
        ]
        for text in ("word " * 200_000, "no")
    ]
    row = PreferenceExample(0, [{"role": "user", "content": "say"}], *turns)
    stops = stop_token_ids(tokenizer)  # type: ignore[arg-type]
    assert tokenize_pair(row, tokenizer, 400, 200, stops, all_turns=True) == SEVERAL_TURNS_CUT  # type: ignore[arg-type]
    assert tokenizer.characters < 50_000
