"""Conversations with a language model behind an OpenAI-compatible endpoint, each paid for once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from adaptpo.remote.client import Remote, field
from adaptpo.remote.endpoint import Access, UnusableAnswerError
from adaptpo.remote.store import AnswerStore, Json
from adaptpo.remote.usage import Usage

LENGTH = "length"
"""The reason of an end that was a cut."""


class Chat:
    """Asks one model. `options` are additional request fields, such as `seed` or `reasoning_effort`."""

    def __init__(self, model: str, access: Access, store: AnswerStore, options: Mapping[str, Any]) -> None:
        self.model, self.options = model, options
        self.usage: Usage = Counter()
        self.remote = Remote(access, "/chat/completions", self._body, self._read, is_reply, store, self.usage)

    @property
    def refusal(self) -> str:
        """What the server said about the last request that it refused."""
        return self.remote.endpoint.refusal

    def ask(self, conversations: Sequence[Sequence[Json]]) -> list[Json]:
        """`text` and `finish` of each answer, with `logprobs` of its first token where the request asks for them; None
        where the server refused a conversation."""
        return self.remote.ask(conversations)

    def _body(self, conversations: Sequence[Sequence[Json]]) -> Json:
        (messages,) = conversations
        return {"model": self.model, "messages": list(messages), **self.options}

    def _read(self, answer: Json) -> list[Json]:
        message = field(answer, "choices", 0, "message")
        text = message.get("content") if isinstance(message, dict) else None  # None: the model declined to answer.
        self._count_tokens(answer)
        if not isinstance(text, str | None):
            raise UnusableAnswerError(f"its content is of type {type(text).__name__}")
        readable = (text or "").encode(errors="replace").decode()  # Half a surrogate pair cannot be written to a file.
        found = {"text": readable, "finish": field(answer, "choices", 0, "finish_reason")}
        return [found | ({"logprobs": first_logprobs(answer)} if self.options.get("logprobs") else {})]

    def _count_tokens(self, answer: Json) -> None:
        usage = answer.get("usage")
        for name in ("prompt_tokens", "completion_tokens"):
            count = usage.get(name) if isinstance(usage, dict) else None
            self.usage[name] += count if isinstance(count, int) and 0 < count < 2**40 else 0


def is_reply(answer: Json) -> bool:
    """Whether this is an answer as `Chat` reads them."""
    if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
        return False
    logprobs = answer.get("logprobs") or {}
    numbers = isinstance(logprobs, dict) and all(isinstance(one, float) and one == one for one in logprobs.values())
    return numbers and isinstance(answer.get("finish"), str | None)


def first_logprobs(answer: Json) -> dict[str, float] | None:
    """The alternatives of the first token, in nats; None where the server tells none."""
    content = (answer["choices"][0].get("logprobs") or {}).get("content")
    if not content:
        return None
    return {one["token"]: float(one["logprob"]) for one in content[0].get("top_logprobs") or [content[0]]}
