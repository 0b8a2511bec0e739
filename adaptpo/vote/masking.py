"""Hide the names of models and their makers in a response: they would say which run it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

UNMISTAKABLE = (
    r"chat[- ]?gpt(?:[- ]?\d[\w.-]*)?|gpt[- ]?(?:\d[\w.-]*|neo\w*)|instructgpt|openai|anthropic|deepseek[\w.-]*"
    r"|qwen[\w.-]*|qwq[\w.-]*|mixtral[\w.-]*|mistral ai|chatglm[\w.-]*|internlm[\w.-]*|tulu[- ]?\d[\w.-]*|olmo[\w.-]*"
    r"|smollm[\w.-]*|tinyllama[\w.-]*|huggingface|hugging face|alibaba cloud|tongyi|google deepmind|meta ai"
)
"""Matched in any case: the words name nothing else."""
SHARED_WITH_OTHERS = (
    "Llama|LLaMA|Claude|Gemini|Gemma|Mistral|Falcon|Phi|Yi|Vicuna|Alpaca|Grok|Bard|Copilot|Nova|Orca|Kimi|Command R"
    "|Zephyr|Starling|Granite|Nemotron|PaLM|LaMDA|Ernie"
)
"""Animals, people and winds too: a model only with a version behind, or where a response introduces itself."""
MAKERS = "Google|Meta|Microsoft|Alibaba|Mistral|xAI|Cohere|Nvidia|NVIDIA|IBM|Apple|Amazon|Baidu|Moonshot|Zhipu|Tencent"
VERSION = r"(?:[- ]?v?\d[\w.-]*|[- ](?:Instruct|Chat|Pro|Ultra|Flash|Nano|Opus|Sonnet|Haiku|Plus)\b)"
INTRODUCTION = r"(?:I am|I'm|I’m|my name is|My name is|call me|called|named|known as)"
MADE_BY = r"(?:trained|created|developed|made|built|designed|released|provided)\s+by\s+(?:the\s+)?(?:team\s+at\s+)?"

PATTERNS = (
    re.compile(rf"\b(?P<name>{UNMISTAKABLE})", re.IGNORECASE),
    re.compile(rf"\b(?P<name>(?:{SHARED_WITH_OTHERS}){VERSION}+)"),
    re.compile(rf"\b(?P<name>(?:{SHARED_WITH_OTHERS.lower()})-?\d[\w.-]*)"),
    re.compile(rf"\b{INTRODUCTION}\s+(?:an? |the )?(?P<name>{SHARED_WITH_OTHERS})\b"),
    re.compile(rf"\b(?P<name>{MAKERS})(?=(?:'s|’s)? (?:AI|language) (?:assistant|model)\b)"),
    re.compile(rf"\b{MADE_BY}(?P<name>{MAKERS})\b"),
)
Parts = list[str | None]
"""A text cut at the hidden names: None stands for one."""


def masked(text: str, models: Iterable[str] = ()) -> Parts:
    """The text with None for each name of a model or maker. `models`: further names, of the runs themselves."""
    parts: Parts = []
    end = 0
    for start, stop in merged(spans(text, models)):
        parts += [text[end:start], None]
        end = stop
    return [part for part in [*parts, text[end:]] if part != ""]


def spans(text: str, models: Iterable[str]) -> Iterator[tuple[int, int]]:
    own = [re.compile(rf"\b(?P<name>{re.escape(name)})\b", re.IGNORECASE) for name in models if names_a_model(name)]
    for pattern in (*own, *PATTERNS):
        yield from (without_full_stop(text, *match.span("name")) for match in pattern.finditer(text))


def names_a_model(name: str) -> bool:
    """Whether the name can be nothing else: a folder called `policy` must not hide the word."""
    return len(name) > 3 and any(character.isdigit() for character in name)


def without_full_stop(text: str, start: int, stop: int) -> tuple[int, int]:
    return start, start + len(text[start:stop].rstrip(".-"))


def merged(found: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, overlapping ones joined."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(found):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
