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
- If a prompt ends with an assistant's turn, the response continues that turn, as in TRL's `apply_chat_template`; TRL's
  DPOTrainer ends it and opens another.
- An empty list of tools or tool calls is none; TRL passes it to the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from adaptpo.data.conversation import joined
from adaptpo.data.encoding import encode_rendered, encode_text, tokenize_continuation
from adaptpo.data.limits import SEVERAL_TURNS_CUT, STOP_TOKEN_INSIDE, Limits, beginning, decisive, refuse_endless
from adaptpo.data.problems import RowProblem
from adaptpo.data.templates import (
    PROMPT_RENDERED_DIFFERENTLY,
    TemplateOptions,
    TemplateProblem,
    check_continues,
    options_of,
    render,
)
from adaptpo.data.turns import Encoded, several_turns
from adaptpo.errors import DataError, ModelError
from adaptpo.types import PreferenceExample, Response, Text

SEVERAL_TURNS = "chosen and rejected differ in more than one turn (trained_turns: all trains on all of the assistant's)"
EMPTY_RESPONSE_TOKENS = "a response has no tokens before its end"
EQUAL_TOKENS = "chosen equals rejected after tokenization and truncation"
TEMPLATE_PROBE = "probe"


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
    rendered by the chat template with its generation prompt, or, if the last turn is the assistant's, up to the end of
    its words, so that generation continues it.

    Args:
        template_options: keyword arguments for the chat template, such as `enable_thinking` or `tools`.

    Raises:
        ModelError: `text` is messages, but the tokenizer has no chat template or its template refuses them.
    """
    try:
        return prompt_tokens(tokenizer, text, template_options)
    except TemplateProblem as problem:
        raise ModelError(f"{problem}; leave this prompt out or use another chat template.") from problem


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase,
    text: Text,
    template_options: TemplateOptions | None = None,
    limit: int | None = None,
) -> list[int]:
    """Like `tokenize_prompt`, but raises TemplateProblem if the template refuses the messages. Of a prompt with many
    more tokens than the limit, only the beginning is read; its ids are more than the limit, too."""
    if isinstance(text, str):
        return encode_text(tokenizer, beginning(tokenizer, text, limit))
    return _rendered_ids(tokenizer, render(tokenizer, text, template_options, open_reply=True), limit)


def _rendered_ids(tokenizer: PreTrainedTokenizerBase, rendered: str, limit: int | None) -> list[int]:
    return encode_rendered(tokenizer, beginning(tokenizer, rendered, limit))


def tokenize_pair(
    example: PreferenceExample,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int | None,
    max_completion_length: int | None,
    stop_ids: frozenset[int] | None = None,
    template_options: TemplateOptions | None = None,
    max_length: int | None = None,
    all_turns: bool = False,
) -> TokenizedPair | str:
    """Tokenizes an example, or returns the reason for leaving it out.

    A response longer than `max_completion_length`, or than what the prompt leaves of `max_length`, is cut. It then has
    no stop token, its text is cut as well, and `ended` is False.

    Args:
        max_prompt_length, max_completion_length, max_length: of prompt, response and both together in tokens, including
            special tokens; None for no limit.
        stop_ids: from `stop_token_ids`; pass it to save the work per example and to respect a generation config.
        template_options: keyword arguments for the chat template, such as `enable_thinking`; the example's columns
            `tools` and `chat_template_kwargs` override them.
        all_turns: take responses of several turns, with a mask of the assistant's tokens; they are left out otherwise.

    Raises:
        ModelError: the example is messages, but the tokenizer has no chat template; or the tokenizer has no EOS.
    """
    stop_ids = stop_token_ids(tokenizer) if stop_ids is None else stop_ids
    if not all_turns and (_has_several_turns(example.chosen) or _has_several_turns(example.rejected)):
        return SEVERAL_TURNS
    limits = Limits(max_prompt_length, max_completion_length, max_length)
    try:
        options = options_of(example.columns, template_options)
        prompt_ids, room, sides = _encode(tokenizer, example, options, stop_ids, limits)
        texts = zip((example.chosen, example.rejected), sides, strict=True)
        chosen, rejected = (_response(tokenizer, *text, stop_ids, room) for text in texts)
    except RowProblem as problem:
        return str(problem)
    return EQUAL_TOKENS if chosen.ids == rejected.ids else TokenizedPair(prompt_ids, chosen, rejected)


def _has_several_turns(response: Text) -> bool:
    return isinstance(response, list) and len(response) > 1


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


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    example: PreferenceExample,
    options: TemplateOptions,
    stop_ids: frozenset[int],
    limits: Limits,
) -> tuple[list[int], int | None, list[Encoded]]:
    """The ids of the prompt, the number of tokens that a response may have, and both responses. Of a response with
    many more tokens, only the beginning is encoded."""
    prompt, chosen, rejected = example.prompt, example.chosen, example.rejected
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        prompt_ids = prompt_tokens(tokenizer, prompt, limit=limits.decisive)
        room = limits.room(prompt_ids)
        texts = [decisive(tokenizer, text, stop_ids, room) for text in (chosen, rejected)]
        return prompt_ids, room, [Encoded(_text_response_ids(tokenizer, prompt_ids, prompt, text)) for text in texts]
    if isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
        raise DataError(f"row {example.row} mixes strings and chat messages; give all three texts in one format.")
    opened = render(tokenizer, prompt, options, open_reply=True)
    prompt_ids = _rendered_ids(tokenizer, opened, limits.decisive)
    room = limits.room(prompt_ids)
    sides = []
    for response in (chosen, rejected):
        messages = joined(prompt, response)
        conversation = render(tokenizer, messages, options)
        if len(response) > 1:
            refuse_endless(tokenizer, conversation, room and room + len(prompt_ids))
            sides.append(several_turns(tokenizer, prompt, prompt_ids, response, options, stop_ids))
        else:
            check_continues(tokenizer, prompt, messages, options, (opened, conversation), PROMPT_RENDERED_DIFFERENTLY)
            sides.append(_one_turn(tokenizer, prompt_ids, opened, conversation, stop_ids, room))
    return prompt_ids, room, sides


def _text_response_ids(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], prompt: str, text: str) -> list[int]:
    together = encode_text(tokenizer, prompt + text)
    if together[: len(prompt_ids)] == prompt_ids:
        return together[len(prompt_ids) :]
    return tokenize_continuation(tokenizer, text)


def _one_turn(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[int],
    prompt: str,
    conversation: str,
    stop_ids: frozenset[int],
    room: int | None,
) -> Encoded:
    response = decisive(tokenizer, conversation[len(prompt) :], stop_ids, room)
    together = encode_rendered(tokenizer, prompt + response)
    if together[: len(prompt_ids)] == prompt_ids:
        return Encoded(together[len(prompt_ids) :])
    return Encoded(tokenize_continuation(tokenizer, response))


def _response(
    tokenizer: PreTrainedTokenizerBase, text: Text, encoded: Encoded, stop_ids: frozenset[int], limit: int | None
) -> Response:
    """The response with its end, cut at `limit` tokens. Raises RowProblem if it cannot be used."""
    ids = _end_response(tokenizer, encoded.ids, stop_ids)
    if len(ids) < 2:
        raise RowProblem(EMPTY_RESPONSE_TOKENS)
    if encoded.mask is not None:
        if limit is not None and len(ids) > limit:
            raise RowProblem(SEVERAL_TURNS_CUT)
        return Response(text, ids, mask=[*encoded.mask, True][: len(ids)])
    if any(token in stop_ids for token in ids[:-1]):
        raise RowProblem(STOP_TOKEN_INSIDE)
    return _cut_response(tokenizer, text, ids, limit)


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


def _cut_response(tokenizer: PreTrainedTokenizerBase, text: Text, ids: list[int], limit: int | None) -> Response:
    if limit is None or len(ids) <= limit:
        return Response(text, ids)
    # The text is cut as well: an annotator must judge what the model is trained on.
    cut = tokenizer.decode(ids[:limit], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    cut_text: Text = cut if isinstance(text, str) else [{"role": text[-1]["role"], "content": cut}]
    return Response(cut_text, ids[:limit], ended=False)


def _template_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes directly after an assistant's words, if any."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": TEMPLATE_PROBE}]
    try:
        behind = render(tokenizer, turns, None).rpartition(TEMPLATE_PROBE)[2]
    except TemplateProblem:
        return None
    first = next(iter(encode_rendered(tokenizer, behind)), None)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return first if first in special else None
