"""The reasons for leaving out a row. The texts are stable: runs count rows by them."""

from __future__ import annotations


class RowProblem(Exception):  # noqa: N818 - never reaches the user: it becomes a `Dropped`
    """This row cannot be used; the message is the reason."""


NO_RESPONSES = "a prompt alone, and this method trains on pairs of the data"
NO_VERDICT = "a response whose verdict (`label` or `kto_tag`) is neither true or false nor 1 or 0"
EMPTY_CHOSEN = "empty chosen response"
EMPTY_REJECTED = "empty rejected response"
NOT_TEXT = "not text: a response or prompt is neither a string nor a list of messages"
MIXED_FORMATS = "mixed formats: one response is a string, the other a list of messages"
BAD_MESSAGE = "malformed message: role or content is missing"
LIST_OF_TEXTS = "a list of texts in place of one text: a row has one prompt, one chosen and one rejected response"
UNTRAINED = "a turn of a response is marked as not trained (`weight`, `loss` or `train`)"
UNREADABLE_MESSAGES = "messages stored as a string that cannot be parsed (cut, or neither JSON nor Python's notation)"
UNREADABLE_HISTORY = "the history is neither pairs of a question and its answer nor messages"
TWO_SYSTEM_TEXTS = "the column `system` differs from the system turn of the prompt, or from `system_prompt`"
NOT_A_PART = (
    "the column `{}` belongs to the prompt, but holds neither text nor a number (another use needs another name)"
)
LISTS_OF_TURNS = "prompt and responses are JSON lists of texts: write each text, or messages, instead"
NOT_UNICODE = "text that is not valid Unicode"
UNKNOWN_ROLE = "unsupported role: accepted are system, developer, user, assistant, tool, function, ipython"
BAD_TOOLS = "the column `tools` is neither a list of schemas nor a JSON string of one (another use needs another name)"
BAD_CALLS = "tool_calls that are not a list of calls with a function's name, nor a JSON string of one"
FUNCTION_CALL = "function_call, the older form of tool_calls, which chat templates do not read"
NOT_TEXT_CONTENT = "message or row content other than text (image, audio, ...)"
EQUAL = "chosen equals rejected"
NO_SHARED_PROMPT = "no shared prompt: chosen and rejected differ before the first assistant turn"
PARTED = "no shared prompt: chosen and rejected differ before the final assistant turn"
NO_SHARED_WORDS = "no shared prompt: no prompt column, and the strings share no first words"
EMPTY_PROMPT = "empty prompt"
PROMPT_END = "the prompt does not end with a user's turn, a tool's answer or the beginning of a response"
REPEATED_BEGINNING = "the responses repeat the beginning that the prompt ends with"
NO_FINAL_REPLY = "the dialogue does not end with an assistant turn"
