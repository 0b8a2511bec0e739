"""Scores with the style of the answers held equal: tokens, headers, lists and bold text.

A logistic model explains each battle by which model fought it and by four differences in style. `controlled` centres
the differences over the pool of models, as publications do, so that a score belongs to its pool. `equal_style` does
not, and reads the score where both answers are styled alike: it needs no other model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaptpo.errors import ConfigError, DataError
from adaptpo.evaluation.answers import Answered
from adaptpo.evaluation.arena_hard.battles import Battle, outcomes
from adaptpo.evaluation.intervals import Floats

CODE = re.compile(r"```([^`]*)```")
MARKS = {
    "headers": [re.compile(r"^#{1,6}\s", re.MULTILINE)],
    "lists": [re.compile(r"^\s*\d+\.\s", re.MULTILINE), re.compile(r"^\s*[-*+]\s", re.MULTILINE)],
    "bold": [re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__")],
}
PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_]+|\d{1,3}|[^\s\w]+|_+|\n+")
"""A letter of the scripts that write no spaces, a word, up to three digits, a run of marks or of line breaks."""
PUBLISHED, OWN = "tokens as published (`token_len`)", "tokens counted here, as words and marks"
FEATURES = ("tokens", *MARKS)
NEEDED = "style control needs scikit-learn: pip install 'adaptpo[eval]'"


@dataclass(frozen=True)
class Style:
    """Of one answer: tokens, and how many headers, list items and bold passages stand outside code."""

    tokens: int
    headers: int
    lists: int
    bold: int

    @property
    def densities(self) -> Floats:
        """[3]: headers, list items and bold passages by token."""
        return np.array([self.headers, self.lists, self.bold]) / (self.tokens + 1)


Styles = Mapping[str, Mapping[str, Style]]
"""By model, then by prompt."""


@dataclass(frozen=True)
class Styled:
    """`counted` says how the tokens of all answers were counted."""

    styles: Styles
    counted: str


def styled(files: Sequence[Answered]) -> Styled:
    """The styles of all answers, with their tokens counted alike: as published, or all of them anew where one is not.

    Two tokenizers would make one side longer, whatever it wrote.
    """
    published = all(answer.token_len is not None for file in files for answer in file.answers.values())
    styles = {file.model: file_styles(file, published) for file in files}
    return Styled(styles, PUBLISHED if published else OWN)


def file_styles(file: Answered, published: bool) -> dict[str, Style]:
    texts = {key: (answer.turns[0], answer.token_len) for key, answer in file.answers.items()}
    return {
        key: style_of(text, count if published and count is not None else pieces(text))
        for key, (text, count) in texts.items()
    }


def pieces(text: str) -> int:
    """A count of tokens that needs no model's tokenizer, and is the same whoever wrote the text."""
    return sum(1 for _ in PIECE.finditer(text))


def style_of(text: str, tokens: int) -> Style:
    """`tokens` by whichever tokenizer; the same one for both answers of a battle."""
    prose = without_code(text)
    return Style(tokens, *(sum(len(mark.findall(prose)) for mark in marks) for marks in MARKS.values()))


def without_code(text: str) -> str:
    """Without the content of code blocks, wherever it stands: Arena-Hard counts so."""
    for block in CODE.findall(text):
        text = text.replace(block, "") if block else text
    return text


def difference(model: Style, baseline: Style) -> Floats:
    """[4]: of tokens, relative to their sum; of headers, lists and bold text, by their density."""
    tokens = (model.tokens - baseline.tokens) / max(1, model.tokens + baseline.tokens)
    densities = (model.densities - baseline.densities) / (model.densities + baseline.densities + 1)
    return np.array([tokens, *densities])


def differences(battles: Sequence[Battle], styles: Styles) -> Floats:
    """[n, 4], divided by their standard deviation. Raises DataError where an answer is missing."""
    try:
        found = [
            difference(styles[battle.model][battle.prompt], styles[battle.baseline][battle.prompt])
            for battle in battles
        ]
    except KeyError as error:
        raise DataError(
            f"style control needs every answer, and there is none of {error}; name them with --answers"
        ) from error
    values = np.array(found)
    spread = values.std(axis=0)
    return values / np.where(spread == 0, 1, spread)


def equal_style(battles: Sequence[Battle], styles: Styles) -> dict[str, float]:
    """By model, in percent: what its score would be where both answers are of the same style. Each model is fitted
    alone, so that the others do not change its score."""
    alone = {model: [battle for battle in battles if battle.model == model] for model in models_of(battles)}
    return {model: strengths(own, differences(own, styles))[model] for model, own in alone.items()}


def controlled(battles: Sequence[Battle], styles: Styles) -> dict[str, float]:
    """By model, in percent: the score at the mean style of the pool, as Arena-Hard's style control."""
    found = differences(battles, styles)
    return strengths(battles, found - found.mean(axis=0))


def models_of(battles: Sequence[Battle]) -> list[str]:
    return list(dict.fromkeys(battle.model for battle in battles))


def strengths(battles: Sequence[Battle], styles: Floats) -> dict[str, float]:
    """Of a Bradley-Terry model with style covariates [n, k]: the chance to beat the baseline where they are 0."""
    models = models_of(battles)
    fought = np.array([[battle.model == model for model in models] for battle in battles], dtype=np.float64)
    logits = logistic_weights(np.hstack([fought, styles]), outcomes(battles))[: len(models)]
    return {model: float(100 / (1 + np.exp(-logit))) for model, logit in zip(models, logits, strict=True)}


def logistic_weights(features: Floats, labels: Floats) -> Floats:
    """Without penalty or intercept; a tie is half a win and half a loss."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ConfigError(NEEDED) from error
    both, wins = np.concatenate([features, features]), np.repeat([1, 0], len(labels))
    weights = np.concatenate([labels, 1 - labels])
    solver = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8, max_iter=1000)
    return solver.fit(both, wins, sample_weight=weights).coef_[0]
