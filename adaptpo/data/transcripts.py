"""Parses HH-RLHF dialogues: one string in which "Human:" and "Assistant:" each open a turn after an empty line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adaptpo.data.problems import NO_FINAL_REPLY, RowProblem
from adaptpo.types import Message

TURN_MARKER = re.compile(r"\r?\n[ \t]*\r?\n(Human|Assistant):")
TRANSCRIPT_START = re.compile(r"\s*(Human|Assistant):")
ROLE_OF_SPEAKER = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Transcript:
    """A dialogue split before its last reply. `prompt` ends with "Assistant:"; `response` keeps its spaces."""

    prompt: str
    response: str


def is_transcript(text: str) -> bool:
    """Whether the text opens with a turn after an empty line, or with a turn and has an assistant's."""
    if TURN_MARKER.match(text):
        return True
    opens_with_turn = TRANSCRIPT_START.match(text) is not None
    return opens_with_turn and "Assistant" in TURN_MARKER.findall(_with_marker_at_start(text))


def split_last_reply(text: str) -> Transcript:
    """Splits a transcript after its final "Assistant:".

    Raises:
        RowProblem: the last turn is a Human turn.
    """
    text = _with_marker_at_start(text)
    markers = list(TURN_MARKER.finditer(text))
    if markers[-1].group(1) != "Assistant":
        raise RowProblem(NO_FINAL_REPLY)
    end = markers[-1].end()
    return Transcript(text[:end], text[end:])


def calls_for_reply(prompt: str) -> bool:
    """Whether the transcript ends with a Human turn, with or without the "Assistant:" that opens the reply."""
    speaker, content = _turns(prompt)[-1]
    return speaker == "Human" or not content.strip()


def prompt_messages(prompt: str) -> list[Message]:
    """The turns of a prompt that calls for a reply, as chat messages; consecutive turns of one speaker stay apart."""
    turns = _turns(prompt)
    if turns[-1][0] == "Assistant":
        turns.pop()
    return [{"role": ROLE_OF_SPEAKER[speaker], "content": content.strip()} for speaker, content in turns]


def _turns(text: str) -> list[tuple[str, str]]:
    parts = TURN_MARKER.split(_with_marker_at_start(text))
    return list(zip(parts[1::2], parts[2::2], strict=True))


def _with_marker_at_start(text: str) -> str:
    return "\n\n" + text.lstrip()
