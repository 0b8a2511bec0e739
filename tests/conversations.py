"""Generated preference rows with what breaks tokenization: empty texts, other scripts, outer whitespace, digits, and
words that look like special tokens or template code."""

from __future__ import annotations

from random import Random
from typing import Any

Row = dict[str, Any]
Turn = dict[str, str]

WORDS = [
    *("the sea", "tea", "Why", "is it so?", "It is 12345.", "yes", "no", "3.14", "don't", "a, b; c", "x = [1, 2]"),
    *("caf\u00e9", "e\u0301t\u00e9", "\u65e5\u672c\u8a9e", "\u0645\u0631\u062d\u0628\u0627"),
    *("\U0001f642", "\U0001f469\u200d\U0001f680"),
]
ODD = [
    *("<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>", "<s>", "</s>", "<eos>", "[INST]", "<|eot_id|>"),
    *("<think>", "</think>", "<end_of_turn>", "{{ messages }}", "{% if x %}", "\\n"),
    *("\u00a0", "\u200b", "\ufffd", "\x00"),
]
SPACE = (" ", " ", " ", "  ", "\n", "\n\n", "\t", "")
OUTER = ("", "", "", "", " ", "\n", "  \n")
CHATS, IMPLICIT, STRINGS = "chats", "chats that repeat their prompt", "strings"


def text(rng: Random) -> str:
    """Most are a few words; one in thirty is empty or blank."""
    if rng.random() < 1 / 30:
        return rng.choice(OUTER)
    pieces = [rng.choice(ODD) if rng.random() < 0.03 else rng.choice(WORDS) for _ in range(rng.randint(1, 5))]
    spaced = "".join(piece + rng.choice(SPACE) for piece in pieces).strip()
    return rng.choice(OUTER) + spaced + rng.choice(OUTER)


def turn(role: str, rng: Random) -> Turn:
    return {"role": role, "content": text(rng)}


def prompt(rng: Random) -> list[Turn]:
    """Up to three exchanges, one in four after a system turn, and a user's turn."""
    system = [turn("system", rng)] if rng.random() < 0.25 else []
    exchanges = [turn(role, rng) for _ in range(rng.choice([0, 0, 1, 2])) for role in ("user", "assistant")]
    return [*system, *exchanges, turn("user", rng)]


def chat(rng: Random) -> Row:
    return {"prompt": prompt(rng), "chosen": [turn("assistant", rng)], "rejected": [turn("assistant", rng)]}


def implicit(rng: Random) -> Row:
    said = prompt(rng)
    return {side: [*said, turn("assistant", rng)] for side in ("chosen", "rejected")}


def strings(rng: Random) -> Row:
    return {"prompt": text(rng), "chosen": text(rng), "rejected": text(rng)}


FORMS = {CHATS: (chat, 0.7), IMPLICIT: (implicit, 0.1), STRINGS: (strings, 0.2)}


def conversations(count: int, seed: int = 0) -> dict[str, list[Row]]:
    """`count` rows, by their form."""
    rng = Random(seed)
    return {form: [make(rng) for _ in range(round(count * share))] for form, (make, share) in FORMS.items()}
