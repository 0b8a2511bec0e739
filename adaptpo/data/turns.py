"""Tokenizes responses of several turns, and finds which of their tokens are the assistant's."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from adaptpo.data.conversation import joined, words_of
from adaptpo.data.encoding import encode_rendered
from adaptpo.data.templates import (
    TURNS_RENDERED_DIFFERENTLY,
    TemplateOptions,
    TemplateProblem,
    check_continues,
    render,
)
from adaptpo.types import Message

NO_END = "the chat template ends an assistant's turn with no token by which its end can be found"
STOP_TOKEN_IN_TURN = "a stop token stands inside a turn of a response"
MERGED = "the last tokens of the prompt merge with the first ones of a response of several turns"
WORD = re.compile(r"[a-zA-Z0-9]+")
NEEDS_FAST = "responses of several turns need a fast tokenizer, which tells where its tokens stand"


@dataclass(frozen=True)
class Encoded:
    """The ids of a response, and which of them the assistant says; None if all are."""

    ids: list[int]
    mask: list[bool] | None = None


def several_turns(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[Message],
    prompt_ids: list[int],
    response: list[Message],
    options: TemplateOptions,
    stop_ids: frozenset[int],
) -> Encoded:
    """The ids after the prompt. The mask is true from the generation prompt of each of the assistant's turns to the
    token that ends the turn.

    Raises:
        TemplateProblem: the begin or end of a turn cannot be found.
    """
    if not tokenizer.is_fast:
        raise TemplateProblem(NEEDS_FAST)
    conversation = joined(prompt, response)
    whole = _Rendered(tokenizer, render(tokenizer, conversation, options), stop_ids)
    own = [place for place, turn in enumerate(response) if turn["role"] == "assistant"]
    before = [prompt, *(joined(prompt, response[:place]) for place in own)]
    _, *opened = (_opened(tokenizer, turns, conversation, whole.text, options) for turns in before)
    if whole.ids[: len(prompt_ids)] != prompt_ids:
        raise TemplateProblem(MERGED)
    limits = [*opened[1:], len(whole.text)]
    mask = [False] * len(whole.ids)
    for place, begin, limit in zip(own, opened, limits, strict=True):
        between = response[place + 1] if place + 1 < len(response) else None
        span = whole.turn(words_of(response[place]), begin, limit, "" if between is None else words_of(between))
        mask[span] = [True] * len(mask[span])
    return Encoded(whole.ids[len(prompt_ids) :], mask[len(prompt_ids) :])


def _opened(
    tokenizer: PreTrainedTokenizerBase,
    before: list[Message],
    conversation: list[Message],
    text: str,
    options: TemplateOptions,
) -> int:
    """The place in the conversation's `text` where the turn after these begins."""
    opened = render(tokenizer, before, options, open_reply=True)
    check_continues(tokenizer, before, conversation, options, (opened, text), TURNS_RENDERED_DIFFERENTLY)
    return len(opened)


class _Rendered:
    """A rendered conversation with its tokens and their places."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, stop_ids: frozenset[int]) -> None:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        self.tokenizer, self.text, self.stop_ids = tokenizer, text, stop_ids
        self.ids = list(encoded["input_ids"])
        self.starts, self.ends = ([place[side] for place in encoded["offset_mapping"]] for side in (0, 1))

    def turn(self, words: str, begin: int, limit: int, following: str) -> slice:
        """The tokens of a turn that stands between two places of the text and is followed by other words."""
        if self.stop_ids.intersection(encode_rendered(self.tokenizer, words)):
            raise TemplateProblem(STOP_TOKEN_IN_TURN)
        first, last = bisect_left(self.starts, begin), bisect_left(self.starts, limit)
        end = self._next(self.stop_ids, first, last)
        if end is None and words.strip() in (said := self.text[begin:limit]):
            # Some templates end only the last turn with a stop token.
            spoken = begin + said.index(words.strip()) + len(words.strip())
            end = self._next(set(self.tokenizer.all_special_ids), bisect_left(self.starts, spoken), last)
        first_word = WORD.search(following)  # A template may trim or escape words.
        if end is None or (first_word and first_word[0] not in self.text[self.ends[end] : limit]):
            raise TemplateProblem(NO_END)
        return slice(first, end + 1)

    def _next(self, tokens: frozenset[int] | set[int], first: int, last: int) -> int | None:
        return next((index for index in range(first, last) if self.ids[index] in tokens), None)
