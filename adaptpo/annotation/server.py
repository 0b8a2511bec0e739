"""A reward model behind an HTTP address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from adaptpo.annotation.base import Annotator, Request, asked_and_answered, valid_reward
from adaptpo.data.tools import read_tools
from adaptpo.remote.client import Remote, field
from adaptpo.remote.endpoint import Access, UnusableAnswerError
from adaptpo.remote.store import AnswerStore, Json
from adaptpo.remote.usage import Usage, take
from adaptpo.types import Prompt, Response


class RewardServer(Annotator):
    """Posts `{"items": [{"prompt": ..., "response": ...}, ...]}` and reads `{"rewards": [number or null, ...]}`.

    Prompts and responses are texts, or lists of chat messages if the data is conversational; an item also has the
    `tools` of a row that has any. `options` are additional request fields.
    """

    def __init__(self, access: Access, store: AnswerStore, options: dict[str, Any], batch_size: int = 16) -> None:
        self.options = options
        self.usage: Usage = Counter()
        self.remote = Remote(access, "", self._body, self._read, is_reward, store, self.usage, batch_size)

    def rewards(self, requests: Sequence[Request]) -> list[float | None]:
        return [valid_reward(reward) for reward in self.remote.ask([item_of(*request) for request in requests])]

    def take_usage(self) -> dict[str, int]:
        return take(self.usage)

    def _body(self, items: Sequence[Json]) -> Json:
        return {"items": list(items), **self.options}

    def _read(self, answer: Json) -> list[Json]:
        rewards = field(answer, "rewards")
        if not isinstance(rewards, list):
            raise UnusableAnswerError(f"rewards must be a list; found {str(rewards)[:100]}")
        return [number_or_none(value) for value in rewards]


class VllmRewardServer(RewardServer):
    """vLLM's pooling endpoint (`vllm serve MODEL --runner pooling`, address `.../pooling`): one request per response,
    `{"model": ..., "messages": [...]}` or, for plain text, `{"model": ..., "input": ...}`; the reward is the single
    number in `data[0].data`. Tools reach the template as `chat_template_kwargs.tools`."""

    def __init__(self, access: Access, store: AnswerStore, options: dict[str, Any]) -> None:
        super().__init__(access, store, options, batch_size=1)

    def _body(self, items: Sequence[Json]) -> Json:
        (item,) = items
        prompt, response = item["prompt"], item["response"]
        texts = {"input": prompt + response} if isinstance(prompt, str) else {"messages": [*prompt, *response]}
        return {**texts, **self.options, **self._template_arguments(item)}

    def _template_arguments(self, item: Json) -> Json:
        if "tools" not in item:
            return {}
        return {"chat_template_kwargs": {**(self.options.get("chat_template_kwargs") or {}), "tools": item["tools"]}}

    def _read(self, answer: Json) -> list[Json]:
        value = field(answer, "data", 0, "data")
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        return [number_or_none(value)]


def item_of(prompt: Prompt, response: Response) -> Json:
    asked, answered = asked_and_answered(prompt, response)
    tools = read_tools(prompt.columns.get("tools"))
    return {"prompt": asked, "response": answered, **({"tools": tools} if tools else {})}


def number_or_none(value: Json) -> float | None:
    """The reward; None for null, NaN and the infinities."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        try:
            return valid_reward(value)
        except OverflowError:
            pass
    raise UnusableAnswerError(f"a reward must be a number or null; found {str(value)[:100]}")


def is_reward(value: Json) -> bool:
    try:
        number_or_none(value)
    except UnusableAnswerError:
        return False
    return True
