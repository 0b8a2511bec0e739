"""The grader, whose reward trains and whose labels the offline pairs have, and the judge, which only measures.

The grader is what one gets cheaply: it gives part of the credit for a rule that is almost kept, does not see whether an
answer stays with its topic beyond a mention, and errs. The judge accepts a rule only if it is kept exactly.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptpo.run.files import read_rows
from adaptpo.sandbox.instructions.rules import Rule, words
from adaptpo.types import Text

TOPIC_CREDIT = 0.5
CUT_PENALTY = 0.5
ERROR = 0.1
"""Standard deviation of the grader's error."""
FEWEST_WORDS = 4


def reward(
    prompts: Sequence[Text], completions: Sequence[Text], topic: Sequence[str], rules: Sequence[str], **_: Any
) -> list[float]:
    """The grader as a reward function: `topic` and `rules` are columns of the data."""
    return [graded(plain_text(text), *of) for text, *of in zip(completions, topic, rules, strict=True)]


def graded(text: str, topic: str, rules: str) -> float:
    """Mean credit of the rules, credit for a mention of the topic, a penalty for an answer without an end, and an
    error, always the same for the same answer."""
    found = parse_rules(rules)
    credit = sum(rule.credit(text) for rule in found) / len(found)
    error = random.Random(f"{topic}/{rules}/{text}").gauss(0, ERROR)
    return credit + TOPIC_CREDIT * mentions(text, topic) - CUT_PENALTY * (not finished(text)) + error


def judged(text: str, topic: str, rules: str, ended: bool) -> float:
    """The share of the rules that the answer keeps; 0 if it was cut, does not mention its topic, or has fewer than four
    words. No run trains on this."""
    if not ended or not mentions(text, topic) or len(words(text)) < FEWEST_WORDS:
        return 0.0
    found = parse_rules(rules)
    return sum(rule.kept(text) for rule in found) / len(found)


def judge_run(run: Path, stage: str, held_out: Mapping[str, Mapping[str, str]]) -> list[float]:
    """The judge's score of each held-out response of a run's stage; `held_out` is that of `held_out_rows`."""
    rows = read_rows(run / "evaluation" / f"{stage}.parquet")
    asked = [held_out[plain_text(json.loads(row["prompt"]))] for row in rows]
    return [
        judged(row["response"], of["topic"], of["rules"], row["ended"]) for row, of in zip(rows, asked, strict=True)
    ]


def held_out_rows(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of the held-out data by the text of their prompt."""
    lines = (folder / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return {plain_text(row["prompt"]): row for row in map(json.loads, lines)}


def parse_rules(text: str) -> list[Rule]:
    return [Rule.parse(part) for part in text.split("; ")]


def mentions(text: str, topic: str) -> bool:
    return topic in text.lower()


def finished(text: str) -> bool:
    return text.rstrip().endswith((".", "!", "?", '"'))


def plain_text(text: Text) -> str:
    return text if isinstance(text, str) else str(text[-1]["content"])
