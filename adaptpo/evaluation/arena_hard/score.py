"""The numbers of Arena-Hard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adaptpo.errors import DataError
from adaptpo.evaluation.arena_hard import style
from adaptpo.evaluation.arena_hard.battles import (
    Battle,
    interval_over_battles,
    interval_over_prompts,
    score,
)
from adaptpo.evaluation.arena_hard.style import Styles
from adaptpo.evaluation.arena_hard.verdicts import Version
from adaptpo.evaluation.result import Number, Origin, PromptScore, Result

POOL = "style control belongs to its pool of models ({}); never compare it with a score of another pool"


def score_battles(
    battles: Sequence[Battle],
    version: Version,
    origin: Origin,
    invalid: Mapping[str, int],
    pool: Sequence[Battle] = (),
    styles: Styles | None = None,
    groups: Mapping[str, str] | None = None,
) -> Result:
    """Of one model. `pool`: battles of all models that style control is to know; `styles`: of their answers; `groups`:
    the category of each prompt, each of which gets its own number.

    Raises DataError where no battle is left.
    """
    if not battles:
        raise DataError("no battle has a valid verdict; look at the judge's answers in judgments.jsonl")
    groups = groups or {}
    styled = [] if styles is None else style_numbers(battles, pool or battles, styles)
    return Result(
        suite=f"Arena-Hard {version}",
        origin=origin,
        n=len(battles),
        invalid=invalid,
        numbers=[*main_numbers(battles, version), *styled, *by_group(battles, version, groups)],
        scores=prompt_scores(battles, groups),
        warnings=[] if styles is None else [POOL.format(", ".join(style.models_of(pool or battles)))],
        details={"battles": len(battles), "prompts": len({battle.prompt for battle in battles})},
    )


def main_numbers(battles: Sequence[Battle], version: Version) -> list[Number]:
    value = score(battles)
    return [
        Number("score", value, interval_over_prompts(battles, version)),
        Number("score, interval as published", value, interval_over_battles(battles, version)),
    ]


def style_numbers(battles: Sequence[Battle], pool: Sequence[Battle], styles: Styles) -> list[Number]:
    model = battles[0].model
    return [
        Number(
            "equal style", style.equal_style(battles, styles)[model], note="this model alone, differences uncentred"
        ),
        Number("style control", style.controlled(pool, styles)[model], note="differences centred over the pool"),
    ]


def by_group(battles: Sequence[Battle], version: Version, groups: Mapping[str, str]) -> list[Number]:
    names = sorted({groups[battle.prompt] for battle in battles if battle.prompt in groups})
    if len(names) < 2:
        return []
    parts = {name: [battle for battle in battles if groups.get(battle.prompt) == name] for name in names}
    return [Number(name, score(part), interval_over_prompts(part, version)) for name, part in parts.items()]


def prompt_scores(battles: Sequence[Battle], groups: Mapping[str, str]) -> list[PromptScore]:
    """The mean outcome of each prompt's battles, in percent."""
    by_prompt: dict[str, list[float]] = {}
    for battle in battles:
        by_prompt.setdefault(battle.prompt, []).append(battle.outcome)
    return [
        PromptScore(prompt, 100 * float(np.mean(found)), groups.get(prompt, ""), float(len(found)))
        for prompt, found in by_prompt.items()
    ]
