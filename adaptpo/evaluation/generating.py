"""Generate the answers of a model to a suite's questions, turn by turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, islice
from typing import Any

from adaptpo.config.recipe import GenerationSettings
from adaptpo.data import fingerprint, open_rows
from adaptpo.data.conventions import unsaid_parts
from adaptpo.data.templates import TemplateOptions, unread_options
from adaptpo.errors import DataError
from adaptpo.evaluation.folder import EvaluationFolder
from adaptpo.evaluation.policy import Policy
from adaptpo.evaluation.suite import Answer, Question, Suite
from adaptpo.run.progress import caution, progress_bar
from adaptpo.seeds import seed_for
from adaptpo.types import Message, Response, Row

QUESTIONS_AT_ONCE = 64
BY_CATEGORY = "by category, as the suite fixes it"


@dataclass(frozen=True)
class Generating:
    """What is generated. `weights`: a digest by which other weights at the model's path are noticed; `questions`: file,
    folder or hub id, None for the suite's own on the hub; `limit`: at most this many; `split`: of a hub data set;
    `template_options`: arguments of the chat template."""

    suite: Suite
    model: str
    settings: GenerationSettings
    weights: str
    questions: str | None = None
    split: str = "train"
    limit: int | None = None
    seed: int = 0
    preset: str = ""
    shows: bool = True
    template_options: TemplateOptions = field(default_factory=dict)


def generate(folder: EvaluationFolder, work: Generating) -> dict[str, int]:
    """Answer every question that has no answer yet; returns counts.

    Raises DataError for unreadable questions, RunError where the folder holds another evaluation or another command
    works on it, and what the engine raises; the same command then resumes.
    """
    questions = read_questions(work)
    policy = Policy(work.model, work.settings, folder.path / "server.log", work.template_options)
    policy.check()
    with folder.locked():
        folder.start(settings_row(work, questions), questions)
        unused = unused_temperature(work, questions)
        for doubt in filter(None, [unused, *unread_options(policy.tokenizer, work.template_options)]):
            caution(doubt, True)
        answered = folder.answers()
        waiting = [question for question in questions if question.id not in answered]
        try:
            answer_all(folder, work, policy, waiting)
        finally:
            policy.close()
        too_long = f"{policy.too_long} questions get no answer: the model has no positions for them and max_new_tokens"
        caution(too_long, bool(policy.too_long))
        return counts(questions, folder.answers())


def unused_temperature(work: Generating, questions: Sequence[Question]) -> str:
    """What to say where the suite fixes the temperature and the user named another one; empty otherwise."""
    fixed = sum(work.suite.temperature(question) is not None for question in questions)
    if not fixed or "temperature" not in work.settings.model_fields_set:
        return ""
    return (
        f"the temperature {work.settings.temperature:g} is not used for {fixed} of {len(questions)} questions: "
        f"{work.suite.title} fixes that of their categories"
    )


def read_questions(work: Generating) -> list[Question]:
    """Raises DataError where there is none, or two of one id."""
    rows = islice(open_rows(work.questions or work.suite.hub, work.split), work.limit)
    questions = [work.suite.question(row, number) for number, row in enumerate(rows)]
    if not questions:
        raise DataError(f"{work.questions or work.suite.hub} holds no questions; name a file of them with --questions")
    if parts := sorted({name for one in questions for name in unsaid_parts("\n".join(one.turns), one.columns)}):
        raise DataError(
            f"{work.questions or work.suite.hub} holds {' and '.join(parts)} beside the questions, which the model "
            "would not see; write what it is to read into the question, or rename the column"
        )
    if len({question.id for question in questions}) < len(questions):
        raise DataError(f"{work.questions}: several questions have the same id; give each its own")
    return questions


def settings_row(work: Generating, questions: Sequence[Question]) -> Row:
    """What decides the answers, and where they come from."""
    return {
        "suite": work.suite.name,
        "preset": work.preset or work.suite.name,
        "model": work.model,
        "weights": work.weights,
        "decoding": decoding(work, questions),
        "seed": work.seed,
        **({"chat_template_kwargs": dict(work.template_options)} if work.template_options else {}),
        "questions": fingerprint([{"id": one.id, "turns": list(one.turns)} for one in questions]),
    }


def decoding(work: Generating, questions: Sequence[Question]) -> dict[str, Any]:
    settings = work.settings
    return {
        "temperature": temperature_said(work, questions),
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "max_new_tokens": settings.max_new_tokens,
        "engine": settings.engine,
    }


def temperature_said(work: Generating, questions: Sequence[Question]) -> float | str:
    fixed = [work.suite.temperature(question) is not None for question in questions]
    if not any(fixed):
        return work.settings.temperature
    return BY_CATEGORY if all(fixed) else f"{BY_CATEGORY}; {work.settings.temperature:g} in other categories"


def answer_all(folder: EvaluationFolder, work: Generating, policy: Policy, waiting: Sequence[Question]) -> None:
    with progress_bar("generate", len(waiting), "question", visible=work.shows) as bar:
        for temperature, several in by_temperature(work.suite, waiting).items():
            for start in range(0, len(several), QUESTIONS_AT_ONCE):
                group = several[start : start + QUESTIONS_AT_ONCE]
                folder.add_answers(answers(policy, group, temperature, work.seed))
                bar.update(len(group))


def by_temperature(suite: Suite, questions: Iterable[Question]) -> dict[float | None, list[Question]]:
    groups: dict[float | None, list[Question]] = defaultdict(list)
    for question in questions:
        groups[suite.temperature(question)].append(question)
    return groups


def answers(policy: Policy, questions: Sequence[Question], temperature: float | None, seed: int) -> list[Answer]:
    """Of the questions whose turns all got an answer."""
    generator = policy.generator(policy.sampling(temperature))
    given: dict[str, list[Response]] = {question.id: [] for question in questions}
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [q for q in questions if len(q.turns) > turn and len(given[q.id]) == turn]
        prompts = [policy.prompt(number, conversation(q, given[q.id])) for number, q in enumerate(asked)]
        rooms = [policy.has_room(prompt) for prompt in prompts]
        asked, prompts = list(compress(asked, rooms)), list(compress(prompts, rooms))
        policy.too_long += rooms.count(False)
        seeds = [seed_for(seed, "evaluation", question.id, turn) for question in asked]
        responses = generator.generate(prompts, 1, seeds) if prompts else []
        for question, found in zip(asked, responses, strict=True):
            given[question.id] += found
    return [answer_of(q, given[q.id]) for q in questions if len(given[q.id]) == len(q.turns)]


def conversation(question: Question, given: Sequence[Response]) -> list[Message]:
    """The turns so far, up to the one that has no answer yet."""
    messages: list[Message] = []
    for turn, response in zip(question.turns, given, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": response.text}]
    return [*messages, {"role": "user", "content": question.turns[len(given)]}]


def answer_of(question: Question, given: Sequence[Response]) -> Answer:
    texts = tuple(str(response.text) for response in given)
    return Answer(question.id, texts, tuple(len(r.ids) for r in given), tuple(r.ended for r in given))


def counts(questions: Sequence[Question], answers: Mapping[str, Answer]) -> dict[str, int]:
    cut = sum(not all(answer.ended) for answer in answers.values())
    return {"answers": len(answers), "without an answer": len(questions) - len(answers), "cut off": cut}
