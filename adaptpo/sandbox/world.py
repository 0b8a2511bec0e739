"""The sandbox's language and its true reward.

A prompt asks for a list: how many items, of which topic, in which style. A response opens in that style, lists items
with that style's separator and closes with a full stop. `true_reward` reads only the text, so a reward model can
in principle learn all of it.

This module imports neither torch nor transformers: it can score text anywhere.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptpo.errors import AnnotationError
from adaptpo.types import Message, Text

TOPICS: dict[str, tuple[str, ...]] = {
    "fruits": ("apple", "banana", "cherry", "fig", "grape", "lemon", "mango", "pear"),
    "animals": ("bear", "cat", "dog", "fox", "horse", "lion", "mouse", "wolf"),
    "colors": ("black", "blue", "brown", "green", "pink", "red", "white", "yellow"),
    "tools": ("axe", "chisel", "drill", "hammer", "pliers", "saw", "shovel", "wrench"),
    "cities": ("cairo", "delhi", "lima", "london", "oslo", "paris", "rome", "tokyo"),
    "drinks": ("beer", "cocoa", "coffee", "juice", "milk", "tea", "water", "wine"),
    "sports": ("boxing", "cricket", "golf", "hockey", "rowing", "rugby", "soccer", "tennis"),
    "trees": ("ash", "birch", "cedar", "elm", "maple", "oak", "pine", "willow"),
}
COUNTS: dict[str, int] = {"few": 3, "several": 5, "many": 8}
OPENERS: dict[str, str] = {"plain": "here", "formal": "certainly", "casual": "sure"}
SEPARATORS: dict[str, str] = {"plain": ",", "formal": ";", "casual": "and"}
FILLERS: tuple[str, ...] = ("indeed", "well", "look", "now")
END = "."

GREETINGS: tuple[str, ...] = ("please", "kindly", "hello", "hi", "greetings", "hey")
VERBS: tuple[str, ...] = ("list", "name", "give", "write", "mention", "recall")
AUDIENCES: tuple[str, ...] = ("friends", "students", "children", "visitors", "colleagues", "doctors", "poets", "pilots")
OCCASIONS: tuple[str, ...] = ("today", "tonight", "tomorrow", "later", "soon", "again")
PROMPT_SPACE = len(GREETINGS) * len(VERBS) * len(COUNTS) * len(TOPICS) * len(AUDIENCES) * len(OPENERS) * len(OCCASIONS)

REPETITION_PENALTY = 0.3
JUNK_PENALTY = 0.1
CUT_PENALTY = 0.3

TOPIC_OF: dict[str, str] = {item: topic for topic, items in TOPICS.items() for item in items}
_ITEMS: tuple[str, ...] = tuple(TOPIC_OF)


def vocabulary() -> list[str]:
    """Every word of the world once, in a fixed order, without the tokenizer's special tokens."""
    groups = (OPENERS.values(), SEPARATORS.values(), (END,), FILLERS, _ITEMS, COUNTS, TOPICS, OPENERS)
    prompt_words = (GREETINGS, VERBS, AUDIENCES, OCCASIONS, ("for", "in", "style"))
    return list(dict.fromkeys(word for group in (*groups, *prompt_words) for word in group))


def response_words() -> list[str]:
    """The words that may occur in a response."""
    return [*OPENERS.values(), *SEPARATORS.values(), END, *FILLERS, *_ITEMS]


@dataclass(frozen=True)
class Task:
    """What a prompt asks for: `count` items (3, 5 or 8) of `topic` in `style`."""

    count: int
    topic: str
    style: str


@dataclass(frozen=True)
class ParsedResponse:
    """The parts of a response.

    `gaps` holds the separator between each two consecutive items, or None if it is missing or not alone. `misplaced`
    counts tokens that fit nowhere; `length` counts all tokens, the full stop included.
    """

    opener: str | None
    items: tuple[str, ...]
    gaps: tuple[str | None, ...]
    misplaced: int
    length: int
    ended: bool


@dataclass(frozen=True)
class RewardTerms:
    """The terms of the true reward, each a share in [0, 1] (`cut` is 0 or 1). 1 is best for the first four."""

    topic: float
    count: float
    opener: float
    separator: float
    repetition: float
    junk: float
    cut: float

    @property
    def total(self) -> float:
        """`(topic + count + (opener + separator) / 2) / 3 - 0.3 repetition - 0.1 junk - 0.3 cut`; at most 1."""
        merit = (self.topic + self.count + (self.opener + self.separator) / 2) / 3
        return merit - REPETITION_PENALTY * self.repetition - JUNK_PENALTY * self.junk - CUT_PENALTY * self.cut


def prompt_at(index: int) -> str:
    """The prompt number `index` of the `PROMPT_SPACE` prompts (a mixed-radix reading of the index)."""
    words = []
    for choices in (GREETINGS, VERBS, tuple(COUNTS), tuple(TOPICS), AUDIENCES, tuple(OPENERS), OCCASIONS):
        index, place = divmod(index, len(choices))
        words.append(choices[place])
    greeting, verb, count, topic, audience, style, occasion = words
    return f"{greeting} {verb} {count} {topic} for {audience} in {style} style {occasion}"


def sample_prompts(number: int, rng: random.Random) -> list[str]:
    """`number` different prompts, drawn uniformly without replacement.

    Raises `ValueError` if `number` exceeds `PROMPT_SPACE`.
    """
    if number > PROMPT_SPACE:
        raise ValueError(f"the world has {PROMPT_SPACE} prompts, not {number}; ask for fewer")
    return [prompt_at(index) for index in rng.sample(range(PROMPT_SPACE), number)]


def parse_prompt(prompt: str) -> Task:
    """The task that a prompt states. Raises `AnnotationError` if it is not a sandbox prompt."""
    words = prompt.split()
    count = next((word for word in words if word in COUNTS), None)
    topic = next((word for word in words if word in TOPICS), None)
    style = next((word for word in words if word in OPENERS), None)
    if count is None or topic is None or style is None:
        raise AnnotationError(
            f"not a sandbox prompt: {prompt!r}. The sandbox's true reward scores only prompts that name a count "
            f"({', '.join(COUNTS)}), a topic ({', '.join(TOPICS)}) and a style ({', '.join(OPENERS)})."
        )
    return Task(COUNTS[count], topic, style)


def parse(response: str) -> ParsedResponse:
    """Splits a response into its parts.

    An opener belongs at the first token, a filler after an opener, a separator between two items, and the full stop at
    the end. A token elsewhere, or a word that no response may contain, is misplaced.
    """
    tokens = response.split()
    ended = bool(tokens) and tokens[-1] == END
    body = tokens[:-1] if ended else tokens
    opener = body[0] if body and body[0] in OPENERS.values() else None
    start = int(opener is not None)
    start += int(start == 1 and len(body) > 1 and body[1] in FILLERS)
    items, gaps, misplaced = _read_items(body[start:])
    return ParsedResponse(opener, items, gaps, misplaced, len(tokens), ended)


def _read_items(tokens: Sequence[str]) -> tuple[tuple[str, ...], tuple[str | None, ...], int]:
    places = [place for place, token in enumerate(tokens) if token in TOPIC_OF]
    between = [tokens[left + 1 : right] for left, right in itertools.pairwise(places)]
    gaps = tuple(gap[0] if len(gap) == 1 and gap[0] in SEPARATORS.values() else None for gap in between)
    misplaced = len(tokens) - len(places) - sum(gap is not None for gap in gaps)
    return tuple(tokens[place] for place in places), gaps, misplaced


def reward_terms(prompt: str, response: str) -> RewardTerms:
    """The terms of the true reward of one response (both as plain text)."""
    task, parsed = parse_prompt(prompt), parse(response)
    items, gaps = parsed.items, parsed.gaps
    repeats = sum(left == right for left, right in itertools.pairwise(items))
    return RewardTerms(
        topic=_share(sum(TOPIC_OF[item] == task.topic for item in items), len(items)),
        count=max(0.0, 1 - abs(len(items) - task.count) / task.count),
        opener=float(parsed.opener == OPENERS[task.style]),
        separator=_share(sum(gap == SEPARATORS[task.style] for gap in gaps), len(gaps)),
        repetition=_share(repeats, len(gaps)),
        junk=_share(parsed.misplaced, parsed.length),
        cut=float(not parsed.ended),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def true_reward(prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float]:
    """The true reward of each completion; a reward function in TRL's sense.

    `prompts` and `completions` have the same length and hold plain strings or lists of chat messages. `columns` (every
    further column of the data, `completion_ids` and the like) is ignored. Rewards are at most 1, reached by a flawless
    response. Deterministic. Raises `AnnotationError` for a prompt from another world.
    """
    pairs = zip(prompts, completions, strict=True)
    return [reward_terms(plain_text(prompt), plain_text(completion)).total for prompt, completion in pairs]


def plain_text(text: Text) -> str:
    """The text itself, or the contents of its chat messages joined by spaces."""
    return text if isinstance(text, str) else " ".join(str(message["content"]) for message in text)


def user(text: str) -> list[Message]:
    """`text` as a conversation of one user message."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[Message]:
    """`text` as the assistant's single message."""
    return [{"role": "assistant", "content": text}]


def best_response(prompt: str) -> str:
    """A response whose true reward is 1."""
    task = parse_prompt(prompt)
    items = TOPICS[task.topic][: task.count]
    return f"{OPENERS[task.style]} {f' {SEPARATORS[task.style]} '.join(items)} {END}"
