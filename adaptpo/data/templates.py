"""Renders conversations with a model's chat template, and finds what the template leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from adaptpo.data.messages import TOOL_ROLES
from adaptpo.data.problems import RowProblem
from adaptpo.data.stored import Unreadable, read_literal
from adaptpo.data.tools import read_tools
from adaptpo.errors import ConfigError, ModelError
from adaptpo.types import Message

TemplateOptions = Mapping[str, Any]

NO_MAPPING = "chat_template_kwargs is neither a mapping nor a JSON string of one"
PROBES = {"user": "quokka", "assistant": "wombat"}
OTHER_PROBE = "numbat"
"""Words that no template writes by itself."""
PROMPT_RENDERED_DIFFERENTLY = "the chat template renders the prompt differently when a response follows"
TURNS_RENDERED_DIFFERENTLY = "the chat template renders earlier turns differently when later ones follow"
SWITCH = re.compile(r"\b\w*thinking\w*\b")
"""Arguments by which templates open, keep or leave out a block of thoughts."""
OTHER_TEMPLATE = "set tokenizer.chat_template to one that writes the same text whether or not a reply follows"
TOOLS, CALLS = "tools", "tool calls"
"""What a template may leave out beside the words of roles."""
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys of an assistant's message that hold what it thinks before its words; a template may leave them out, too."""
THINK_BLOCK, CLOSES_THOUGHTS = "block before </think>", "</think>"
"""Thoughts among the words, which some templates cut."""


UNREAD = "chat_template_kwargs.{name} has no effect: the policy's chat template never reads it; {hint}"


class TemplateProblem(RowProblem):
    """The chat template cannot render these messages; the message is the reason."""


def options_of(columns: Mapping[str, Any], settings: TemplateOptions | None = None) -> TemplateOptions:
    """The chat template's arguments for a row: the given settings, overridden by the row's `tools` and by its
    `chat_template_kwargs`, as in TRL. A key that is null in the row does not override.

    Raises:
        RowProblem: one of the columns cannot be read, or sets what is not the template's.
        ConfigError: the settings do.
    """
    if problem := _not_the_templates(settings or {}):
        raise ConfigError(problem)
    own = _mapping(columns.get("chat_template_kwargs"))
    if problem := _not_the_templates(own):
        raise RowProblem(problem)
    tools = read_tools(columns.get("tools"))
    given = {"tools": tools} if tools else {}
    return {**(settings or {}), **given, **{name: value for name, value in own.items() if value is not None}}


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str) and value.strip():
        try:
            value = read_literal(value)
        except Unreadable:
            raise RowProblem(NO_MAPPING) from None
    if value and not isinstance(value, Mapping):
        raise RowProblem(NO_MAPPING)
    return value or {}


NOT_THE_TEMPLATES = {
    "conversation": "the data has the messages",
    "messages": "the data has the messages",
    "chat_template": "set tokenizer.chat_template and save the tokenizer",
    "add_generation_prompt": "it follows from the prompt's last turn",
    "continue_final_message": "it follows from the prompt's last turn",
    "max_length": "set max_length at the top of the recipe",
} | dict.fromkeys(
    [
        *("tokenize", "padding", "truncation", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "sanitize_control_tokens"),
    ],
    "adaptpo tokenizes by its own rules",
)
"""Arguments of `apply_chat_template` that do not reach the template, with what to do instead."""


def _not_the_templates(options: TemplateOptions) -> str:
    name = next((name for name in NOT_THE_TEMPLATES if name in options), None)
    return f"chat_template_kwargs.{name} is no argument of the template: {NOT_THE_TEMPLATES[name]}" if name else ""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    options: TemplateOptions | None = None,
    open_reply: bool = False,
) -> str:
    """The text of a conversation. With `open_reply`, it ends where a response begins: after the generation prompt, or
    in the final turn if that is the assistant's.

    Raises:
        ModelError: the tokenizer has no chat template.
        TemplateProblem: the template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "the data are chat messages, but the tokenizer has no chat template; use an instruction-tuned model's "
            "tokenizer, set tokenizer.chat_template, or give the data as strings."
        )
    continues = open_reply and messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=open_reply and not continues,
            continue_final_message=continues,
            **(options or {}),
        )
    except Exception as error:  # A template can raise anything.
        raise TemplateProblem(f"the chat template refuses the messages: {first_line(error)}") from error


def check_continues(
    tokenizer: PreTrainedTokenizerBase,
    before: list[Message],
    whole: list[Message],
    options: TemplateOptions,
    rendered: tuple[str, str],
    problem: str,
) -> None:
    """Raises TemplateProblem if the rendering of a whole conversation does not begin with that of the turns `before` a
    reply. It names the remedy: an argument of the template with which it does, if there is one.

    Args:
        rendered: both under these options, since they are known.
        problem: what to say.
    """
    if rendered[1].startswith(rendered[0]):
        return
    for name in switches(str(tokenizer.chat_template)):
        for value in (False, True):
            if _continues(tokenizer, before, whole, {**options, name: value}):
                raise TemplateProblem(f"{problem}; set chat_template_kwargs: {{{name}: {str(value).lower()}}}")
    raise TemplateProblem(f"{problem}; {OTHER_TEMPLATE}")


@lru_cache(maxsize=8)
def switches(template: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(SWITCH.findall(template)))


def _continues(
    tokenizer: PreTrainedTokenizerBase, before: list[Message], whole: list[Message], options: TemplateOptions
) -> bool:
    try:
        opened = render(tokenizer, before, options, open_reply=True)
        return render(tokenizer, whole, options).startswith(opened)
    except TemplateProblem:
        return False


def unread_options(tokenizer: PreTrainedTokenizerBase, options: TemplateOptions) -> list[str]:
    """Why each of these arguments has no effect: the chat template does not contain its name."""
    template: Any = tokenizer.chat_template or ""
    names = set(re.findall(r"\w+", template if isinstance(template, str) else " ".join(template.values())))
    return [UNREAD.format(name=name, hint=_close_name(name, names)) for name in options if name not in names]


def _close_name(name: str, names: Iterable[str]) -> str:
    close = get_close_matches(name, names, n=1, cutoff=0.75)
    return f"did you mean {close[0]}?" if close else "leave it out"


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def template_drops(tokenizer: PreTrainedTokenizerBase, what: str, options: TemplateOptions | None = None) -> bool:
    """Whether the chat template says nothing of a role's words, of `TOOLS`, `CALLS` or thoughts, in a short
    conversation; False if it refuses one."""
    probe = PROBES.get(what, OTHER_PROBE)
    tools = {"tools": [{"type": "function", "function": _tool(probe)}]} if what == TOOLS else {}
    try:
        return probe not in render(tokenizer, _conversation(what), {**(options or {}), **tools}).lower()
    except TemplateProblem:
        return False


def _conversation(what: str) -> list[Message]:
    if what in THOUGHTS:
        turns: list[Message] = [{"role": name, "content": words} for name, words in PROBES.items()]
        return [*turns[:-1], {**turns[-1], what: OTHER_PROBE}]
    if what == THINK_BLOCK:
        words = f"<think>{OTHER_PROBE}{CLOSES_THOUGHTS}{PROBES['assistant']}"
        return [{"role": "user", "content": PROBES["user"]}, {"role": "assistant", "content": words}]
    if what == CALLS:
        return _exchange(OTHER_PROBE, "tool", "seen")
    if what in TOOL_ROLES:
        return _exchange("look", what, OTHER_PROBE)
    turns = [{"role": name, "content": words} for name, words in PROBES.items()]
    return turns if what in (*PROBES, TOOLS) else [{"role": what, "content": OTHER_PROBE}, *turns]


def _exchange(function: str, role: str, answer: str) -> list[Message]:
    """A conversation with a tool call and its answer."""
    call = {"id": "call00001", "type": "function", "function": {"name": function, "arguments": {}}}
    return [
        {"role": "user", "content": PROBES["user"]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": role, "content": answer, "name": "look", "tool_call_id": "call00001"},
        {"role": "assistant", "content": PROBES["assistant"]},
    ]


def _tool(name: str) -> dict[str, Any]:
    return {"name": name, "description": name, "parameters": {"type": "object", "properties": {}}}
