"""Finds chat templates that leave out what someone says, before a run is spent on rows without their words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from adaptpo.data.examples import PromptExample
from adaptpo.data.problems import RowProblem
from adaptpo.data.templates import (
    CALLS,
    CLOSES_THOUGHTS,
    PROBES,
    THINK_BLOCK,
    THOUGHTS,
    TOOLS,
    TemplateOptions,
    options_of,
    template_drops,
)
from adaptpo.errors import ModelError
from adaptpo.types import Dropped, Message, PreferenceExample, Text

SAYS_NOTHING = "the chat template renders nothing of the {role}'s words"
LEAVES_OUT = "the chat template leaves out the {what}"
MOST_PROBES = 1024
"""Maximum number of results to remember."""
Example = TypeVar("Example", PreferenceExample | Dropped, PreferenceExample | PromptExample | Dropped)


def with_words_rendered(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, template_options: TemplateOptions | None = None
) -> Iterator[Example]:
    """Yields the examples; one with tools, tool calls, thoughts in a response, or a turn of another role, such as
    system, that the template leaves out is dropped.

    Raises:
        ModelError: there is a conversation, and the template leaves out a user's or an assistant's words.
    """
    probes = TemplateProbes(tokenizer, template_options)
    for example in examples:
        lost = [] if isinstance(example, Dropped) else probes.lost(example.prompt, _responses(example), example.columns)
        yield Dropped(example.row, left_out(lost[0])) if lost else example


def _responses(example: PreferenceExample | PromptExample) -> list[Message]:
    sides = (example.chosen, example.rejected) if isinstance(example, PreferenceExample) else ()
    return [turn for side in sides if isinstance(side, list) for turn in side]


class TemplateProbes:
    """What a chat template leaves out: roles whose words it does not write, `TOOLS`, `CALLS` or `THOUGHTS`. Each is
    tried once with the run's arguments of the template, and once with every other set of arguments that rows have."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: TemplateOptions | None = None) -> None:
        self.tokenizer, self.options = tokenizer, options
        self.found: dict[tuple[str, str], bool] = {}

    def lost(self, prompt: Text, responses: list[Message], columns: Mapping[str, Any]) -> list[str]:
        """What is lost of this conversation. Raises ModelError if that is a user's or an assistant's words."""
        if isinstance(prompt, str) or not self.tokenizer.chat_template:
            return []
        options = self._options(columns)
        thoughts = [key for key in THOUGHTS if any(turn.get(key) for turn in responses)]
        if any(CLOSES_THOUGHTS in str(turn.get("content")) for turn in responses):
            thoughts.append(THINK_BLOCK)
        said = [*_contents([*prompt, *responses], columns), *thoughts]
        return [what for what in said if self._drops(what, options)]

    def _options(self, columns: Mapping[str, Any]) -> TemplateOptions:
        """The template's arguments for a row, but its tools. A row whose own cannot be read is left out elsewhere."""
        try:
            return options_of({"chat_template_kwargs": columns.get("chat_template_kwargs")}, self.options)
        except RowProblem:
            return self.options or {}

    def _drops(self, what: str, options: TemplateOptions) -> bool:
        key = (what, repr(options))
        if key not in self.found:
            if len(self.found) == MOST_PROBES:
                self.found.clear()
            self.found[key] = template_drops(self.tokenizer, what, options)
        if self.found[key] and what in PROBES:
            raise ModelError(
                f"{left_out(what)}: the cause is the template, not the data. Set tokenizer.chat_template to one that "
                "writes message['content'], which is a string here, or use an instruction-tuned model's tokenizer."
            )
        return self.found[key]


def _contents(turns: list[Message], columns: Mapping[str, Any]) -> list[str]:
    """The roles of a conversation, in which the assistant always speaks, and `TOOLS` and `CALLS` if it has any."""
    tools = [TOOLS] if columns.get("tools") not in (None, "", "[]", []) else []
    calls = [CALLS] if any("tool_calls" in turn for turn in turns) else []
    return [*dict.fromkeys(["assistant", *(turn["role"] for turn in turns)]), *tools, *calls]


def left_out(what: str) -> str:
    return (LEAVES_OUT if what in (TOOLS, CALLS, THINK_BLOCK, *THOUGHTS) else SAYS_NOTHING).format(role=what, what=what)
