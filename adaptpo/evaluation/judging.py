"""Ask a judge about the answers of an evaluation; what it said is kept, and not paid for again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptpo.config.evaluation import JudgeSettings
from adaptpo.errors import AnnotationError, ConfigError, DataError
from adaptpo.evaluation.answers import Answered
from adaptpo.evaluation.folder import JUDGING, JUDGMENTS, PAID, RESULT, SCORES, EvaluationFolder, write_lines
from adaptpo.evaluation.presets import protocol
from adaptpo.evaluation.references import References, matched, with_references
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
    that a judge may compare with."""

    settings: JudgeSettings
    baseline: Answered | None = None
    template: Path | None = None
    references: References | None = None
    shows: bool = field(default=True, compare=False)


def judge_folder(folder: EvaluationFolder, judging: Judging) -> dict[str, int]:
    """Write the verdicts on every answer to `judgments.jsonl`; returns what was asked and what it took.

    Earlier verdicts stay until these are complete. Raises ConfigError or DataError for what is wrong before anything is
    asked, RunError while another command works on the folder, AnnotationError where the judge cannot be reached; the
    same command then resumes.
    """
    suite = find_suite(folder.require().settings["suite"])
    templates = suite.own_templates if judging.template is None else read_templates(judging.template)
    refuse_missing_or_unused(folder, suite, judging)
    with folder.locked():
        cases = cases_of(folder, suite, judging)
        asks = [suite.asks(case, templates) for case in cases]
        chat = chat_of(judging.settings, suite, AnswerStore(folder.path / PAID))
        settings = judging_row(suite, judging, templates, cases)
        found = judged(suite, chat, list(zip(cases, asks, strict=True)), judging.shows)
        origin = folder.origin(settings)
        rows = [row for case, several, replies in found for row in suite.judgment_rows(case, several, replies, origin)]
        keep(folder, judging, settings, rows)
    return {"answers": len(cases), **count_of_references(judging, cases), "judgments": len(rows), **chat.usage}


def refuse_missing_or_unused(folder: EvaluationFolder, suite: Suite, judging: Judging) -> None:
    """Raises ConfigError where the suite compares and there is no baseline, or for a file that it would not read."""
    if suite.needs_baseline and judging.baseline is None:
        wanted = protocol(folder.settings["preset"], suite.name)
        remedy = wanted.note if wanted.baseline is None else f"the preset's is {wanted.baseline}"
        raise ConfigError(f"{suite.title} compares with a baseline; name its answers with --baseline FILE; {remedy}")
    if judging.baseline is not None and not suite.needs_baseline:
        raise ConfigError(f"{suite.title} compares with no baseline; leave --baseline out")
    if judging.references is not None and not suite.takes_references:
        raise ConfigError(f"{suite.title} has no reference answers; leave --references out")


def cases_of(folder: EvaluationFolder, suite: Suite, judging: Judging) -> list[Case]:
    """With the baseline and the references that were named. Raises DataError where they are of other questions."""
    cases = folder.cases(judging.baseline.answers if judging.baseline else {})
    check_baseline(suite, cases)
    if judging.references is None:
        return cases
    matched(cases, judging.references)
    return [with_references(case, judging.references) for case in cases]


def count_of_references(judging: Judging, cases: Sequence[Case]) -> dict[str, int]:
    return {"references matched": matched(cases, judging.references)} if judging.references else {}


def keep(folder: EvaluationFolder, judging: Judging, settings: Row, rows: Sequence[Row]) -> None:
    """Replaces an earlier judge's verdicts, and what came of them, by these; what was paid for is kept elsewhere."""
    for stale in (JUDGMENTS, SCORES, RESULT):
        (folder.path / stale).unlink(missing_ok=True)
    if judging.baseline is not None:
        folder.keep_baseline(judging.baseline)
    write_json(folder.path / JUDGING, settings)
    write_lines(folder.path / JUDGMENTS, rows)


def judging_row(suite: Suite, judging: Judging, templates: Templates, cases: Sequence[Case]) -> Row:
    words = OWN if judging.template is None else judging.template.name
    return {
        "judge": judging.settings.judge,
        "baseline": judging.baseline.model if judging.baseline else "none",
        "template": f"{words} ({fingerprint(templates)})",
        **({"references": said_references(judging, cases)} if suite.takes_references else {}),
        "options": request_options(judging.settings, suite),
    }


def said_references(judging: Judging, cases: Sequence[Case]) -> str:
    if judging.references is None:
        return "the questions' own"
    return f"{judging.references.name}, for {matched(cases, judging.references)} of {len(cases)} questions"


def check_baseline(suite: Suite, cases: Sequence[Case]) -> None:
    missing = [case.question.id for case in cases if suite.needs_baseline and case.baseline is None]
    if missing:
        raise DataError(
            f"the baseline answers {len(cases) - len(missing)} of {len(cases)} questions; it lacks "
            f"{missing[0][:60]!r}. Name a file with all of them (Arena-Hard v2.0 has one baseline for each category)"
        )


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


def judged(suite: Suite, chat: Chat, asked: Sequence[tuple[Case, list[Ask]]], shows: bool) -> Iterator[Judged]:
    """Each case with what was asked and answered. Raises AnnotationError where the judge refuses every request."""
    with progress_bar("judge", len(asked), "answer", visible=shows) as bar:
        for start in range(0, len(asked), CASES_AT_ONCE):
            group = asked[start : start + CASES_AT_ONCE]
            replies = iter(answered(suite, chat, [ask for _, several in group for ask in several]))
            for case, several in group:
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
