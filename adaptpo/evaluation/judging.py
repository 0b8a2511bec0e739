"""Ask a judge about the answers of an evaluation; what it said is kept, and not paid for again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adaptpo.config.evaluation import JudgeSettings
from adaptpo.errors import AnnotationError, ConfigError, DataError
from adaptpo.evaluation.answers import Answered
from adaptpo.evaluation.folder import JUDGING, JUDGMENTS, PAID, RESULT, SCORES, EvaluationFolder, write_lines
from adaptpo.evaluation.presets import protocol
from adaptpo.evaluation.suite import Ask, Case, Reply, Suite
from adaptpo.evaluation.suites import find_suite
from adaptpo.evaluation.templates import OWN, Templates, fingerprint, read_templates
from adaptpo.remote.chat import LENGTH, Chat
from adaptpo.remote.endpoint import Access, key_from_environment
from adaptpo.remote.store import AnswerStore, Json
from adaptpo.run.files import write_json
from adaptpo.run.progress import progress_bar
from adaptpo.types import Row

OPENAI, OPENAI_KEY = "https://api.openai.com/v1", "OPENAI_API_KEY"
CASES_AT_ONCE = 64
REFUSED, CUT, EMPTY = "refused by the judge's server", "judgment cut off", "empty judgment"


@dataclass(frozen=True)
class Judging:
    """How an evaluation is judged. `template`: a file with the judge's words, None for our own; `references`: answers
    that a judge may compare with, by question."""

    settings: JudgeSettings
    baseline: Answered | None = None
    template: Path | None = None
    references: Answered | None = None
    shows: bool = field(default=True, compare=False)


def judge_folder(folder: EvaluationFolder, judging: Judging) -> dict[str, int]:
    """Write the verdicts on every answer to `judgments.jsonl`; returns what was asked and what it took.

    Raises ConfigError or DataError for what is wrong before anything is asked, AnnotationError where the judge cannot
    be reached; the same command then resumes.
    """
    suite = find_suite(folder.require().settings["suite"])
    templates = suite.own_templates if judging.template is None else read_templates(judging.template)
    keep_settings(folder, suite, judging, templates)
    cases = [with_references(case, judging.references) for case in folder.cases()]
    check_baseline(suite, cases)
    chat = chat_of(judging.settings, suite, AnswerStore(folder.path / PAID))
    origin = folder.origin()
    found = judged(suite, chat, cases, templates, judging.shows)
    rows = [row for case, asks, replies in found for row in suite.judgment_rows(case, asks, replies, origin)]
    write_lines(folder.path / JUDGMENTS, rows)
    return {"answers": len(cases), "judgments": len(rows), **chat.usage}


def keep_settings(folder: EvaluationFolder, suite: Suite, judging: Judging, templates: Templates) -> None:
    """Raises ConfigError where the suite compares and there is no baseline."""
    if suite.needs_baseline and judging.baseline is None:
        wanted = protocol(folder.settings["preset"], suite.name)
        remedy = wanted.note if wanted.baseline is None else f"the preset's is {wanted.baseline}"
        raise ConfigError(f"{suite.title} compares with a baseline; name its answers with --baseline FILE; {remedy}")
    for stale in (JUDGMENTS, SCORES, RESULT):  # They may be of another judge; what was paid for is kept elsewhere.
        (folder.path / stale).unlink(missing_ok=True)
    if judging.baseline is not None and suite.needs_baseline:
        folder.keep_baseline(judging.baseline)
    write_json(folder.path / JUDGING, judging_row(suite, judging, templates))


def judging_row(suite: Suite, judging: Judging, templates: Templates) -> Row:
    words = OWN if judging.template is None else judging.template.name
    baseline = judging.baseline.model if judging.baseline and suite.needs_baseline else "none"
    return {
        "judge": judging.settings.judge,
        "baseline": baseline,
        "template": f"{words} ({fingerprint(templates)})",
        "options": request_options(judging.settings, suite),
    }


def check_baseline(suite: Suite, cases: Sequence[Case]) -> None:
    missing = [case.question.id for case in cases if suite.needs_baseline and case.baseline is None]
    if missing:
        raise DataError(
            f"the baseline answers {len(cases) - len(missing)} of {len(cases)} questions; it lacks "
            f"{missing[0][:60]!r}. Name a file with all of them (Arena-Hard v2.0 has one baseline for each category)"
        )


def with_references(case: Case, references: Answered | None) -> Case:
    if references is None or case.question.id not in references.answers:
        return case
    columns = case.question.columns | {"reference_answer": list(references.answers[case.question.id].turns)}
    return replace(case, question=replace(case.question, columns=columns))


def chat_of(settings: JudgeSettings, suite: Suite, store: AnswerStore) -> Chat:
    key = settings.api_key_env or (None if settings.base_url else OPENAI_KEY)
    reached = Access(
        settings.base_url or OPENAI,
        key_from_environment(key),
        settings.concurrency,
        settings.retries,
        settings.timeout,
    )
    return Chat(settings.judge, reached, store, request_options(settings, suite))


def request_options(settings: JudgeSettings, suite: Suite) -> dict[str, Any]:
    """Fields of every request to the judge, beside model and messages."""
    options: dict[str, Any] = {"max_tokens": settings.max_tokens or suite.max_tokens}
    options |= {} if settings.temperature is None else {"temperature": settings.temperature}
    options |= {"logprobs": True, "top_logprobs": suite.logprobs} if settings.logprobs and suite.logprobs else {}
    return {name: value for name, value in (options | settings.options).items() if value is not None}


Judged = tuple[Case, list[Ask], list[Reply]]


def judged(suite: Suite, chat: Chat, cases: Sequence[Case], templates: Templates, shows: bool) -> Iterator[Judged]:
    """Each case with what was asked and answered. Raises AnnotationError where the judge refuses every request."""
    with progress_bar("judge", len(cases), "answer", visible=shows) as bar:
        for start in range(0, len(cases), CASES_AT_ONCE):
            group = cases[start : start + CASES_AT_ONCE]
            asks = [suite.asks(case, templates) for case in group]
            replies = iter(answered(suite, chat, [ask for several in asks for ask in several]))
            for case, several in zip(group, asks, strict=True):
                yield case, several, [next(replies) for _ in several]
            bar.update(len(group))


def answered(suite: Suite, chat: Chat, asks: Sequence[Ask]) -> list[Reply]:
    """The judge's replies, after the suite has asked again where it does."""
    replies = [reply_of(answer, suite) for answer in chat.ask([ask.messages for ask in asks])]
    if asks and all(reply.problem == REFUSED for reply in replies):
        raise AnnotationError(
            f"the judge {chat.model} refuses every request: {chat.refusal}; a field can be left out (temperature: "
            "null, logprobs: false) or added in options"
        )
    second = {place: again for place, ask in enumerate(asks) if (again := suite.again(ask, replies[place]))}
    for place, answer in zip(second, chat.ask([ask.messages for ask in second.values()]), strict=True):
        replies[place] = joined(replies[place], reply_of(answer, suite))
    return replies


def reply_of(answer: Json, suite: Suite) -> Reply:
    if answer is None:
        return Reply("", REFUSED)
    cut = answer["finish"] == LENGTH and suite.max_tokens > 1
    problem = CUT if cut else "" if answer["text"].strip() or answer.get("logprobs") else EMPTY
    return Reply(answer["text"], problem, answer.get("logprobs"))


def joined(first: Reply, second: Reply) -> Reply:
    return Reply(f"{first.text}\n{second.text}", second.problem, second.logprobs)
