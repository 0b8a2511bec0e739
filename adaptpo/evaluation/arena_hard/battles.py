"""Battles of a model with the baseline, and the score that they give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaptpo.evaluation.arena_hard.verdicts import Verdict, Version
from adaptpo.evaluation.intervals import ROWS, Floats, Interval, bootstrap_mean, clustered_mean
from adaptpo.types import Row

LEVELS: dict[Version, float] = {"v0.1": 0.95, "v2.0": 0.9}
"""Of the published intervals."""
OF_WINNER = {"model_a": 0.0, "tie": 0.5, "model_b": 1.0}


@dataclass(frozen=True)
class Battle:
    """One battle of weight 1; `outcome`: 1 where the model won, 0 where the baseline did, 0.5 for a tie."""

    prompt: str
    model: str
    baseline: str
    outcome: float


@dataclass(frozen=True)
class Fought:
    """The battles of one model; `games`: how many they come from; `invalid`: games that give none, by reason."""

    battles: Sequence[Battle]
    games: int
    invalid: Mapping[str, int]


def counted(games: Sequence[Verdict | None], version: Version) -> Sequence[Verdict | None]:
    """The games of a prompt, None for each that does not count: in v0.1 an invalid one, in v2.0 also the other one."""
    return [None] * len(games) if version == "v2.0" and None in games else games


def battles_of_games(
    prompt: str, model: str, baseline: str, games: Sequence[Verdict | None], version: Version
) -> list[Battle]:
    """Of the two games of a prompt: in the first the baseline is A, in the second the model."""
    kept = counted(games, version)
    for_model = [game and (game.swapped() if number == 0 else game) for number, game in enumerate(kept)]
    outcomes = [outcome for game in for_model if game for outcome in game.battles()]
    return [Battle(prompt, model, baseline, outcome) for outcome in outcomes]


def published_battles(rows: Iterable[Row]) -> list[Battle]:
    """Rows of `model_a` (the baseline), `model_b` and `winner`, repeated by their weight, as Arena-Hard writes them."""
    return [Battle(row["question_id"], row["model_b"], row["model_a"], OF_WINNER[row["winner"]]) for row in rows]


def published_games(battles: Sequence[Battle]) -> int:
    """How many games such battles come from. A prompt has two, and each counts once or three times: an odd number of
    battles is of one game."""
    by_prompt = Counter((battle.model, battle.prompt) for battle in battles)
    return sum(1 if count % 2 else 2 for count in by_prompt.values())


def outcomes(battles: Sequence[Battle]) -> Floats:
    return np.array([battle.outcome for battle in battles], dtype=np.float64)


def score(battles: Sequence[Battle]) -> float:
    """The win rate over the baseline in percent.

    Where every battle is with one baseline, the maximum of the Bradley-Terry likelihood is the weighted mean.
    """
    return 100 * float(outcomes(battles).mean())


def interval_over_battles(battles: Sequence[Battle], version: Version) -> Interval:
    """As Arena-Hard publishes it: too narrow, for the battles of one prompt are drawn one by one."""
    return bootstrap_mean(100 * outcomes(battles), ROWS, LEVELS[version])


def interval_over_prompts(battles: Sequence[Battle], version: Version) -> Interval:
    prompts = [battle.prompt for battle in battles]
    return clustered_mean(100 * outcomes(battles), prompts, LEVELS[version])
