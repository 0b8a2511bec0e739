"""Responses that begin with their prompt, as whole texts do beside a column `prompt`."""

from __future__ import annotations

from adaptpo.data.conversation import words_of
from adaptpo.types import Text

REPEATS = "repeat_their_prompt"
"""The count of such pairs in the summary of the data."""


def repeats_prompt(prompt: Text, chosen: Text, rejected: Text) -> bool:
    """Whether both responses begin with the words of the prompt, or of its last turn."""
    asked = (prompt if isinstance(prompt, str) else words_of(prompt[-1])).strip()
    replies = [reply if isinstance(reply, str) else words_of(reply[0]) for reply in (chosen, rejected)]
    return bool(asked) and all(reply.lstrip().startswith(asked) for reply in replies)


def doubts_of_repeats(repeating: int, pairs: int) -> list[str]:
    """Why the pairs may be read wrongly, if more than half of them are such."""
    if repeating <= pairs / 2:
        return []
    return [
        f"{repeating:,} of {pairs:,} pairs have two responses that begin with their prompt, which is then read twice; "
        "if they are whole texts, cut the prompt from them, or leave out the column that holds it"
    ]
