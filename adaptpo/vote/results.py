"""What the votes say: shares with intervals, the pull of the left side, agreement, disagreements."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from statistics import median
from typing import Any

import numpy as np

from adaptpo.vote.ballots import UNDO, Ballots, Event, standing
from adaptpo.vote.masking import masked
from adaptpo.vote.questions import read_key
from adaptpo.vote.statistics import LEVEL, RESAMPLES, FloatArray, Share, agreement, clustered, wilson

OUTCOMES = {1.0: "A", 0.5: "tie", 0.0: "B"}


@dataclass(frozen=True)
class Vote:
    """A counted choice. `outcome` is 1 for A, 0 for B, 0.5 for a tie (`both_bad` among them); `left` is 1 for the
    response on the left, 0 for the one on the right, None for a tie."""

    voter: str
    prompt: str
    outcome: float
    left: float | None
    both_bad: bool
    seconds: float | None


@dataclass(frozen=True)
class Disagreement:
    """A prompt on which some voters preferred A and others B."""

    prompt: str
    votes: dict[str, str]


@dataclass(frozen=True)
class Summary:
    """The votes in numbers. Shares are of A: `score` counts a tie as half a win; `left` leaves ties out."""

    votes: int
    voters: int
    prompts: int
    both_bad: int
    interval: str
    win: Share
    tie: Share
    loss: Share
    score: Share
    left: Share | None
    alpha: float | None
    median_seconds: float | None
    disagreements: list[Disagreement]


def counted(events: Sequence[Event]) -> list[Vote]:
    """The choices that were neither undone nor skips."""
    by_voter = [list(own) for _, own in groupby(sorted(events, key=lambda e: (e.voter, e.turn)), lambda e: e.voter)]
    return [vote_of(event) for own in by_voter for event in standing(own) if event.choice != "skip"]


def vote_of(event: Event) -> Vote:
    left = {"left": 1.0, "right": 0.0}.get(event.choice)
    outcome = 0.5 if left is None else left if event.left_side == "A" else 1 - left
    return Vote(event.voter, event.prompt, outcome, left, event.choice == "bad", event.seconds)


def summarize(votes: Sequence[Vote]) -> Summary:
    """`votes` must not be empty."""
    outcomes, prompts = np.array([vote.outcome for vote in votes]), numbered(vote.prompt for vote in votes)
    voters = len({vote.voter for vote in votes})
    share_of = wilson_share if voters == 1 else clustered
    decided = [vote for vote in votes if vote.left is not None]
    seconds = [vote.seconds for vote in votes if vote.seconds is not None]
    return Summary(
        votes=len(votes),
        voters=voters,
        prompts=len(set(prompts)),
        both_bad=sum(vote.both_bad for vote in votes),
        interval="Wilson" if voters == 1 else f"bootstrap clustered by prompt, {RESAMPLES:,} resamples",
        win=share_of((outcomes == 1).astype(float), prompts),
        tie=share_of((outcomes == 0.5).astype(float), prompts),
        loss=share_of((outcomes == 0).astype(float), prompts),
        score=clustered(outcomes, prompts),  # Not of two values: Wilson's interval would be too wide by the ties.
        left=left_share(decided, share_of) if decided else None,
        alpha=agreement(ratings(votes)),
        median_seconds=median(seconds) if seconds else None,
        disagreements=disagreements(votes),
    )


def wilson_share(values: FloatArray, prompts: Sequence[int]) -> Share:
    return wilson(float(values.sum()), len(values))


def left_share(decided: Sequence[Vote], share_of: Any) -> Share:
    values = np.array([vote.left for vote in decided], dtype=float)
    found: Share = share_of(values, numbered(vote.prompt for vote in decided))
    return found


def numbered(prompts: Iterable[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]


def ratings(votes: Sequence[Vote]) -> FloatArray:
    """Outcomes [voters, prompts], NaN where a voter gave none."""
    voters, prompts = numbered(vote.voter for vote in votes), numbered(vote.prompt for vote in votes)
    found = np.full((max(voters) + 1, max(prompts) + 1), np.nan)
    found[voters, prompts] = [vote.outcome for vote in votes]
    return found


def disagreements(votes: Sequence[Vote]) -> list[Disagreement]:
    by_prompt: dict[str, dict[str, float]] = defaultdict(dict)
    for vote in votes:
        by_prompt[vote.prompt][vote.voter] = vote.outcome
    return [
        Disagreement(prompt, {voter: OUTCOMES[outcome] for voter, outcome in own.items()})
        for prompt, own in by_prompt.items()
        if {0.0, 1.0} <= set(own.values())
    ]


def results(ballots: Ballots) -> dict[str, Any]:
    """Everything that `adaptpo vote --results` knows, as JSON would hold it; `summary` is None without votes."""
    events, names = ballots.events(), ballots.settings["models"]
    votes = counted(events)
    hidden = {q.key for q in ballots.questions() if None in masked(q.a, names) or None in masked(q.b, names)}
    choices = Counter(event.choice for event in events)
    summary = asdict(summarize(votes)) if votes else None
    for item in summary["disagreements"] if summary else []:
        item["prompt"] = plain_prompt(item["prompt"])
    return {
        "runs": by_label(ballots.settings["runs"]),
        "responses": by_label(ballots.settings["sources"]),
        "level": LEVEL,
        "summary": summary,
        "skipped": len(votes_skipped(events)),
        "undone": choices[UNDO],
        "with_hidden_names": sum(vote.prompt in hidden for vote in votes),
        "left_out": ballots.settings["left_out"],
        "settings": asdict(ballots.plan),
    }


def by_label(values: Sequence[str]) -> dict[str, str]:
    return dict(zip(("A", "B"), values, strict=True))


def votes_skipped(events: Sequence[Event]) -> list[Event]:
    by_voter: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_voter[event.voter].append(event)
    return [event for own in by_voter.values() for event in standing(own) if event.choice == "skip"]


def plain_prompt(key: str) -> str:
    """The text of a prompt from its key: the one turn, or the turns behind one another with their roles."""
    turns = read_key(key)
    return turns[0][1] if len(turns) == 1 else "\n".join(f"[{role}] {text}" for role, text in turns)
