"""Calls to an HTTP endpoint: concurrent, retried with back-off, each with one deadline."""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from adaptpo.config.secrets import masked_text, remember
from adaptpo.errors import AnnotationError, ConfigError
from adaptpo.remote.store import Json
from adaptpo.remote.usage import Usage

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

Take = Callable[[int, Json], None]
Lose = Callable[[int, str], None]
Result = TypeVar("Result")

REFUSED = frozenset({400, 413, 422})
"""Status codes that blame only this request, such as a text that is too long for the server's model."""
PASSING = frozenset({408, 409, 425, 429})
"""Transient status codes, besides those of 500 and above."""
MANY_REFUSALS = 8
START_AGAIN = "when it is up again, start the same command again. Answers already received are kept"
LONGEST_WAIT, LONGEST_ASKED_WAIT = 60.0, 600.0
"""Maximum seconds between two attempts: by the client's own back-off, and if the server asks for more."""
JITTER = random.Random()
"""A separate generator: waiting must not advance the one that a run's results depend on."""


class UnusableAnswerError(Exception):
    """The server answered, but not in the form that the endpoint promises."""


@dataclass(frozen=True)
class Access:
    """How an endpoint is reached. `timeout`: maximum seconds for a whole answer, however slowly it arrives; `retries`:
    attempts after the first; `first_wait`: seconds before the second attempt, doubled for each further one."""

    url: str
    api_key: str | None = None
    concurrency: int = 8
    retries: int = 6
    timeout: float = 120.0
    first_wait: float = 1.0


def key_from_environment(name: str | None) -> str | None:
    """The key in the environment variable `name`, if any. Raises ConfigError if the variable is not set."""
    if name is None:
        return None
    if not os.environ.get(name):
        raise ConfigError(f"the environment variable {name} is not set; it must hold the API key of the endpoint")
    remember(os.environ[name])
    return os.environ[name]


def nothing_to_revive() -> None:
    """Does nothing; for servers that the run did not start."""


class Endpoint:
    """Posts requests to an endpoint. `revive` is called in a thread before a request is repeated, and restarts a server
    that died; an error that it raises ends all requests. `slots` is entered for each request, by all endpoints that
    share a limit."""

    def __init__(
        self,
        access: Access,
        path: str,
        usage: Usage,
        revive: Callable[[], None] = nothing_to_revive,
        slots: AbstractAsyncContextManager[None] = nullcontext(),  # noqa: B008 - it has no state.
    ) -> None:
        require_openai()
        self.slots = slots
        self.access, self.path, self.usage, self.revive = access, path, usage, revive
        self.refusal = ""
        """The server's message about the last request that it refused."""

    def post(self, bodies: Sequence[Json], take: Take, lose: Lose | None = None) -> list[int]:
        """Posts every body. `take(number, answer)` receives each answer's JSON as soon as it arrives, and may raise
        UnusableAnswerError to repeat the request.

        Returns the numbers of the bodies that the server refused; they have no answer. Raises AnnotationError for
        permanent failures, and when the attempts are used up; calls in progress are finished first. With `lose`, a body
        that is refused or whose attempts are used up raises nothing: `lose(number, problem)` is called instead.
        """
        return run_in_loop(self._post(bodies, take, lose)) if bodies else []

    async def _post(self, bodies: Sequence[Json], take: Take, lose: Lose | None) -> list[int]:
        waiting = deque(enumerate(bodies))
        refused: list[int] = []
        async with self._client() as client:

            async def work() -> None:
                while waiting:
                    try:
                        async with self.slots:
                            if not waiting:
                                return
                            number, body = waiting.popleft()
                            await self._answer(client, body, partial(take, number))
                    except Refusal as refusal:
                        self.refusal = str(refusal)
                        refused.append(number)
                        if lose is not None:
                            lose(number, self.refusal)
                    except Unanswered as problem:
                        if lose is None:
                            waiting.clear()
                            raise AnnotationError(f"{problem}; {START_AGAIN}") from problem
                        lose(number, str(problem))
                    except BaseException:
                        waiting.clear()
                        raise

            outcomes = await asyncio.gather(*(work() for _ in range(self.access.concurrency)), return_exceptions=True)
        for failure in filter(None, outcomes):
            raise failure
        return sorted(refused)

    def _client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        # The client requires a key; servers without one ignore it.
        key = self.access.api_key or "none"
        return AsyncOpenAI(base_url=self.access.url, api_key=key, max_retries=0, timeout=self.access.timeout)

    async def _answer(self, client: AsyncOpenAI, body: Json, take: Callable[[Json], None]) -> None:
        for attempt in range(self.access.retries + 1):
            self.usage["requests"] += 1
            try:
                return take(await self._attempt(client, body))
            except UnusableAnswerError as error:
                problem = PassingFault(f"an unusable answer: {masked_text(str(error))}")
            except PassingFault as fault:
                problem = fault
            if attempt < self.access.retries:
                self.usage["retries"] += 1
                await asyncio.sleep(self._wait(attempt, problem.retry_after))
                await asyncio.to_thread(self.revive)
        raise Unanswered(f"{self.access.url} gave no answer in {self.access.retries + 1} attempts: {problem}")

    def _wait(self, attempt: int, asked: float | None) -> float:
        wait = min(self.access.first_wait * 2**attempt, LONGEST_WAIT) * JITTER.uniform(0.75, 1.0)
        return max(wait, min(asked or 0.0, LONGEST_ASKED_WAIT))

    async def _attempt(self, client: AsyncOpenAI, body: Json) -> Json:
        """Raises PassingFault for a failure that may not recur, Refusal for a body that the server refuses."""
        import openai

        try:
            call = client.post(self.path, body=body, cast_to=object)
            return await asyncio.wait_for(call, self.access.timeout)
        except TimeoutError as error:
            raise PassingFault(f"no complete answer within {self.access.timeout:g} s") from error
        except openai.APIStatusError as error:
            raise fault_of(error, self.access) from error
        except (openai.APIConnectionError, openai.APIResponseValidationError) as error:
            raise PassingFault(f"{error} {error.__cause__ or ''}".strip()) from error
        except (ValueError, RecursionError) as error:
            raise PassingFault(f"an answer that is not JSON: {error}") from error


class Refusal(Exception):  # noqa: N818 - it is an outcome of one request, not a failure.
    pass


class Unanswered(Exception):  # noqa: N818 - likewise.
    """All attempts of one request are used up."""


class PassingFault(Exception):  # noqa: N818
    def __init__(self, problem: str, retry_after: float | None = None) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


def fault_of(error: APIStatusError, access: Access) -> Exception:
    state, problem = error.status_code, masked_text(" ".join(str(error).split()))[:300]
    if state >= 500 or state in PASSING:
        return PassingFault(problem, seconds(error.response.headers.get("retry-after")))
    if state in REFUSED:
        return Refusal(problem)
    if state in (401, 403):
        remedy = "check the key in the environment variable that api_key_env names"
    else:
        remedy = "check the address and the model's name"
    return AnnotationError(f"{access.url} answered with status {state}: {problem}; {remedy}")


def seconds(retry_after: str | None) -> float | None:
    """The seconds of a header `Retry-After`; dates, its other form, are not read."""
    try:
        return None if retry_after is None else float(retry_after)
    except ValueError:
        return None


def require_openai() -> None:
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise ConfigError("annotation and generation over HTTP need openai: pip install 'adaptpo[judge]'") from error


def run_in_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine to its end, even if a loop is already running, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
