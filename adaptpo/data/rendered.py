"""Finds chat templates that leave out what someone says, before a run is spent on rows without their words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from adaptpo.data.examples import PromptExample
from adaptpo.data.tokenization import PROBES, TemplateOptions, template_drops
from adaptpo.errors import ModelError
from adaptpo.types import Dropped, PreferenceExample, Text

SAYS_NOTHING = "the chat template renders nothing of the {role}'s words"
Example = TypeVar("Example", PreferenceExample | Dropped, PreferenceExample | PromptExample | Dropped)


def with_words_rendered(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, template_options: TemplateOptions | None = None
) -> Iterator[Example]:
    """Yields the examples; one with a turn of another role, such as system, that the template leaves out is dropped.

    Raises:
        ModelError: there is a conversation, and the template leaves out a user's or an assistant's words.
    """
    dropped: dict[str, bool] = {}
    for example in examples:
        roles = [] if isinstance(example, Dropped) else _roles(example.prompt)
        for role in roles:
            if role not in dropped:
                dropped[role] = _drops(tokenizer, role, template_options)
        lost = next((role for role in roles if dropped[role]), None)
        yield example if lost is None else Dropped(example.row, SAYS_NOTHING.format(role=lost))


def _roles(prompt: Text) -> list[str]:
    return [] if isinstance(prompt, str) else ["assistant", *dict.fromkeys(turn["role"] for turn in prompt)]


def _drops(tokenizer: PreTrainedTokenizerBase, role: str, options: TemplateOptions | None) -> bool:
    found = bool(tokenizer.chat_template) and template_drops(tokenizer, role, options)
    if found and role in PROBES:
        raise ModelError(
            f"{SAYS_NOTHING.format(role=role)}: the cause is the template, not the data. Set tokenizer.chat_template "
            "to one that writes message['content'], which is a string here, or use an instruction-tuned model's "
            "tokenizer."
        )
    return found
