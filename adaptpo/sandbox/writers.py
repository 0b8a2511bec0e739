"""Writers of offline responses, which stand for models of different quality and with different habits."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from adaptpo.sandbox.world import (
    END,
    FILLERS,
    OPENERS,
    SEPARATORS,
    TOPIC_OF,
    TOPICS,
    Task,
    parse_prompt,
    response_words,
)

QUALITY_SPREAD = 0.15
HABIT_RATE = 0.75
MAX_ITEMS = 11
MAX_RUN_ON = 16


@dataclass(frozen=True)
class Writer:
    """A source of responses.

    `quality` in [0, 1] is the mean probability of getting each rewarded feature right. `filler` and `liked` (the
    favourite words of each topic) are habits that the true reward ignores; they set the writers' distributions apart.
    """

    name: str
    quality: float
    filler: str
    liked: dict[str, tuple[str, ...]]

    def with_habits_of(self, other: Writer) -> Writer:
        """A writer with this one's quality and the habits of another."""
        return replace(self, filler=other.filler, liked=other.liked)

    def respond(self, prompt: str, rng: random.Random) -> str:
        """One response to `prompt`. Its quality is the writer's, plus or minus up to 0.15."""
        quality = self.quality + rng.uniform(-QUALITY_SPREAD, QUALITY_SPREAD)
        return self.respond_with(min(1.0, max(0.0, quality)), parse_prompt(prompt), rng)

    def respond_with(self, quality: float, task: Task, rng: random.Random) -> str:
        """One response of exactly this `quality` (1: every rewarded feature is right)."""
        words = [_style_word(OPENERS, task.style, quality, rng)]
        if rng.random() < HABIT_RATE:
            words.append(self.filler)
        words += self._list(quality, task, rng)
        if rng.random() < 0.5 * (1 - quality):
            words.insert(rng.randrange(len(words) + 1), rng.choice(response_words()))
        if rng.random() >= 0.3 * (1 - quality):
            words.append(END)
        return " ".join(words)

    def _list(self, quality: float, task: Task, rng: random.Random) -> list[str]:
        habitual_separator = _style_word(SEPARATORS, task.style, quality, rng)
        words = [self._item(quality, task.topic, rng)]
        for _ in range(_length(quality, task.count, rng) - 1):
            slip = rng.random() < 0.2 * (1 - quality)
            words.append(rng.choice(tuple(SEPARATORS.values())) if slip else habitual_separator)
            repeat = rng.random() < 0.25 * (1 - quality)
            words.append(words[-2] if repeat else self._other_item(words[-2], quality, task.topic, rng))
        return words

    def _item(self, quality: float, topic: str, rng: random.Random) -> str:
        if rng.random() >= 0.25 + 0.75 * quality:
            topic = rng.choice(tuple(TOPICS))
        return rng.choice(self.liked[topic] if rng.random() < HABIT_RATE else TOPICS[topic])

    def _other_item(self, previous: str, quality: float, topic: str, rng: random.Random) -> str:
        item = self._item(quality, topic, rng)
        while item == previous:
            item = self._item(quality, topic, rng)
        return item


def writers(qualities: tuple[float, ...], rng: random.Random) -> list[Writer]:
    """One writer per quality, each with its own filler and favourite words."""
    return [
        Writer(f"writer-{quality:g}", quality, FILLERS[i % len(FILLERS)], _likes(rng))
        for i, quality in enumerate(qualities)
    ]


def _likes(rng: random.Random) -> dict[str, tuple[str, ...]]:
    return {topic: tuple(rng.sample(items, len(items) // 2)) for topic, items in TOPICS.items()}


def _style_word(words: dict[str, str], style: str, quality: float, rng: random.Random) -> str:
    if rng.random() < quality:
        return words[style]
    return rng.choice([word for other, word in words.items() if other != style])


def _length(quality: float, asked: int, rng: random.Random) -> int:
    if rng.random() < quality:
        return asked
    lengths = [n for n in range(max(1, asked - 3), min(MAX_ITEMS, asked + 3) + 1) if n != asked]
    return rng.choice(lengths)


def corrupt(response: str, rng: random.Random) -> str:
    """`response` with one to three random edits, with items of other topics, or with words after its end."""
    words = response.split()
    rng.choice((scramble, leave_topic, run_on))(words, rng)
    return " ".join(words)


def scramble(words: list[str], rng: random.Random) -> None:
    """Makes one to three random edits: replace, drop, insert, or cut the tail."""
    for _ in range(rng.randint(1, 3)):
        _edit(words, rng)


def _edit(words: list[str], rng: random.Random) -> None:
    place = rng.randrange(len(words) + 1)
    kind = rng.choice(("replace", "drop", "insert", "cut"))
    if kind == "insert":
        words.insert(place, rng.choice(response_words()))
    elif place < len(words):
        if kind == "cut":
            del words[max(1, place) :]
        else:
            words[place : place + 1] = [rng.choice(response_words())] if kind == "replace" else []


def leave_topic(words: list[str], rng: random.Random) -> None:
    """Replaces some or all of the items with words of other topics."""
    places = [place for place, word in enumerate(words) if word in TOPIC_OF]
    for place in rng.sample(places, rng.randint(min(1, len(places)), len(places))):
        words[place] = rng.choice([item for item, topic in TOPIC_OF.items() if topic != TOPIC_OF[words[place]]])


def run_on(words: list[str], rng: random.Random) -> None:
    """Appends up to 16 words after the end, most of which repeat the one before."""
    for _ in range(rng.randint(1, MAX_RUN_ON)):
        words.append(words[-1] if words and rng.random() < HABIT_RATE else rng.choice(response_words()))
