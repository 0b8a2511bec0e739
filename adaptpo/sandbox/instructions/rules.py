"""Rules for the form of an answer. Each can be asked for, checked, graded leniently, and enforced by an editor.

This module imports neither torch nor transformers: it can check text anywhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NUMBERS = {"one": 1, "two": 2}


@dataclass(frozen=True)
class Kind:
    """A kind of rule. A rule of it has one of the `values`; `{}` stands for it in the texts.

    `wordings`: how prompts ask for it; `held_out_wording`: how held-out prompts do. `kept` checks an answer strictly,
    `credit` grades it in [0, 1] as a hurried reader would, `edit` returns the answer with the rule enforced.
    """

    values: tuple[str, ...]
    wordings: tuple[str, ...]
    held_out_wording: str
    kept: Callable[[str, str], bool]
    credit: Callable[[str, str], float]
    edit: Callable[[str, str], str]


@dataclass(frozen=True)
class Rule:
    """A rule of a prompt, such as `words 10`."""

    kind: str
    value: str = ""

    @classmethod
    def parse(cls, text: str) -> Rule:
        return cls(*text.split(" ", 1))

    def __str__(self) -> str:
        return f"{self.kind} {self.value}".strip()

    def wording(self, rng: random.Random, held_out: bool) -> str:
        kind = KINDS[self.kind]
        return (kind.held_out_wording if held_out else rng.choice(kind.wordings)).format(self.value)

    def kept(self, text: str) -> bool:
        return KINDS[self.kind].kept(text.strip(), self.value)

    def credit(self, text: str) -> float:
        return KINDS[self.kind].credit(text.strip(), self.value)

    def edit(self, text: str) -> str:
        return KINDS[self.kind].edit(text.strip(), self.value)


def words(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text)


def sentences(text: str) -> list[str]:
    """The sentences with their marks; what follows the last mark is not one."""
    return re.findall(r"[^.!?]*\w[^.!?]*[.!?]+", text)


def without_end(text: str) -> str:
    return text.rstrip(" .!?,;:\n")


def shortened(text: str, value: str) -> str:
    """The first words, with a full stop."""
    found = list(re.finditer(r"\S+", text))[: int(value)]
    return f"{without_end(text[: found[-1].end()])}." if found else text


def begun(text: str, value: str) -> str:
    """With the word in front, and what was the first word in lowercase unless it is a name or `I`."""
    return f"{value}, {text[:1].lower()}{text[1:]}" if text[1:2].islower() or text[1:2] == " " else f"{value}, {text}"


def capital_share(text: str) -> float:
    letters = [letter for letter in text if letter.isalpha()]
    return sum(letter.isupper() for letter in letters) / max(1, len(letters))


def first_word(text: str) -> str:
    return (words(text) or [""])[0].lower()


KINDS: dict[str, Kind] = {
    "begin": Kind(
        values=("Honestly", "Well", "Briefly", "Actually", "Surely"),
        wordings=('Begin your answer with the word "{}".', 'The first word of your answer must be "{}".'),
        held_out_wording='Let "{}" be the first word of your answer.',
        kept=lambda text, value: first_word(text) == value.lower(),
        credit=lambda text, value: 1.0 if first_word(text) == value.lower() else 0.5 * (value.lower() in text.lower()),
        edit=begun,
    ),
    "sentences": Kind(
        values=("one", "two"),
        wordings=("Answer in exactly {} sentence(s).", "Write exactly {} sentence(s)."),
        held_out_wording="Your answer must have exactly {} sentence(s).",
        kept=lambda text, value: len(sentences(text)) == NUMBERS[value],
        credit=lambda text, value: 1 / (1 + abs(len(sentences(text)) - NUMBERS[value])),
        edit=lambda text, value: "".join(sentences(text)[: NUMBERS[value]]).strip() or text,
    ),
    "words": Kind(
        values=("8", "10", "12", "15"),
        wordings=("Use at most {} words.", "Do not use more than {} words."),
        held_out_wording="Your answer may have {} words or fewer.",
        kept=lambda text, value: len(words(text)) <= int(value),
        credit=lambda text, value: max(0.0, 1 - max(0, len(words(text)) - int(value)) / int(value)),
        edit=shortened,
    ),
    "commas": Kind(
        values=("",),
        wordings=("Do not use any commas.", "Write without commas."),
        held_out_wording="There must be no comma in your answer.",
        kept=lambda text, value: "," not in text,
        credit=lambda text, value: 1 / (1 + text.count(",")),
        edit=lambda text, value: text.replace(",", ""),
    ),
    "end": Kind(
        values=("!", "?"),
        wordings=('End your answer with "{}".', 'The last character must be "{}".'),
        held_out_wording='Finish your answer with "{}".',
        kept=lambda text, value: text.endswith(value),
        credit=lambda text, value: 1.0 if text.endswith(value) else 0.5 * (value in text),
        edit=lambda text, value: without_end(text) + value,
    ),
    "lowercase": Kind(
        values=("",),
        wordings=("Write in lowercase letters only.", "Do not use any capital letters."),
        held_out_wording="All letters of your answer must be lowercase.",
        kept=lambda text, value: text == text.lower(),
        credit=lambda text, value: max(0.0, 1 - 10 * capital_share(text)),
        edit=lambda text, value: text.lower(),
    ),
    "capitals": Kind(
        values=("",),
        wordings=("Write in capital letters only.", "Use only uppercase letters."),
        held_out_wording="All letters of your answer must be capitals.",
        kept=lambda text, value: text == text.upper(),
        credit=lambda text, value: capital_share(text),
        edit=lambda text, value: text.upper(),
    ),
}
"""The kinds in the order in which an editor enforces them. A short answer alone may lose its second sentence."""

EXCLUSIVE = ({"lowercase", "capitals"},)


def draw_rules(rng: random.Random, count: int = 2) -> tuple[Rule, ...]:
    """Rules of different kinds that one answer can keep together, in the order of `KINDS`."""
    while True:
        kinds = rng.sample(list(KINDS), count)
        if not any(pair <= set(kinds) for pair in EXCLUSIVE):
            return tuple(Rule(kind, rng.choice(KINDS[kind].values)) for kind in KINDS if kind in kinds)


def edited(text: str, rules: Sequence[Rule]) -> str:
    """The answer with these rules enforced, which come in the order of `KINDS`."""
    for rule in rules:
        text = rule.edit(text)
    return text
