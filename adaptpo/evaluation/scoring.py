"""Score an evaluation, or a file of verdicts that somebody published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adaptpo.data import open_rows
from adaptpo.data.files import is_data_file
from adaptpo.errors import ConfigError, DataError, RunError
from adaptpo.evaluation.answers import KEYS
from adaptpo.evaluation.folder import JUDGMENTS, EvaluationFolder
from adaptpo.evaluation.presets import protocol
from adaptpo.evaluation.refusal.suite import XSTest, completion_row
from adaptpo.evaluation.result import Result
from adaptpo.evaluation.suite import Scoring, Suite
from adaptpo.evaluation.suites import find_suite, suite_of
from adaptpo.evaluation.templates import OWN
from adaptpo.types import Row

OPTIONS = {
    "baseline": "--baseline",
    "length_control": "--length-control",
    "keyed_by": "--key-by",
    "questions": "--questions",
    "answers": "--answers",
}
UNANSWERED, UNJUDGED = "without an answer", "answered and not judged"


def score_path(path: Path, scoring: Scoring, suite: str | None = None) -> list[Result]:
    """One result a model. A folder of `adaptpo eval generate` keeps its own in `result.json`.

    Raises DataError or RunError where nothing can be scored, ConfigError for an option that would not be read.
    """
    folder = EvaluationFolder(path)
    if folder.exists:
        own = folder.settings["suite"]
        if suite is not None and find_suite(suite).name != own:
            raise ConfigError(f"{path} is an evaluation of the suite {own}; leave --suite out")
        with folder.locked():
            return [score_folder(folder, scoring)]
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; name a folder of `adaptpo eval`, or a file of verdicts")
    if path.is_dir() and not any(is_data_file(file) for file in path.iterdir()):
        raise DataError(f"{path} holds no evaluation; start with `adaptpo eval generate SUITE --out {path}`")
    rows = list(open_rows(path))
    found = find_suite(suite) if suite else suite_of(rows, str(path))
    refuse_unread(found, scoring)
    return found.score(rows, scoring)


def refuse_unread(suite: Suite, scoring: Scoring) -> None:
    """Raises ConfigError for an option that the suite's score would not read."""
    for name, option in OPTIONS.items():
        if getattr(scoring, name) != getattr(Scoring(), name) and name not in suite.scored_with:
            raise ConfigError(f"the score of {suite.title} reads no {option}; leave it out")
    if scoring.keyed_by != Scoring().keyed_by and scoring.length_control is None:
        raise ConfigError("--key-by is of --length-control; give both, or neither")


def score_folder(folder: EvaluationFolder, scoring: Scoring) -> Result:
    suite = find_suite(folder.settings["suite"])
    refuse_unread(suite, scoring)
    rows = verdicts(folder, suite)
    (result,) = suite.score(rows, with_folder(folder, scoring))
    complete = with_warnings(folder, with_missing(folder, result, rows))
    folder.keep_result(complete)
    return complete


def verdicts(folder: EvaluationFolder, suite: Suite) -> list[Row]:
    """Raises RunError where no judge was asked, unless the suite can do without."""
    rows = folder.lines(JUDGMENTS)
    if not rows and isinstance(suite, XSTest):
        return [completion_row(case, folder.settings["model"]) for case in folder.cases()]
    if not rows:
        raise RunError(f"{folder.path} has no verdicts yet; run `adaptpo eval judge {folder.path} --judge ...`")
    return rows


def with_folder(folder: EvaluationFolder, scoring: Scoring) -> Scoring:
    """What the folder knows and the user did not say."""
    return replace(scoring, origin=folder.origin(), cases=folder.cases())


def with_missing(folder: EvaluationFolder, result: Result, rows: Sequence[Row]) -> Result:
    """Counts the questions that nobody answered, and the answers that came after the judge."""
    answered = folder.answers().keys()
    judged = {str(row[key]) for row in rows for key in KEYS if row.get(key) is not None}
    missing = {UNANSWERED: len(folder.questions()) - len(answered), UNJUDGED: len(answered - judged)}
    return replace(result, invalid={**result.invalid, **{name: n for name, n in missing.items() if n}})


def with_warnings(folder: EvaluationFolder, result: Result) -> Result:
    """Says what differs from the preset, and that our own words were used."""
    wanted, origin = protocol(folder.settings["preset"], folder.settings["suite"]), result.origin
    preset = folder.settings["preset"]
    differs = [
        f"preset {preset} is judged by {wanted.judge}; this was judged by {origin.judge}"
        if origin.judge not in (wanted.judge, "none")
        else "",
        f"the judge was asked in {OWN}: not comparable with published numbers"
        if origin.template.startswith(OWN)
        else "",
        wanted.note,
    ]
    return replace(result, warnings=[*result.warnings, *filter(None, differs)])
