"""Questions to a remote annotator, each paid for once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from adaptpo.errors import AnnotationError
from adaptpo.remote.endpoint import MANY_REFUSALS, Access, Endpoint, UnusableAnswerError
from adaptpo.remote.store import AnswerStore, Json, content_key
from adaptpo.remote.usage import Usage

ToBody = Callable[[Sequence[Json]], Json]
FromAnswer = Callable[[Json], list[Json]]
ODD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading an answer raises that is not what the endpoint promises."""


class Remote:
    """Asks an endpoint, `batch_size` questions per request, and stores each answer by the hash of address and question.

    `body` makes the request for a batch of questions; `read` takes one answer per question from the response. An answer
    that `is_usable` denies is not stored, and one in the store is asked for again.
    """

    def __init__(
        self,
        access: Access,
        path: str,
        body: ToBody,
        read: FromAnswer,
        is_usable: Callable[[Json], bool],
        store: AnswerStore,
        usage: Usage,
        batch_size: int = 1,
    ) -> None:
        self.endpoint = Endpoint(access, path, usage)
        self.address = f"{access.url.rstrip('/')}{path}"
        self.body, self.read, self.is_usable, self.store = body, read, is_usable, store
        self.usage, self.batch_size = usage, batch_size

    def ask(self, questions: Sequence[Json]) -> list[Json]:
        """Returns one answer per question; None if the endpoint refused it."""
        keys = [content_key(self.address, self.body([question])) for question in questions]
        found = self._stored(keys)
        open_questions = {k: q for k, q in zip(keys, questions, strict=True) if k not in found}
        self.usage["reused"] += len(keys) - len(open_questions)
        refused = self._refused(list(open_questions), list(open_questions.values()), self.batch_size)
        self.usage["refused"] += len(refused)
        found |= self._stored(open_questions)
        if len(refused) >= MANY_REFUSALS and not found:
            raise AnnotationError(f"{self.address} refused all {len(refused)} requests: {self.endpoint.refusal}")
        return [found.get(key) for key in keys]

    def _stored(self, keys: Iterable[str]) -> dict[str, Json]:
        return {key: answer for key, answer in self.store.find(keys).items() if self.is_usable(answer)}

    def _refused(self, keys: Sequence[str], questions: Sequence[Json], together: int) -> list[str]:
        """Asks so many questions in a request, and one by one those of a request that the endpoint refuses. Returns the
        keys of those that it refuses alone."""
        batches = [slice(start, start + together) for start in range(0, len(keys), together)]

        def keep(number: int, response: Json) -> None:
            asked = keys[batches[number]]
            self.store.add(dict(zip(asked, self._read(response, len(asked)), strict=True)))

        refused = self.endpoint.post([self.body(questions[batch]) for batch in batches], keep)
        if together == 1:
            return [keys[number] for number in refused]
        again = [place for number in refused for place in range(len(keys))[batches[number]]]
        return self._refused([keys[place] for place in again], [questions[place] for place in again], 1)

    def _read(self, response: Json, count: int) -> list[Json]:
        """Usable answers to so many questions. Raises UnusableAnswerError if there are others."""
        try:
            answers = self.read(response)
        except ODD as error:
            raise UnusableAnswerError(f"{str(response)[:200]} ({type(error).__name__}: {error})") from error
        if len(answers) != count:
            raise UnusableAnswerError(f"it holds {len(answers)} answers to {count} questions")
        if odd := [answer for answer in answers if not self.is_usable(answer)]:
            raise UnusableAnswerError(f"found {str(odd[0])[:100]}")
        return answers


def field(answer: Json, *path: str | int) -> Json:
    """The value at a path of an answer; raises UnusableAnswerError if there is none."""
    for name in path:
        try:
            answer = answer[name]
        except (KeyError, IndexError, TypeError) as error:
            where = ".".join(map(str, path))
            raise UnusableAnswerError(f"it has no {where}: {str(answer)[:200]}") from error
    return answer
