"""Methods of this project, composed of the same choices as those of the papers."""

from __future__ import annotations

from adaptpo.choices.learners.reward_gap import RunningGap
from adaptpo.choices.method import Method
from adaptpo.choices.objectives import KTO, Objective
from adaptpo.choices.pairing import NestedPool
from adaptpo.choices.selection import SelectAll
from adaptpo.choices.weighting import RewardDifference
from adaptpo.config.numbers import Positive, Responses
from adaptpo.methods.named import named


@named
def pool_kto(objective: Objective | None = None, num_generations: Responses = 2, limit: Positive = 3.0) -> Method:
    """Few fresh responses to every prompt, ranked together with the offline ones; all of them train, by KTO.

    Paper: none. Each prompt's two fresh and two offline responses form two pairs (best and worst, and the two between
    them), weighted by their reward gaps. Four annotated responses a prompt check every offline label and cost half of
    what eight fresh ones do.
    """
    # Not a default argument: its reference point is state, and belongs to one method.
    weighting = RewardDifference(RunningGap(), limit)
    return Method(SelectAll(), NestedPool(num_generations), objective or KTO(), weighting, warmup_epochs=1)
