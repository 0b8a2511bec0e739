"""An evaluation on disk: questions, answers, verdicts and result of one model on one suite."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from adaptpo.errors import RunError
from adaptpo.evaluation.answers import Answered, answer_row, answers_of
from adaptpo.evaluation.result import Origin, PromptScore, Result
from adaptpo.evaluation.suite import Answer, Case, Question
from adaptpo.run.file_locks import unlockable
from adaptpo.run.files import JsonLines, write_json, write_text
from adaptpo.types import Row

SETTINGS, QUESTIONS, ANSWERS, BASELINE = "evaluation.json", "questions.jsonl", "answers.jsonl", "baseline.jsonl"
JUDGING, JUDGMENTS, PAID, RESULT, SCORES = "judging.json", "judgments.jsonl", "paid", "result.json", "scores.jsonl"
LOCK = "lock"


@dataclass(frozen=True)
class EvaluationFolder:
    path: Path

    @property
    def exists(self) -> bool:
        return (self.path / SETTINGS).is_file()

    def require(self) -> EvaluationFolder:
        """Raises RunError where `adaptpo eval generate` wrote nothing here."""
        if not self.exists:
            raise RunError(f"{self.path} is no evaluation; start with `adaptpo eval generate SUITE --out {self.path}`")
        return self

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other commands out. Raises RunError while one works here, or where the file system gives no locks."""
        with self._lock_file() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"another command works on {self.path}; wait until it has ended, or use another folder"
                ) from error
            except OSError as error:
                raise unlockable(self.path, f"gives no locks ({error.strerror})") from error
            yield

    def _lock_file(self) -> IO[str]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return (self.path / LOCK).open("a")
        except OSError as error:
            raise RunError(f"cannot write in {self.path} ({error.strerror}); choose a folder that you own") from error

    @property
    def settings(self) -> Row:
        return read_json(self.path / SETTINGS)

    def start(self, settings: Row, questions: Sequence[Question]) -> None:
        """Write down what is evaluated. Raises RunError where the folder holds answers of another evaluation."""
        if self.exists and (kept := self.settings) != settings:
            changed = sorted(name for name in kept.keys() | settings if kept.get(name) != settings.get(name))
            if changed != ["weights"] or "weights" in kept:  # Earlier versions kept none.
                raise RunError(
                    f"{self.path} holds an evaluation with other {', '.join(changed)}; name another --out, or delete it"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        write_lines(self.path / QUESTIONS, [question_row(question) for question in questions])
        write_json(self.path / SETTINGS, settings)

    def questions(self) -> list[Question]:
        return [question_of(row) for row in self.lines(QUESTIONS)]

    def answers(self) -> dict[str, Answer]:
        """By question; the last one where a question was answered twice."""
        rows = JsonLines(self.path / ANSWERS).read()
        return {answer.id: answer for answer in answers_of(rows, str(self.path / ANSWERS))}

    def add_answers(self, answers: Sequence[Answer]) -> None:
        JsonLines(self.path / ANSWERS).append(*(answer_row(answer, self.settings["model"]) for answer in answers))

    def keep_baseline(self, baseline: Answered) -> None:
        write_lines(self.path / BASELINE, [answer_row(one, baseline.model) for one in baseline.answers.values()])

    def baseline(self) -> dict[str, Answer]:
        return {answer.id: answer for answer in answers_of(self.lines(BASELINE), str(self.path / BASELINE))}

    def cases(self, baseline: Mapping[str, Answer] | None = None) -> list[Case]:
        """The questions that have an answer, with the folder's baseline or another one."""
        answers, baseline = self.answers(), self.baseline() if baseline is None else baseline
        return [
            Case(question, answers[question.id], baseline.get(question.id))
            for question in self.questions()
            if question.id in answers
        ]

    def lines(self, name: str) -> list[Row]:
        return JsonLines(self.path / name).read()

    @property
    def judging(self) -> Row:
        """How the answers were judged; empty where no judge was asked."""
        return read_json(self.path / JUDGING) if (self.path / JUDGING).exists() else {}

    def origin(self, judging: Row | None = None) -> Origin:
        """Of the folder's verdicts, or of those that another `judging` gives."""
        settings, judging = self.settings, self.judging if judging is None else judging
        return Origin(
            model=settings["model"],
            judge=judging.get("judge", "none"),
            baseline=judging.get("baseline", "none"),
            decoding=settings["decoding"],
            template=judging.get("template", "none"),
        )

    def keep_result(self, result: Result) -> None:
        write_lines(self.path / SCORES, [asdict(score) for score in result.scores])
        write_json(self.path / RESULT, result.row())

    def result(self) -> Row:
        """Raises RunError where nothing was scored yet."""
        if not (self.path / RESULT).exists():
            raise RunError(f"{self.path} has no result yet; run `adaptpo eval score {self.path}`")
        return read_json(self.path / RESULT)

    def scores(self) -> list[PromptScore]:
        self.result()
        return [PromptScore(**row) for row in self.lines(SCORES)]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def write_lines(path: Path, rows: Sequence[Row]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def question_row(question: Question) -> Row:
    return {"id": question.id, "turns": question.turns, "category": question.category, "columns": question.columns}


def question_of(row: Row) -> Question:
    return Question(row["id"], tuple(row["turns"]), row["category"], row["columns"])
