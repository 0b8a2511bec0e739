"""Questions to a remote annotator, each paid for once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adaptpo.remote.endpoint import Access, Endpoint, UnusableAnswerError
from adaptpo.remote.store import AnswerStore, Json, content_key
from adaptpo.remote.usage import Usage

ToBody = Callable[[Sequence[Json]], Json]
FromAnswer = Callable[[Json], list[Json]]


class Remote:
    """Asks an endpoint, `batch_size` questions per request, and stores each answer by the hash of address and question.

    `body` makes the request for a batch of questions; `read` takes one answer per question from the response.
    """

    def __init__(
        self,
        access: Access,
        path: str,
        body: ToBody,
        read: FromAnswer,
        store: AnswerStore,
        usage: Usage,
        batch_size: int = 1,
    ) -> None:
        self.endpoint = Endpoint(access, path, usage)
        self.address = f"{access.url.rstrip('/')}{path}"
        self.body, self.read, self.store = body, read, store
        self.usage, self.batch_size = usage, batch_size

    def ask(self, questions: Sequence[Json]) -> list[Json]:
        """Returns one answer per question; None if the endpoint refused it."""
        keys = [content_key(self.address, self.body([question])) for question in questions]
        self.store.refresh()
        open_questions = {k: q for k, q in zip(keys, questions, strict=True) if k not in self.store}
        self.usage["reused"] += len(keys) - len(open_questions)
        self._ask(list(open_questions), list(open_questions.values()))
        return [self.store.get(key) for key in keys]

    def _ask(self, keys: Sequence[str], questions: Sequence[Json]) -> None:
        starts = range(0, len(keys), self.batch_size)
        batches = [slice(start, start + self.batch_size) for start in starts]

        def keep(number: int, response: Json) -> None:
            asked, answers = keys[batches[number]], self.read(response)
            if len(answers) != len(asked):
                raise UnusableAnswerError(f"it holds {len(answers)} answers to {len(asked)} questions")
            for key, answer in zip(asked, answers, strict=True):
                self.store.add(key, answer)

        self.endpoint.post([self.body(questions[batch]) for batch in batches], keep)


def field(answer: Json, *path: str | int) -> Json:
    """The value at a path of an answer; raises UnusableAnswerError if there is none."""
    for name in path:
        try:
            answer = answer[name]
        except (KeyError, IndexError, TypeError) as error:
            where = ".".join(map(str, path))
            raise UnusableAnswerError(f"it has no {where}: {str(answer)[:200]}") from error
    return answer
