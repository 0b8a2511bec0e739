"""Splits one row of any accepted format into prompt, chosen and rejected."""

from __future__ import annotations

from typing import Literal

from adaptpo.data.conventions import Columns, as_turns, in_context, read_columns
from adaptpo.data.conversation import begins_response, joined, spoken, words_of
from adaptpo.data.messages import (
    check_prompt,
    check_unicode,
    continue_conversation,
    message,
    shared_length,
    split_conversations,
)
from adaptpo.data.problems import (
    EMPTY_CHOSEN,
    EMPTY_PROMPT,
    EMPTY_REJECTED,
    EQUAL,
    LISTS_OF_TURNS,
    MIXED_FORMATS,
    NO_FINAL_REPLY,
    NO_SHARED_PROMPT,
    NO_SHARED_WORDS,
    NOT_TEXT_CONTENT,
    PARTED,
    PROMPT_END,
    REPEATED_BEGINNING,
    RowProblem,
)
from adaptpo.data.stored import Unreadable, read_literal
from adaptpo.data.tools import read_tools
from adaptpo.data.transcripts import calls_for_reply, is_transcript, prompt_messages, split_last_reply
from adaptpo.types import Message, Row, Text

TextFormat = Literal["messages", "text"]
Pair = tuple[Text, Text, Text]
OTHER_MODALITIES = ("image", "images", "audio", "audios", "video", "videos")


def _check_other_columns(row: Row) -> None:
    check_unicode(read_tools(row.get("tools")))
    if any(row.get(key) for key in OTHER_MODALITIES):
        raise RowProblem(NOT_TEXT_CONTENT)


def _is_written_list(text: Text | None) -> bool:
    """Whether this is a string that holds a list of strings."""
    if not isinstance(text, str) or not text.lstrip().startswith("["):
        return False
    try:
        items = read_literal(text)
    except Unreadable:
        return False
    return isinstance(items, list) and bool(items) and all(isinstance(item, str) for item in items)


def split_pair(row: Row, text_format: TextFormat) -> Pair:
    """Returns the prompt, chosen and rejected of a row.

    Raises:
        RowProblem: the row cannot be used; the message is the reason.
    """
    _check_other_columns(row)
    columns = read_columns(row)
    check_unicode([columns.prompt, columns.chosen, columns.rejected])
    if all(map(_is_written_list, (columns.prompt, columns.chosen, columns.rejected))):
        raise RowProblem(LISTS_OF_TURNS)
    prompt, chosen, rejected = _split_columns(columns, text_format)
    _check_responses(chosen, rejected)
    around = in_context(prompt, row, is_text=text_format == "text")
    check_unicode(around)
    if isinstance(prompt, str) and isinstance(around, list):
        chosen, rejected = as_turns(chosen, "assistant"), as_turns(rejected, "assistant")
    return around, chosen, rejected


def _split_columns(columns: Columns, text_format: TextFormat) -> Pair:
    chosen, rejected = _present(columns.chosen, EMPTY_CHOSEN), _present(columns.rejected, EMPTY_REJECTED)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_strings(columns, chosen, rejected, text_format)
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _split_message_lists(columns, chosen, rejected)
    raise RowProblem(MIXED_FORMATS)


def _present(text: Text | None, empty_reason: str) -> Text:
    if text is None or text == [] or (isinstance(text, str) and not text.strip()):
        raise RowProblem(empty_reason)
    return text


def _check_responses(chosen: Text, rejected: Text) -> None:
    chosen, rejected = _without_outer_space(chosen), _without_outer_space(rejected)
    if chosen in ("", []):
        raise RowProblem(EMPTY_CHOSEN)
    if rejected in ("", []):
        raise RowProblem(EMPTY_REJECTED)
    if chosen == rejected:
        raise RowProblem(EQUAL)


def _without_outer_space(response: Text) -> Text:
    if isinstance(response, str):
        return response.strip()
    return [{**message, "content": words_of(message).strip()} for message in response if spoken(message).strip()]


def _split_message_lists(columns: Columns, chosen: list[Message], rejected: list[Message]) -> Pair:
    prompt, replies_alone = columns.prompt, chosen[0]["role"] == rejected[0]["role"] == "assistant"
    if isinstance(prompt, str) and replies_alone:
        prompt = [message("user", prompt)]
    if not isinstance(prompt, list):
        return split_conversations(chosen, rejected)
    prompt = _without_empty_turn(prompt)
    check_prompt(prompt, columns.is_own_prompt)
    wholes = continue_conversation(prompt, chosen), continue_conversation(prompt, rejected)
    return _split_begun(prompt, *wholes) if begins_response(prompt) else split_conversations(*wholes)


def _without_empty_turn(prompt: list[Message]) -> list[Message]:
    """The prompt without the empty assistant turn by which some data open the response."""
    return prompt[:-1] if begins_response(prompt) and not spoken(prompt[-1]).strip() else prompt


def _split_begun(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Pair:
    """Splits conversations whose prompt begins the response. If they share the turn that it begins, the prompt reaches
    further."""
    responses = chosen[len(prompt) :], rejected[len(prompt) :]
    _check_beginning(words_of(prompt[-1]).strip(), *responses)
    wholes = [joined(prompt, response) for response in responses]
    if shared_length(*wholes) >= len(prompt):
        return split_conversations(*wholes)
    if any(response[-1]["role"] != "assistant" for response in responses):
        raise RowProblem(NO_FINAL_REPLY)
    return prompt, *responses


def _check_beginning(beginning: str, chosen: list[Message], rejected: list[Message]) -> None:
    """Raises RowProblem if a response is missing, or if the prompt's beginning stands in the responses too."""
    for response, empty in ((chosen, EMPTY_CHOSEN), (rejected, EMPTY_REJECTED)):
        if not response:
            raise RowProblem(empty)
        if response[0]["role"] != "assistant":
            raise RowProblem(NO_SHARED_PROMPT)
    words = [words_of(response[0]).strip() for response in (chosen, rejected)]
    if beginning in words or all(text.startswith(beginning) for text in words):
        raise RowProblem(REPEATED_BEGINNING)


def _split_strings(columns: Columns, chosen: str, rejected: str, text_format: TextFormat) -> Pair:
    prompt = columns.prompt
    if isinstance(prompt, list):
        return _split_message_lists(columns, [message("assistant", chosen)], [message("assistant", rejected)])
    if _are_transcripts(prompt, chosen, rejected):
        return _split_transcripts(chosen, rejected, text_format)
    if columns.has_prompt:
        return _prompted_strings(prompt, chosen, rejected, text_format)
    if is_transcript(chosen) or is_transcript(rejected):
        raise RowProblem(NO_SHARED_PROMPT)
    return _split_shared_words(chosen, rejected)


def _are_transcripts(prompt: str | None, chosen: str, rejected: str) -> bool:
    if not (is_transcript(chosen) and is_transcript(rejected)):
        return False
    # A reply may itself quote a dialogue: next to a prompt, only a dialogue that contains the prompt is a transcript.
    return prompt is None or (prompt.strip() in chosen and prompt.strip() in rejected)


def _split_transcripts(chosen: str, rejected: str, text_format: TextFormat) -> Pair:
    one, other = split_last_reply(chosen), split_last_reply(rejected)
    if one.prompt != other.prompt:
        raise RowProblem(PARTED)
    if text_format == "text":
        check_prompt(prompt_messages(one.prompt))
        return one.prompt, one.response, other.response
    return _as_messages(one.prompt, one.response, other.response)


def _as_messages(prompt: str, chosen: str, rejected: str) -> Pair:
    messages = prompt_messages(prompt)
    check_prompt(messages)
    return messages, [message("assistant", chosen.strip())], [message("assistant", rejected.strip())]


def _prompted_strings(prompt: str | None, chosen: str, rejected: str, text_format: TextFormat) -> Pair:
    if prompt is None or not prompt.strip():
        raise RowProblem(EMPTY_PROMPT)
    if text_format == "messages" and is_transcript(prompt) and calls_for_reply(prompt):
        return _as_messages(prompt, chosen, rejected)
    return prompt, chosen, rejected


def _split_shared_words(chosen: str, rejected: str) -> Pair:
    end = _shared_characters(chosen, rejected)
    if end == len(chosen) == len(rejected):
        raise RowProblem(EQUAL)
    while end and not (_word_ends_at(chosen, end) and _word_ends_at(rejected, end)):
        end -= 1
    if chosen[end - 1 : end] == " ":
        end -= 1  # tokenizers attach a space to the word that follows
    if not chosen[:end].strip():
        raise RowProblem(NO_SHARED_WORDS)
    return chosen[:end], chosen[end:], rejected[end:]


def _shared_characters(first: str, second: str) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))


def _word_ends_at(text: str, end: int) -> bool:
    return end == len(text) or text[end].isspace() or text[end - 1].isspace()


def split_prompt(row: Row, text_format: TextFormat) -> Text:
    """The prompt of a row without responses.

    Raises:
        RowProblem: the row cannot be used; the message is the reason.
    """
    _check_other_columns(row)
    columns = read_columns(row)
    prompt = _present(columns.prompt, EMPTY_PROMPT)
    check_unicode(prompt)
    if isinstance(prompt, str) and is_transcript(prompt):
        prompt = _checked_transcript(prompt, text_format)
    if isinstance(prompt, list):
        prompt = _without_empty_turn(prompt)
        check_prompt(prompt, columns.is_own_prompt)
    around = in_context(prompt, row, is_text=text_format == "text")
    check_unicode(around)
    return around


def _checked_transcript(prompt: str, text_format: TextFormat) -> Text:
    if not calls_for_reply(prompt):
        raise RowProblem(PROMPT_END)
    if text_format == "text":
        return prompt
    messages = prompt_messages(prompt)
    check_prompt(messages)
    return messages
