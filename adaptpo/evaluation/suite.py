"""What a benchmark is: questions, what its judge is asked about the answers, and how its verdicts are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from adaptpo.evaluation.result import Origin, Result
from adaptpo.evaluation.templates import Templates
from adaptpo.types import Message, Row

Keying = Literal["instruction", "row"]


@dataclass(frozen=True)
class Question:
    """`turns`: what the user says, one turn after the other; `columns`: the row that it came from."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    columns: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A model's answers to the turns of a question, their lengths in its own tokens, and whether each ended by itself.
    A turn that never came is missing. `token_len`: the length of the first turn as Arena-Hard publishes it, in tokens
    of a tokenizer of its own."""

    id: str
    turns: tuple[str, ...]
    tokens: tuple[int, ...] = ()
    ended: tuple[bool, ...] = ()
    token_len: int | None = None


@dataclass(frozen=True)
class Case:
    """A question with the answer, and where the suite compares, the baseline's."""

    question: Question
    answer: Answer
    baseline: Answer | None = None


@dataclass(frozen=True)
class Reply:
    """A judge's answer. `problem` says why there is none, or none to trust (it was cut off); `logprobs`: of the first
    token, in nats, by token, None where the judge tells none."""

    text: str
    problem: str = ""
    logprobs: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Ask:
    """One question to the judge. `part` tells the asks of a case apart: the game, or the turn."""

    case: Case
    part: int
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Scoring:
    """What scoring may be told beside the verdicts. `answers`: files of answers, for style control."""

    origin: Origin = field(default_factory=Origin)
    baseline: str | None = None
    length_control: str | None = None
    keyed_by: Keying = "instruction"
    questions: str | None = None
    answers: tuple[str, ...] = ()
    model: str | None = None
    cases: Sequence[Case] = ()


class Suite(ABC):
    """`title`: how people call it; `hub`: where the questions are, without a file of them; `own_templates`: the judge's
    words where the user names no file; `one_mean`: whether a mean over all its categories means anything;
    `prompt_number`: the number that is a mean of the prompts' scores; `needs_baseline`: its judge compares;
    `takes_references`: its judge is shown reference answers; `scored_with`: the fields of `Scoring` that its score
    reads beside verdicts and model; `logprobs`: how many alternatives of the first token the judge is to tell, 0 for
    none; `max_tokens`: of a judgment."""

    name: ClassVar[str]
    title: ClassVar[str]
    hub: ClassVar[str]
    own_templates: ClassVar[Templates]
    one_mean: ClassVar[bool] = True
    prompt_number: ClassVar[str] = "score"
    needs_baseline: ClassVar[bool] = False
    takes_references: ClassVar[bool] = False
    scored_with: ClassVar[tuple[str, ...]] = ()
    logprobs: ClassVar[int] = 0
    max_tokens: ClassVar[int] = 2048

    @abstractmethod
    def question(self, row: Row, number: int) -> Question:
        """The question of a row of the suite's file."""

    def temperature(self, question: Question) -> float | None:
        """That of generation where the suite fixes it; None leaves it to the user."""
        return None

    @abstractmethod
    def asks(self, case: Case, templates: Templates) -> list[Ask]:
        """What the judge is asked about one case."""

    def again(self, ask: Ask, reply: Reply) -> Ask | None:
        """A second question where the judge said nothing usable, or None."""
        return None

    @abstractmethod
    def judgment_rows(self, case: Case, asks: Sequence[Ask], replies: Sequence[Reply], origin: Origin) -> list[Row]:
        """Rows of `judgments.jsonl` of one case, in the form of the suite's own files."""

    @abstractmethod
    def fits(self, row: Row) -> bool:
        """Whether a row of a file with verdicts is of this suite."""

    @abstractmethod
    def score(self, rows: Sequence[Row], scoring: Scoring) -> list[Result]:
        """One result a model. Raises DataError where nothing can be scored."""
