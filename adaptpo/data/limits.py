"""The longest prompt and response of a run, in tokens, and how much of a text has to be read to see that it is longer.

A row of megabytes costs no more than one that is just too long, and comes out as if its whole text had been encoded: it
is left out, or its response is cut. (The ids of a response can differ only where a tokenizer looks back over more than
`UNSURE` tokens: Unigram, in a word without end.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from adaptpo.data.encoding import encode_rendered
from adaptpo.data.problems import RowProblem

PROMPT_TOO_LONG = "prompt longer than max_prompt_length"
NO_ROOM = "prompt leaves no room for a response within max_length"
STOP_TOKEN_INSIDE = "a stop token stands inside a response"
SEVERAL_TURNS_CUT = "a response of several turns is longer than max_completion_length or max_length"
CHARACTERS = 16
"""Characters per token of the first piece: most texts within their limit are shorter, and encoded once."""
UNSURE = 64
"""Tokens at the end of a piece that the text behind it may change."""


@dataclass(frozen=True)
class Limits:
    """Maximum numbers of tokens of a prompt, a response, and both together."""

    prompt: int | None
    completion: int | None
    both: int | None

    @property
    def decisive(self) -> int | None:
        """A prompt with more tokens is left out."""
        return self.both if self.prompt is None else self.prompt

    def room(self, prompt_ids: list[int]) -> int | None:
        """Maximum number of tokens of a response. Raises RowProblem if the prompt is too long."""
        if self.prompt is not None and len(prompt_ids) > self.prompt:
            raise RowProblem(f"{PROMPT_TOO_LONG} ({self.prompt})")
        if self.both is None:
            return self.completion
        room = self.both - len(prompt_ids)
        if room < 1:
            raise RowProblem(f"{NO_ROOM} ({self.both})")
        return room if self.completion is None else min(self.completion, room)


def beginning(tokenizer: PreTrainedTokenizerBase, text: str, count: int | None) -> str:
    """As much of a text as decides its first `count` tokens: well more than these, or the whole text."""
    if count is None:
        return text
    needed = max(count, 0) + UNSURE
    sizes = (CHARACTERS * needed * 4**step for step in range(len(text)))
    pieces = (text[:size] for size in takewhile(lambda size: size < len(text), sizes))
    return next((piece for piece in pieces if len(encode_rendered(tokenizer, piece)) > needed), text)


def stop_texts(tokenizer: PreTrainedTokenizerBase, stop_ids: Iterable[int]) -> list[str] | None:
    """The texts that become a stop token wherever they stand; None if other texts may as well."""
    added = [tokenizer.added_tokens_decoder.get(token) for token in stop_ids]
    texts = [token.content for token in added if token is not None and not token.normalized]
    return texts if len(texts) == len(added) else None


def end_of_response(text: str, stops: Iterable[str]) -> int:
    """The place behind the first stop token; the text's length without one. Raises RowProblem if anything but stop
    tokens and whitespace follows."""
    places = [(place, place + len(stop)) for stop in stops if (place := text.find(stop)) >= 0]
    end = min(places)[1] if places else len(text)
    tail = text[end:]
    for stop in stops:
        tail = tail.replace(stop, "")
    if tail.strip():
        raise RowProblem(STOP_TOKEN_INSIDE)
    return end


def decisive(tokenizer: PreTrainedTokenizerBase, text: str, stop_ids: frozenset[int], room: int | None) -> str:
    """The text of a response, or as much of it as decides its first `room` tokens. Raises RowProblem if a stop token
    stands inside it."""
    found = beginning(tokenizer, text, room)
    if found is text or (stops := stop_texts(tokenizer, stop_ids)) is None:
        return text
    return text[: min(len(found), end_of_response(text, stops))]


def refuse_endless(tokenizer: PreTrainedTokenizerBase, conversation: str, limit: int | None) -> None:
    if (words := conversation.rstrip()) is not beginning(tokenizer, words, limit):
        raise RowProblem(SEVERAL_TURNS_CUT)
