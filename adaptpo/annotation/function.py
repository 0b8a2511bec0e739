"""A Python function as annotator, with the signature of TRL's `reward_funcs`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from adaptpo.annotation.base import Annotator, Request, asked_and_answered, valid_reward
from adaptpo.config.imported import import_object
from adaptpo.errors import AnnotationError, ConfigError

EXIT = os._exit
SHOWN = 300
"""Characters of what a function returned or raised."""
RewardFunction = Callable[..., list[float | None] | list[list[float]]]


@contextmanager
def exits_raised() -> Iterator[None]:
    """Makes `os._exit` raise SystemExit in this process, for a block of another's code: called there, it would end a
    run without a word, and maybe with the status of a finished one."""
    own = os.getpid()

    def leave(status: int) -> NoReturn:
        if os.getpid() != own:  # A child of the function ends as it wants to.
            EXIT(status)
        raise SystemExit(status)

    os._exit = leave
    try:
        yield
    finally:
        os._exit = EXIT


def import_function(spec: str) -> RewardFunction:
    """Returns the function that `python:package.module:function` names; the working directory is importable.

    Raises ConfigError if it cannot be found.
    """
    function = import_object(spec, "reward")
    if not callable(function):
        name = spec.rpartition(":")[2]
        raise ConfigError(f"reward '{spec}': '{name}' is a {type(function).__name__}, not a function")
    return function


class FunctionAnnotator(Annotator):
    """Calls `f(prompts=, completions=, completion_ids=, **columns) -> list[float | None]` once per shard.

    Prompts and completions are texts, or lists of chat messages if the data is conversational (a beginning of the
    response that the prompt gives belongs to the completion). `completion_ids` is left out where only texts are known,
    as in a file. Every other column of the data set is passed as a keyword with one value per completion. For a method
    with several `objectives`, the function returns a list of that many floats per completion, and `rewards` is their
    mean.
    """

    def __init__(self, function: RewardFunction, num_rewards: int = 0) -> None:
        self.function, self.count = function, num_rewards
        self.name = getattr(function, "__name__", type(function).__name__)

    def rewards(self, requests: Sequence[Request]) -> list[float | None]:
        if self.count:
            several = self.reward_vectors(requests, self.count)
            return [None if values is None else valid_reward(sum(values) / self.count) for values in several]
        return [self._valid(value, request) for value, request in zip(self._values(requests), requests, strict=True)]

    def reward_vectors(self, requests: Sequence[Request], count: int) -> list[list[float] | None]:
        found: list[list[float] | None] = []
        for value, request in zip(self._values(requests), requests, strict=True):
            if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
                raise AnnotationError(
                    f"reward function '{self.name}' returned {repr(value)[:SHOWN]} for prompt {request[0].id}, but the "
                    f"method has {count} objectives; it must return a list of {count} floats per completion"
                )
            valid = [reward for one in value if (reward := self._valid(one, request)) is not None]
            found.append(valid if len(valid) == count else None)
        return found

    def _values(self, requests: Sequence[Request]) -> Sequence[Any]:
        returned = self._call(requests)
        values = returned.tolist() if callable(getattr(returned, "tolist", None)) else returned
        if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray):
            raise AnnotationError(
                f"reward function '{self.name}' returned a {type(returned).__name__}; it must return a list of floats"
            )
        if len(values) != len(requests):
            raise AnnotationError(
                f"reward function '{self.name}' returned {len(values)} values for {len(requests)} completions "
                f"(prompts {requests[0][0].id} to {requests[-1][0].id}); it must return one float per completion"
            )
        return values

    def _call(self, requests: Sequence[Request]) -> Any:
        names = {name for prompt, _ in requests for name in prompt.columns}
        columns = {name: [prompt.columns.get(name) for prompt, _ in requests] for name in sorted(names)}
        asked, answered = zip(*(asked_and_answered(*request) for request in requests), strict=True)
        own = {"prompts": list(asked), "completions": list(answered)}
        if all(response.ids or not response.text for _, response in requests):
            own["completion_ids"] = [response.ids for _, response in requests]
        try:
            with exits_raised():
                return self.function(**(columns | own))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # Also SystemExit, which would end the run as if it were finished.
            raise AnnotationError(
                f"reward function '{self.name}' raised {type(error).__name__}: {str(error)[:SHOWN]} "
                f"(prompts {requests[0][0].id} to {requests[-1][0].id}); fix it and start the same command again. "
                "Rewards already written are kept"
            ) from error

    def _valid(self, value: Any, request: Request) -> float | None:
        try:
            return valid_reward(value)
        except Exception as error:  # An object's own conversion can raise anything.
            raise AnnotationError(
                f"reward function '{self.name}' returned {repr(value)[:SHOWN]} for prompt {request[0].id}; it must be "
                "a float"
            ) from error
