"""Reads the columns of other tools as prompt and responses: Orca's, Alpaca's, ShareGPT's and ms-swift's rows, and the
columns `system`, `history` and `input` beside any prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from adaptpo.data.conversation import words_of
from adaptpo.data.messages import message, normalize_messages, read_text, shared_length
from adaptpo.data.problems import NOT_A_PART, TWO_SYSTEM_TEXTS, UNREADABLE_HISTORY, RowProblem
from adaptpo.data.stored import Unreadable, is_message, opens_messages, read_literal
from adaptpo.data.tools import read_tools
from adaptpo.data.transcripts import is_transcript
from adaptpo.data.unpaired import is_unpaired_row, with_partner
from adaptpo.errors import DataError
from adaptpo.types import Message, Row, Text

CONVERSATIONS = ("conversations", "messages")
SYSTEM = ("system", "system_prompt")
PARTS = ("input", "context")
"""Columns with a further part of the prompt: Alpaca's and Dolly's."""
BESIDE_INSTRUCTION = (*PARTS, "output", "history", *SYSTEM)
SPEAK_OF_A_CHAT = (*SYSTEM, "history", "tools")
TEXTS = ("prompt", "chosen", "rejected")
SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True)
class Columns:
    """The texts of a row. `has_prompt`: some column is the prompt, even if it is empty in this row. `is_own_prompt`:
    the prompt is that of the column `prompt`, not a part of a conversation."""

    prompt: Text | None
    chosen: Text | None
    rejected: Text | None
    has_prompt: bool
    is_own_prompt: bool = False


def is_preference_row(row: Row) -> bool:
    """Whether the row has both responses, or one and a verdict on it."""
    paired = {"chosen", "rejected"} <= row.keys() or ("messages" in row and _rejected_beside_messages(row) is not None)
    return paired or is_unpaired_row(row)


def is_prompt_alone(row: Row) -> bool:
    """Whether the row has no response to train on: neither `chosen` nor `rejected` (or null in both), nor one response
    with a verdict."""
    without = row.get("chosen") is None and row.get("rejected") is None and _rejected_beside_messages(row) is None
    return without and not is_unpaired_row(row)


def read_columns(row: Row) -> Columns:
    """Reads the prompt and the responses, whichever columns hold them; a response that is missing is None.

    Raises:
        RowProblem: one of them is neither text nor messages.
    """
    row = _with_both_responses(row)
    prompt, chosen, rejected = _without_written_empty_lists(*(read_text(row.get(name)) for name in TEXTS))
    own = prompt is not None
    if prompt is None and _is_reply(chosen) and _is_reply(rejected):
        prompt = _prompt_elsewhere(row, chosen, rejected)
    return Columns(prompt, chosen, rejected, has_prompt(row), own)


def parts_beside(row: Row) -> list[str]:
    """The columns that belong to the prompt beside its own, and are not empty."""
    return [name for name in (*SYSTEM, *PARTS, "history") if not _is_blank(row.get(name))]


def _is_blank(value: Any) -> bool:
    return not (value.strip() if isinstance(value, str) else value)


def unsaid_parts(prompt: Text, row: Row) -> list[str]:
    """The columns that belong to the prompt and whose text it lacks, and those with arguments of the template."""
    texts = {name: row[name] for name in parts_beside(row)}
    unsaid = [name for name, text in texts.items() if not (isinstance(text, str) and _says(prompt, text))]
    return [*unsaid, *(name for name in ("tools", "chat_template_kwargs") if not _is_blank(row.get(name)))]


def has_prompt(row: Row) -> bool:
    return "prompt" in row or prompt_column(row) is not None


def prompt_column(row: Row) -> str | None:
    """The column that holds the prompt in the convention of another tool, if the row follows one."""
    if conversation := next((name for name in CONVERSATIONS if _may_be_messages(row.get(name))), None):
        return conversation
    if "instruction" in row and (is_preference_row(row) or any(name in row for name in BESIDE_INSTRUCTION)):
        return "instruction"
    return "question" if "question" in row and any(name in row for name in SYSTEM) else None


def _may_be_messages(value: Any) -> bool:
    return bool(value) and (isinstance(value, list | dict) or (isinstance(value, str) and opens_messages(value)))


def _with_both_responses(row: Row) -> Row:
    """The row with `chosen` and `rejected`, also if it has ms-swift's columns or is unpaired."""
    name = None if "rejected" in row else _rejected_beside_messages(row)
    if name is None:
        return with_partner(row)
    conversation = read_text(row.get("messages"))
    if not isinstance(conversation, list):
        return row
    rejected = row[name]
    if name == "rejected_response" and isinstance(rejected, str):
        rejected = [*conversation[:-1], message("assistant", rejected)]
    return row | {"chosen": conversation, "rejected": rejected}


def _rejected_beside_messages(row: Row) -> str | None:
    return next((name for name in ("rejected_response", "rejected_messages") if name in row), None)


def _without_written_empty_lists(*texts: Text | None) -> list[Text | None]:
    # Beside messages, "[]" is an empty list that a CSV file holds as text.
    chat = any(isinstance(text, list) for text in texts)
    return [[] if chat and isinstance(text, str) and text.strip() == "[]" else text for text in texts]


def _is_reply(text: Text | None) -> bool:
    """Whether this is a response alone, not a conversation that contains its prompt."""
    if isinstance(text, str):
        return not is_transcript(text)
    return not text or text[0]["role"] == "assistant"


def _prompt_elsewhere(row: Row, chosen: Text | None, rejected: Text | None) -> Text | None:
    name = prompt_column(row)
    text = read_text(row[name]) if name else None
    if name in ("instruction", "question") and isinstance(text, str):
        return "\n".join(part for part in (text, *(_text_of(row, beside) for beside in PARTS)) if part)
    if name not in CONVERSATIONS:
        return text
    if not isinstance(text, list):
        return None
    replies = [as_turns(response, "assistant") for response in (chosen, rejected) if response is not None]
    return text[:-1] if text[-1:] in replies else text


def as_turns(text: Text, role: str) -> list[Message]:
    """The messages, or a string as one turn of this role."""
    return [message(role, text)] if isinstance(text, str) else text


def _text_of(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None or value != value:  # None is NaN in a data frame.
        return ""
    if isinstance(value, str):
        return value if value.strip() else ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if isinstance(value, float) else str(value)
    raise RowProblem(NOT_A_PART.format(name))


def in_context(prompt: Text, row: Row, is_text: bool) -> Text:
    """The prompt after its system text and history. A string prompt beside such a column, or one that is an
    instruction or question, is a user's turn; with `is_text`, it stays a string.

    Raises:
        RowProblem: the row has two system texts, or its history cannot be read.
        DataError: a column belongs to the prompt, but cannot become a part of it; the message names the remedy.
    """
    before = [*_system_turns(row), *_history(row, prompt)]
    if isinstance(prompt, str) and (before or read_tools(row.get("tools"))) and (is_text or not has_prompt(row)):
        raise DataError(NEEDS_CHAT)
    found = prompt if isinstance(prompt, str) and (is_text or not _is_chat(row)) else _after(before, prompt)
    for name in PARTS:
        if not _says(found, _text_of(row, name)):
            raise DataError(_unused(name))
    if conversation := _conversation_before(found, row):
        raise DataError(EARLIER_TURNS.format(name=conversation))
    return found


def _conversation_before(prompt: Text, row: Row) -> str | None:
    """The column of a conversation in which turns come before the row's own prompt that the prompt lacks."""
    asked = " ".join(words_of(as_turns(prompt, "user")[-1]).split())
    for name in CONVERSATIONS if row.get("prompt") else ():
        texts = _spoken_in(row.get(name))
        ends = next((end for end in (len(texts) - 1, len(texts) - 2) if end >= 0 and texts[end] == asked), None)
        place = texts.index(asked) if ends is None and asked in texts else ends or 0
        if not all(_says(prompt, text) for text in texts[:place]):
            return name
    return None


def _spoken_in(conversation: Any) -> list[str]:
    try:
        turns = read_text(conversation) if _may_be_messages(conversation) else None
    except RowProblem:  # A column that nothing reads may hold anything.
        return []
    return [" ".join(words_of(turn).split()) for turn in turns] if isinstance(turns, list) else []


def _is_chat(row: Row) -> bool:
    """Whether a string prompt of this row is a user's turn."""
    elsewhere = row.get("prompt") is None and prompt_column(row) is not None
    return has_prompt(row) and (elsewhere or any(name in row for name in SPEAK_OF_A_CHAT))


def _after(before: list[Message], prompt: Text) -> list[Message]:
    """The prompt after these turns, as far as it does not begin with them."""
    (system, history), (own, turns) = map(_apart, (before, as_turns(prompt, "user")))
    if own and system and words_of(own[0]).strip() != words_of(system[0]).strip():
        raise RowProblem(TWO_SYSTEM_TEXTS)
    repeated = shared_length(history, turns) == len(history)
    return [*(own or system), *([] if repeated else history), *turns]


def _apart(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system turn that opens the messages, if any, and the rest."""
    opens = bool(messages) and messages[0]["role"] in SYSTEM_ROLES
    return messages[:opens], messages[opens:]


def _system_turns(row: Row) -> list[Message]:
    texts = list(dict.fromkeys(found for name in SYSTEM if (found := _text_of(row, name))))
    if len(texts) > 1:
        raise RowProblem(TWO_SYSTEM_TEXTS)
    return [message("system", text) for text in texts]


def _history(row: Row, prompt: Text) -> list[Message]:
    """The turns of Alpaca's `history`: pairs of an instruction and its answer, or messages."""
    value = row.get("history")
    if isinstance(value, str):
        value = _history_in_words(value, prompt)
    if not value:
        return []
    if not isinstance(value, list):
        raise RowProblem(UNREADABLE_HISTORY)
    if all(map(is_message, value)):
        return normalize_messages(value)
    return [turn for pair in value for turn in _exchange(pair)]


def _history_in_words(value: str, prompt: Text) -> Any:
    if _says(prompt, value):
        return None
    try:
        return read_literal(value)
    except Unreadable:
        raise DataError(_unused("history")) from None


def _exchange(pair: Any) -> list[Message]:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise RowProblem(UNREADABLE_HISTORY)
    return [message("user", pair[0]), message("assistant", pair[1])]


def _says(prompt: Text, text: str) -> bool:
    """Whether the text stands in the prompt as whole words, with whatever space between them."""
    whole = prompt if isinstance(prompt, str) else "\n".join(map(words_of, prompt))
    sought = re.escape(" ".join(text.split()))
    return not sought or re.search(rf"(?<!\w){sought}(?!\w)", " ".join(whole.split())) is not None


NEEDS_CHAT = (
    "a column `system`, `history` or `tools` makes a conversation, but this run reads plain text: the tokenizer has no "
    "chat template, data.text_format is `text`, or no column is the prompt. Use an instruction-tuned model's "
    "tokenizer, set tokenizer.chat_template, or write these texts into a column `prompt` and remove theirs."
)

EARLIER_TURNS = (
    "the column `{name}` holds turns that come before the prompt, and `prompt` lacks them. If they belong to it, write "
    "them into `prompt` too, as messages; where `{name}` ends with the prompt, data.columns: {{last_turn: prompt}} "
    "does it. If they do not, give `{name}` another name, for instance by data.columns: {{other_{name}: {name}}}."
)


def _unused(name: str) -> str:
    return (
        f"the column `{name}` holds text that is not in the prompt, and leaving it out would change what is asked. "
        f"If it belongs to the prompt, write it into `prompt`, or name the columns as Alpaca does (`instruction`, "
        f"`input`, `history`), for instance by data.columns: {{instruction: prompt}}. If it does not, give it another "
        f"name, for instance by data.columns: {{other_{name}: {name}}}."
    )
