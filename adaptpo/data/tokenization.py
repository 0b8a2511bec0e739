"""Tokenizes preference examples such that offline and generated responses look alike to the model.

The rules, and their differences from TRL's DPOTrainer (checked against 1.16):

- Both tokenize prompt and response together and cut after the prompt. If tokens merge across that border, TRL gives up
  the prompt's last tokens; here the prompt keeps the exact ids that generation sees, and the response's text is
  tokenized by itself.
- If a chat template renders the prompt differently once a response follows, TRL cuts at the first difference and warns;
  here the row is left out with a reason.
- A response ends at its stop token. Text that the template writes after it (often a line break) is cut, and if the
  template writes no stop token, the tokenizer's EOS is added; TRL keeps the former and does not add the latter.
- If a tokenizer appends EOS to every text, the prompt gets none and a response only one; BOS occurs once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from adaptpo.errors import DataError, ModelError
from adaptpo.types import Message, PreferenceExample, Response, Text

TemplateOptions = Mapping[str, Any]

PROMPT_RENDERED_DIFFERENTLY = "the chat template renders the prompt differently when a response follows"
PROMPT_TOO_LONG = "prompt longer than max_prompt_length"
NO_ROOM = "prompt leaves no room for a response within max_length"
NO_MAPPING = "chat_template_kwargs is not a mapping"
STOP_TOKEN_INSIDE = "a stop token stands inside a response"
EMPTY_RESPONSE_TOKENS = "a response has no tokens before its end"
EQUAL_TOKENS = "chosen equals rejected after tokenization and truncation"
TEMPLATE_PROBE = "probe"
WORD_START = "\u2581"
ANCHORS = ("\n", ".", "0", "\u00e9")
PROBES = {"user": "quokka", "assistant": "wombat"}
OTHER_PROBE = "numbat"
"""Words that no template writes by itself."""


class TemplateProblem(Exception):  # noqa: N818 - never reaches the user: it becomes a reason
    """The chat template cannot render these messages; the message is the reason."""


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of one preference example: the prompt as generation sees it, and both responses."""

    prompt_ids: list[int]
    chosen: Response
    rejected: Response


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: Any = None) -> frozenset[int]:
    """Ids that end a response: the tokenizer's EOS, the generation config's, and the chat template's end of turn.

    The template's token matters for base models with a chat template, whose EOS is a different token.

    Raises:
        ModelError: there is none, and no generation would ever end.
    """
    configured = getattr(generation_config, "eos_token_id", None)
    ids = {*(configured if isinstance(configured, list | tuple) else [configured])}
    ids |= {tokenizer.eos_token_id, _template_end_of_turn(tokenizer)}
    ids.discard(None)
    if not ids:
        raise ModelError("the tokenizer has no end-of-sequence token; set tokenizer.eos_token and save the tokenizer.")
    return frozenset(ids)


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase, text: Text, template_options: TemplateOptions | None = None
) -> list[int]:
    """Returns the ids of a prompt, ready for generation.

    A string gets the special tokens that the tokenizer puts before a text (BOS once), and none after it. Messages are
    rendered by the chat template with its generation prompt.

    Args:
        template_options: keyword arguments for the chat template, such as `enable_thinking`.

    Raises:
        ModelError: `text` is messages, but the tokenizer has no chat template or its template refuses them.
    """
    if isinstance(text, str):
        return _encode_text(tokenizer, text)
    try:
        return _encode_rendered(tokenizer, _render(tokenizer, text, template_options, open_reply=True))
    except TemplateProblem as problem:
        raise ModelError(f"{problem}; leave this prompt out or use another chat template.") from problem


def tokenize_pair(
    example: PreferenceExample,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int | None,
    max_completion_length: int | None,
    stop_ids: frozenset[int] | None = None,
    template_options: TemplateOptions | None = None,
    max_length: int | None = None,
) -> TokenizedPair | str:
    """Tokenizes an example, or returns the reason for leaving it out.

    A response longer than `max_completion_length`, or than what the prompt leaves of `max_length`, is cut. It then has
    no stop token, its text is cut as well, and `ended` is False.

    Args:
        max_prompt_length, max_completion_length, max_length: of prompt, response and both together in tokens, including
            special tokens; None for no limit.
        stop_ids: from `stop_token_ids`; pass it to save the work per example and to respect a generation config.
        template_options: keyword arguments for the chat template, such as `enable_thinking`.

    Raises:
        ModelError: the example is messages, but the tokenizer has no chat template; or the tokenizer has no EOS.
    """
    stop_ids = stop_token_ids(tokenizer) if stop_ids is None else stop_ids
    try:
        prompt_ids, chosen_ids, rejected_ids = _pair_ids(tokenizer, example, template_options)
    except TemplateProblem as problem:
        return str(problem)
    if max_prompt_length is not None and len(prompt_ids) > max_prompt_length:
        return f"{PROMPT_TOO_LONG} ({max_prompt_length})"
    if max_length is not None:
        room = max_length - len(prompt_ids)
        max_completion_length = room if max_completion_length is None else min(max_completion_length, room)
        if room < 1:
            return f"{NO_ROOM} ({max_length})"
    chosen_ids, rejected_ids = (_end_response(tokenizer, ids, stop_ids) for ids in (chosen_ids, rejected_ids))
    if reason := _response_problem(chosen_ids, stop_ids) or _response_problem(rejected_ids, stop_ids):
        return reason
    chosen = _cut_response(tokenizer, example.chosen, chosen_ids, max_completion_length)
    rejected = _cut_response(tokenizer, example.rejected, rejected_ids, max_completion_length)
    return EQUAL_TOKENS if chosen.ids == rejected.ids else TokenizedPair(prompt_ids, chosen, rejected)


def options_of(columns: Mapping[str, Any], settings: TemplateOptions) -> TemplateOptions | None:
    """The chat template's arguments for a row: the run's settings, overridden by the row's `chat_template_kwargs` as in
    TRL; None if that column is not a mapping. A key that is null in the row does not override."""
    own = columns.get("chat_template_kwargs") or {}
    if not isinstance(own, Mapping):
        return None
    return {**settings, **{name: value for name, value in own.items() if value is not None}}


def decode_response(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: frozenset[int] | None = None
) -> str:
    """The text of response ids: up to the first stop token, without special tokens, with its whitespace unchanged."""
    stop_ids = stop_token_ids(tokenizer) if stop_ids is None else stop_ids
    end = next((index for index, token in enumerate(ids) if token in stop_ids), len(ids))
    return tokenizer.decode(list(ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def ending_token(tokenizer: PreTrainedTokenizerBase, prompt: Text, stop_ids: frozenset[int]) -> int:
    """The stop token that ended a response known only as text: the chat template's end of turn after messages,
    otherwise EOS."""
    turn = None if isinstance(prompt, str) else _template_end_of_turn(tokenizer)
    likely = (turn, tokenizer.eos_token_id, min(stop_ids))
    return next(token for token in likely if token in stop_ids)


def foreign_ids(
    tokenizer: PreTrainedTokenizerBase, vocabulary: int, stop_ids: frozenset[int] = frozenset()
) -> list[int]:
    """The ids below `vocabulary`, the length of a model's embedding, for which the tokenizer has no token: they would
    be trained on and read as nothing. A stop token is none of them, because it is never read."""
    known = {*tokenizer.get_vocab().values(), *stop_ids}
    return [token for token in range(vocabulary) if token not in known]


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerBase, model_config: Any) -> None:
    """Raises ModelError if the tokenizer has ids for which the model has no embedding."""
    text_config = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    if needed > text_config.vocab_size:
        raise ModelError(
            f"the tokenizer has token ids up to {needed - 1} (size {needed}), but the model's embedding has "
            f"{text_config.vocab_size} rows; use the model's own tokenizer, or call "
            f"model.resize_token_embeddings({needed}) and save the model."
        )


def _pair_ids(
    tokenizer: PreTrainedTokenizerBase, example: PreferenceExample, options: TemplateOptions | None
) -> tuple[list[int], list[int], list[int]]:
    prompt, chosen, rejected = example.prompt, example.chosen, example.rejected
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        prompt_ids = _encode_text(tokenizer, prompt)
        chosen_ids, rejected_ids = (_text_response_ids(tokenizer, prompt_ids, prompt, t) for t in (chosen, rejected))
        return prompt_ids, chosen_ids, rejected_ids
    if isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
        raise DataError(f"row {example.row} mixes strings and chat messages; give all three texts in one format.")
    opened = _render(tokenizer, prompt, options, open_reply=True)
    prompt_ids = _encode_rendered(tokenizer, opened)
    conversations = [_render(tokenizer, [*prompt, *response], options) for response in (chosen, rejected)]
    chosen_ids, rejected_ids = (_chat_response_ids(tokenizer, prompt_ids, opened, text) for text in conversations)
    return prompt_ids, chosen_ids, rejected_ids


def _text_response_ids(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], prompt: str, text: str) -> list[int]:
    together = _encode_text(tokenizer, prompt + text)
    if together[: len(prompt_ids)] == prompt_ids:
        return together[len(prompt_ids) :]
    return tokenize_continuation(tokenizer, text)


def _chat_response_ids(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], prompt: str, conversation: str
) -> list[int]:
    if not conversation.startswith(prompt):
        raise TemplateProblem(PROMPT_RENDERED_DIFFERENTLY)
    together = _encode_rendered(tokenizer, conversation)
    if together[: len(prompt_ids)] == prompt_ids:
        return together[len(prompt_ids) :]
    return tokenize_continuation(tokenizer, conversation[len(prompt) :])


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    options: TemplateOptions | None,
    open_reply: bool = False,
) -> str:
    if not tokenizer.chat_template:
        raise ModelError(
            "the data are chat messages, but the tokenizer has no chat template; use an instruction-tuned model's "
            "tokenizer, set tokenizer.chat_template, or give the data as strings."
        )
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=open_reply, **(options or {})
        )
    except jinja2.TemplateError as error:
        raise TemplateProblem(f"the chat template refuses the messages: {error}") from error


def _encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # A rendered conversation already has its special tokens; the tokenizer's own would double BOS.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def tokenize_continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the ids of a text that continues another one."""
    ids = _encode_rendered(tokenizer, text)
    if not ids or not str(tokenizer.convert_ids_to_tokens(ids[0])).startswith(WORD_START):
        return ids
    # SentencePiece puts a space before every text, some tokenizers even before a space, but none after an anchor.
    for anchor in ANCHORS:
        before, together = _encode_rendered(tokenizer, anchor), _encode_rendered(tokenizer, anchor + text)
        if together[: len(before)] == before:
            return together[len(before) :]
    return ids


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns ids with the special tokens that the tokenizer puts before a text, without those it puts after it."""
    ids, plain = list(tokenizer(text)["input_ids"]), _encode_rendered(tokenizer, text)
    before = next((start for start in range(len(ids) - len(plain) + 1) if ids[start : start + len(plain)] == plain), 0)
    ids = ids[: before + len(plain)]
    while before and len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]  # the text itself began with BOS
    return ids


def _end_response(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop_ids: frozenset[int]) -> list[int]:
    """Ends the response at the first stop token of its tail of stop tokens and whitespace, or appends EOS."""
    start = len(ids)
    while start and (ids[start - 1] in stop_ids or _is_blank(tokenizer, ids[start - 1])):
        start -= 1
    end = next((index for index in range(start, len(ids)) if ids[index] in stop_ids), None)
    if end is not None:
        return ids[: end + 1]
    return [*ids, min(stop_ids) if tokenizer.eos_token_id is None else tokenizer.eos_token_id]


def _is_blank(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    return not tokenizer.decode([token]).strip()


def _response_problem(ids: list[int], stop_ids: frozenset[int]) -> str:
    if len(ids) < 2:
        return EMPTY_RESPONSE_TOKENS
    return STOP_TOKEN_INSIDE if any(token in stop_ids for token in ids[:-1]) else ""


def _cut_response(tokenizer: PreTrainedTokenizerBase, text: Text, ids: list[int], limit: int | None) -> Response:
    if limit is None or len(ids) <= limit:
        return Response(text, ids)
    # The text is cut as well: an annotator must judge what the model is trained on.
    cut = tokenizer.decode(ids[:limit], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    cut_text: Text = cut if isinstance(text, str) else [{**text[-1], "content": cut}]
    return Response(cut_text, ids[:limit], ended=False)


def _template_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes directly after an assistant's words, if any."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": TEMPLATE_PROBE}]
    try:
        behind = _render(tokenizer, turns, None).rpartition(TEMPLATE_PROBE)[2]
    except TemplateProblem:
        return None
    first = next(iter(_encode_rendered(tokenizer, behind)), None)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return first if first in special else None


def template_drops(
    tokenizer: PreTrainedTokenizerBase, role: str, template_options: TemplateOptions | None = None
) -> bool:
    """Whether the chat template says nothing of this role's words in a short conversation; False if it refuses one."""
    turns = [{"role": name, "content": words} for name, words in PROBES.items()]
    turns = turns if role in PROBES else [{"role": role, "content": OTHER_PROBE}, *turns]
    try:
        rendered = _render(tokenizer, turns, template_options)
    except TemplateProblem:
        return False
    return PROBES.get(role, OTHER_PROBE) not in rendered.lower()
