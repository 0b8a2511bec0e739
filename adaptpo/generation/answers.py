"""Turns a server's answer into responses with the token ids that training needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from adaptpo.data.encoding import tokenize_continuation
from adaptpo.data.tokenization import decode_response, ending_token
from adaptpo.errors import GenerationError
from adaptpo.generation.base import Sampling
from adaptpo.remote.client import field
from adaptpo.remote.endpoint import UnusableAnswerError
from adaptpo.remote.store import Json
from adaptpo.remote.usage import Usage
from adaptpo.types import Prompt, Response

READS_PROMPTS_DIFFERENTLY = (
    "the server's tokenizer is another one, or adds BOS differently; serve the checkpoint's own folder with its own "
    "tokenizer, without a chat template or tokenizer of the server's, or set generation.api to vllm if the server "
    "takes token ids"
)


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str | None:
    """A text that the tokenizer, as a server applies it, turns into exactly the prompt's ids; None if there is none.

    If the tokenizer puts BOS before every text, a rendered prompt is sent without its own.
    """
    candidates = [prompt.text] if isinstance(prompt.text, str) else []
    candidates += [
        tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for ids in (prompt.ids, prompt.ids[1:])
    ]
    return next((text for text in candidates if list(tokenizer(text)["input_ids"]) == prompt.ids), None)


@dataclass(frozen=True)
class AnswerReader:
    """Reads `count` responses from each answer.

    If a server returns no token ids, its text is tokenized; `usage["retokenized_differently"]` counts the responses for
    which the server had a different number of tokens. A response with ids for which the tokenizer has no token is left
    out, as the annotator would not see them; `usage["ids_beyond_the_tokenizer"]` counts these.
    """

    tokenizer: PreTrainedTokenizerBase
    usage: Usage

    def responses(self, answer: Json, prompt: Prompt, count: int, sampling: Sampling) -> list[Response]:
        """Raises UnusableAnswerError if a repeated request may succeed, GenerationError if the server read a prompt
        other than training's."""
        choices = field(answer, "choices")
        if not isinstance(choices, list) or len(choices) != count:
            raise UnusableAnswerError(f"it holds {len(choices)} responses; the request asked for {count}")
        check_prompt(answer, choices, prompt)
        found = [self._response(choice, prompt, sampling) for choice in choices]
        self._count(answer, found)
        readable = [response for response in found if self._has_tokens(response, sampling)]
        self.usage["ids_beyond_the_tokenizer"] += len(found) - len(readable)
        return readable

    def _has_tokens(self, response: Response, sampling: Sampling) -> bool:
        return self.known.union(sampling.stop_ids).issuperset(response.ids)

    @cached_property
    def known(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_vocab().values())

    def _response(self, choice: Json, prompt: Prompt, sampling: Sampling) -> Response:
        finish = field(choice, "finish_reason")
        if finish not in ("stop", "length"):
            raise UnusableAnswerError(f"a response finished with {finish!r}")
        ids, stops = self._ids(choice), sampling.stop_ids
        if finish == "stop" and (not ids or ids[-1] not in stops):
            ids.append(ending_token(self.tokenizer, prompt.text, stops))
        if not ids or len(ids) > sampling.max_new_tokens or any(token in stops for token in ids[:-1]):
            raise UnusableAnswerError(f"a response of {len(ids)} tokens is empty, too long, or continues after its end")
        text = decode_response(self.tokenizer, ids, stops)
        return Response(text=text, ids=ids, ended=ids[-1] in stops)

    def _ids(self, choice: Json) -> list[int]:
        given = choice.get("token_ids")
        if given is not None:
            return list(given)
        text = field(choice, "text")
        if not isinstance(text, str):
            raise UnusableAnswerError(f"a response's text is {str(text)[:100]}")
        return tokenize_continuation(self.tokenizer, text)

    def _count(self, answer: Json, found: Sequence[Response]) -> None:
        usage = answer.get("usage") or {}
        made = usage.get("completion_tokens")
        self.usage["prompt_tokens"] += usage.get("prompt_tokens") or 0
        self.usage["completion_tokens"] += made or 0
        self.usage["retokenized_differently"] += made not in (None, sum(len(response.ids) for response in found))


def check_prompt(answer: Json, choices: Sequence[Json], prompt: Prompt) -> None:
    """Raises GenerationError if the server's prompt tokens, or at least their number, are not those of training."""
    for choice in choices:
        read = choice.get("prompt_token_ids")
        if read is not None and list(read) != prompt.ids:
            raise GenerationError(
                f"the server read prompt {prompt.id} as the tokens {summary(read)}, and training reads "
                f"{summary(prompt.ids)}; {READS_PROMPTS_DIFFERENTLY}"
            )
    counted = (answer.get("usage") or {}).get("prompt_tokens")
    if counted is None:
        raise GenerationError(
            "the server does not report the number of prompt tokens (usage.prompt_tokens). Without it, a prompt that "
            "the server reads differently from training would go unnoticed; use a server that reports it"
        )
    if counted != len(prompt.ids):
        raise GenerationError(
            f"the server read prompt {prompt.id} as {counted} tokens, and training reads {len(prompt.ids)}; "
            f"{READS_PROMPTS_DIFFERENTLY}"
        )


def summary(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:12]))
    return f"[{shown}, ...] ({len(ids)})" if len(ids) > 12 else f"[{shown}]"
