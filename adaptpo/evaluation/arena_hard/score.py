"""The numbers of Arena-Hard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adaptpo.errors import DataError
from adaptpo.evaluation.arena_hard import style
from adaptpo.evaluation.arena_hard.battles import (
    Battle,
    Fought,
    interval_over_battles,
    interval_over_prompts,
    score,
)
from adaptpo.evaluation.arena_hard.style import Styled
from adaptpo.evaluation.arena_hard.verdicts import Version
from adaptpo.evaluation.result import Number, Origin, PromptScore, Result

POOL = "style control belongs to its pool of models ({}); never compare it with a score of another pool"
NO_STYLE = "no equal style and no style control: name the answers of every model and of the baseline with --answers"


def score_battles(
    fought: Fought,
    version: Version,
    origin: Origin,
    pool: Sequence[Battle] = (),
    styled: Styled | None = None,
    groups: Mapping[str, str] | None = None,
) -> Result:
    """Of one model. `pool`: battles of all models that style control is to know; `styled`: their answers; `groups`: the
    category of each prompt, each of which gets its own number.

    Raises DataError where no battle is left.
    """
    battles = fought.battles
    if not battles:
        raise DataError("no battle has a valid verdict; look at the judge's answers in judgments.jsonl")
    groups = groups or {}
    of_style = [] if styled is None else style_numbers(battles, pool or battles, styled)
    return Result(
        suite=f"Arena-Hard {version}",
        origin=origin,
        n=fought.games,
        invalid=fought.invalid,
        numbers=[*main_numbers(battles, version), *of_style, *by_group(battles, version, groups)],
        scores=prompt_scores(battles, groups),
        warnings=[NO_STYLE if styled is None else POOL.format(", ".join(style.models_of(pool or battles)))],
        details={"battles": len(battles), "prompts": len({battle.prompt for battle in battles})},
    )


def main_numbers(battles: Sequence[Battle], version: Version) -> list[Number]:
    value = score(battles)
    return [
        Number("score", value, interval_over_prompts(battles, version)),
        Number("score, interval as published", value, interval_over_battles(battles, version)),
    ]


def style_numbers(battles: Sequence[Battle], pool: Sequence[Battle], styled: Styled) -> list[Number]:
    equal = style.equal_style(battles, styled.styles)[battles[0].model]
    controlled = style.controlled(pool, styled.styles)[battles[0].model]
    return [
        Number("equal style", equal, note=f"this model alone, differences uncentred; {styled.counted}"),
        Number("style control", controlled, note=f"differences centred over the pool; {styled.counted}"),
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
