"""The preference that a judge's first token tells, and the order in which it sees two outputs."""

from __future__ import annotations

import random
from collections.abc import Mapping
from math import exp

FIRST, SECOND = "m", "M"
"""The names of the outputs that the judge sees first and second; it answers with one of them."""
EQUAL = 1.5
"""The preference between two equal outputs, which no judge is asked for."""


def is_switched(instruction: str) -> bool:
    """Whether the judge sees the model's output first, and the baseline's second: drawn by the instruction alone.

    AlpacaEval's own draw, so that verdicts can be reproduced.
    """
    generator = random.Random(f"is_switched_outputs{instruction}0")
    return generator.choices([False, True])[0]


def preference_of_logprobs(logprobs: Mapping[str, float], switched: bool) -> float | None:
    """The preference in [1, 2], where 2 means sure of the model's output and 1 sure of the baseline's.

    `logprobs` are those of the first token, in nats, by token. A missing token has the probability 0; None where both
    are missing.
    """
    first, second = (exp(logprobs[name]) if name in logprobs else 0.0 for name in (FIRST, SECOND))
    return in_order(2 - first / (first + second), switched) if first + second > 0 else None


def preference_of_text(text: str, switched: bool) -> float | None:
    """The same for a judge without log-probs: 1 or 2; None where the answer begins with neither name."""
    named = text.strip().strip("\"'`*.").strip()
    return in_order({FIRST: 1.0, SECOND: 2.0}[named], switched) if named in (FIRST, SECOND) else None


def in_order(preference: float, switched: bool) -> float:
    return 3 - preference if switched else preference
