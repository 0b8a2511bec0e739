"""Which prompts are asked of whom, in which order, and which response stands on the left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from adaptpo.errors import ConfigError, DataError
from adaptpo.seeds import seed_for
from adaptpo.vote.responses import Dialogue, Side

EQUAL = "prompts with the same response on both sides: each would be a tie"


@dataclass(frozen=True)
class Plan:
    """What `adaptpo vote` was asked for. `prompts` is per voter; `overlap` is the share of them that all voters get."""

    prompts: int = 50
    seed: int = 0
    overlap: float = 1.0

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise ConfigError(f"--prompts {self.prompts}: a voter needs at least one")
        if not 0 <= self.overlap <= 1:
            raise ConfigError(f"--overlap {self.overlap} must lie between 0 (no prompt in common) and 1 (all of them)")

    @property
    def shared(self) -> int:
        return round(self.overlap * self.prompts)


@dataclass(frozen=True)
class Question:
    """A prompt with the responses of both runs."""

    prompt: Dialogue
    a: str
    b: str

    @property
    def key(self) -> str:
        """The same for the same prompt, whatever was answered."""
        return json.dumps(self.prompt, ensure_ascii=False)


def read_key(key: str) -> Dialogue:
    return tuple((role, text) for role, text in json.loads(key))


def pool(a: Side, b: Side, plan: Plan) -> tuple[list[Question], Counter[str]]:
    """The questions in random order, as many as any number of voters can get, and what was left out, by reason.

    Raises DataError when the sides have no prompt in common.
    """
    prompts = [prompt for prompt in a.responses if prompt in b.responses]
    common = [Question(prompt, a.responses[prompt], b.responses[prompt]) for prompt in prompts]
    different = [question for question in common if question.a != question.b]
    if not different:
        raise DataError(
            f"{a.source} and {b.source} share {len(common)} prompts and differ in the response to none; "
            "compare runs with the same eval_data"
        )
    ordered = sorted(different, key=lambda question: seed_for(plan.seed, "prompt", question.key))
    asked = ordered[: plan.prompts] if plan.shared == plan.prompts else ordered
    return asked, left_out(a, b, len(common), len(common) - len(different), len(different) - len(asked))


def left_out(a: Side, b: Side, common: int, equal: int, unasked: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    for label, side in (("A", a), ("B", b)):
        counts[f"prompts that only {label} answered"] = len(side.responses) - common
        counts.update({f"rows of {label}: {reason}": count for reason, count in side.left_out.items()})
    counts[EQUAL] = equal
    counts["prompts beyond --prompts"] = unasked
    return +counts


def questions_for(number: int, total: int, plan: Plan) -> list[int]:
    """The questions of the voter with this number (from 0), of `total`: the shared ones, then a share of the rest.

    Voters take turns in the rest, so that nobody gets another's until all of it is in use.
    """
    shared, rest = min(plan.shared, total), total - min(plan.shared, total)
    own = min(plan.prompts - shared, rest)
    return [*range(shared), *(shared + (number * own + place) % rest for place in range(own))]


def in_order(questions: Sequence[Question], voter: str, seed: int) -> list[Question]:
    """The voter's questions in an order of the voter's own."""
    return sorted(questions, key=lambda question: seed_for(seed, "order", voter, question.key))


def left_is_a(questions: Sequence[Question], voter: str, seed: int) -> dict[str, bool]:
    """Whether A stands on the left, by question key: for half of the voter's questions, one more or less if odd.

    The half is drawn by a hash for each prompt. Balanced pairs of questions would be even after every second vote, but
    whoever recognises a response would then know the sides of the next.
    """
    ranked = sorted(questions, key=lambda question: seed_for(seed, "side", voter, question.key))
    half = (len(ranked) + seed_for(seed, "odd", voter) % 2) // 2
    return {question.key: place < half for place, question in enumerate(ranked)}
