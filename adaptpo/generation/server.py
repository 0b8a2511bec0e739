"""Generation by a server with an OpenAI-compatible `/v1/completions`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

from transformers import PreTrainedTokenizerBase

from adaptpo.errors import AnnotationError, GenerationError
from adaptpo.generation.agreement import PROBES, Expected, disagreement, greedily
from adaptpo.generation.answers import AnswerReader, prompt_text
from adaptpo.generation.base import Sampling
from adaptpo.generation.dialects import Dialect
from adaptpo.generation.process import Server
from adaptpo.remote.endpoint import Access, Endpoint
from adaptpo.remote.slots import Slots
from adaptpo.remote.store import Json
from adaptpo.remote.usage import Usage
from adaptpo.seeds import seed_for
from adaptpo.types import Prompt, Response

Reach = Callable[[str], Access]
OTHER_POLICY = (
    "the server serves a model other than the policy of this phase, or computes it differently. A server at base_url "
    "must serve the folder {folder}; a server that the run starts must use the precision of training (for instance "
    "--dtype bfloat16)"
)


@dataclass(frozen=True)
class Question:
    """A request for `count` responses to the prompt at index `place` of the call."""

    place: int
    prompt: Prompt
    said: list[int] | str
    count: int
    seed: int


class ServerGenerator:
    """Generates with a server, which `opening` gives at the first call and `close` sends to rest.

    First, the server must answer two prompts greedily, as `expect` predicts for the policy at `folder`. Every answer's
    prompt is checked. Several threads may call `generate`; they share the limit on requests at a time. A response that
    does not arrive within the attempts is left out and counted in
    `usage["missing"]`.
    """

    def __init__(
        self,
        opening: Callable[[], Server],
        expect: Callable[[Sequence[Prompt]], list[Expected]],
        reach: Reach,
        dialect: Dialect,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        folder: str,
        usage: Usage,
    ) -> None:
        self.opening, self.expect, self.reach = opening, expect, reach
        self.dialect, self.tokenizer, self.sampling = dialect, tokenizer, sampling
        self.folder, self.usage = folder, usage
        self.reader = AnswerReader(tokenizer, usage)
        self.server: Server | None = None
        self.slots: Slots | None = None
        self.opening_lock, self.lock = Lock(), Lock()

    def generate(self, prompts: Sequence[Prompt], count: int, seeds: Sequence[int]) -> list[list[Response]]:
        """Raises GenerationError if the server fails, disagrees with training, or answers no request at all."""
        if not prompts:
            return []
        server = self._opened(prompts[:PROBES])
        questions = self._questions(prompts, count, seeds)
        answers = self._ask(server, questions, self.sampling)
        responses: list[list[Response]] = [[] for _ in prompts]
        for question, found in zip(questions, answers, strict=True):
            responses[question.place] += found
        with self.lock:
            self.usage["missing"] += sum(count - len(several) for several in responses)
        return responses

    def close(self) -> None:
        if self.server is not None:
            self.server.rest()
            self.server = None

    def _opened(self, prompts: Sequence[Prompt]) -> Server:
        with self.opening_lock:
            if self.server is None:
                expected = self.expect(prompts)
                self.server = self.opening()
                self.check_agreement(self.server, expected)
            return self.server

    def check_agreement(self, server: Server, expected: Sequence[Expected]) -> None:
        """Raises GenerationError if the server answers otherwise than the policy. One that took the policy's weights
        while it ran is first restarted."""
        problem = self._disagreement(server, expected)
        if problem and server.start_over():
            with self.lock:
                self.usage["reloads_that_failed"] += 1
            problem = self._disagreement(server, expected)
        if problem:
            raise GenerationError(f"{problem}; {OTHER_POLICY.format(folder=self.folder)}{told(server)}")

    def _disagreement(self, server: Server, expected: Sequence[Expected]) -> str | None:
        questions = self._questions([one.prompt for one in expected], 1, [0] * len(expected))
        answers = self._ask(server, questions, greedily(self.sampling))
        places = zip(questions, answers, strict=True)
        both = [(expected[question.place], found[0]) for question, found in places if found]
        if not both:
            return f"none of {len(questions)} answers could be compared, because their tokens are not the tokenizer's"
        return next(filter(None, (disagreement(ours, theirs) for ours, theirs in both)), None)

    def _questions(self, prompts: Sequence[Prompt], count: int, seeds: Sequence[int]) -> list[Question]:
        """One question per prompt if the server gives several responses at once, otherwise one per response. Prompts
        that cannot be sent to the server are counted."""
        questions = []
        for place, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            said = prompt.ids if self.dialect.takes_ids else prompt_text(self.tokenizer, prompt)
            if said is None:
                with self.lock:
                    self.usage["prompts_without_text"] += 1
            elif self.dialect.several:
                questions.append(Question(place, prompt, said, count, request_seed(seed, 0)))
            else:
                questions += [Question(place, prompt, said, 1, request_seed(seed, i)) for i in range(count)]
        if not questions:
            raise GenerationError(
                "no text gives the prompts' tokens with this tokenizer, and the server takes only texts; use a server "
                "that takes token ids (generation.api: vllm), or engine transformers"
            )
        return questions

    def _ask(self, server: Server, questions: Sequence[Question], sampling: Sampling) -> list[list[Response]]:
        """The responses to each question; an empty list if none arrived, or none that the tokenizer can read."""
        found: list[list[Response]] = [[] for _ in questions]
        problems: list[str] = []
        counted: Usage = Counter()

        def take(number: int, answer: Json) -> None:
            question = questions[number]
            with self.lock:
                found[number] = self.reader.responses(answer, question.prompt, question.count, sampling)

        access = self.reach(server.url)
        endpoint = Endpoint(access, "/completions", counted, server.revive, self._slots(access))
        bodies = [self._body(server, question, sampling) for question in questions]
        try:
            refused = endpoint.post(bodies, take, lambda number, problem: problems.append(problem))
            counted["refused"] += len(refused)
        except AnnotationError as error:
            raise GenerationError(str(error)) from error
        finally:
            with self.lock:
                self.usage.update(counted)
        if problems and not any(found):
            raise GenerationError(f"the server answered none of {len(questions)} requests: {problems[-1]}")
        return found

    def _slots(self, access: Access) -> Slots:
        with self.lock:
            self.slots = self.slots or Slots(access.concurrency)
            return self.slots

    def _body(self, server: Server, question: Question, sampling: Sampling) -> Json:
        fields = self.dialect.sampling_fields(sampling)
        several = {"n": question.count} if self.dialect.several else {}
        return {"model": server.model, "prompt": question.said, "seed": question.seed, **several, **fields}


def told(server: Server) -> str:
    return f". It did not take the weights of that folder while it ran: {server.note}" if server.note else ""


def request_seed(seed: int, index: int) -> int:
    """The seed of a request for a response; servers take 32 bits, and vLLM adds the index of a response to it."""
    return seed_for("request", seed, index) % 2**31
