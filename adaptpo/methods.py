"""The named methods: each body is one `return Method(...)` with the published settings as defaults.

Adding one: a function here under `@named`. The four choices that it names are all there is to read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from adaptpo.meta_learner import MetaLearner
from adaptpo.method import Method
from adaptpo.objectives import DPO, Objective, SimPO
from adaptpo.pairing import Offline, OfflineAndOnline, Online
from adaptpo.selection import SelectAll, SelectByLearner, SelectNone
from adaptpo.weighting import LearnedBlend, Uniform

METHODS: dict[str, Callable[..., Method]] = {}


def named(build: Callable[..., Method]) -> Callable[..., Method]:
    @wraps(build)
    def build_named(*args: Any, **kwargs: Any) -> Method:
        return replace(build(*args, **kwargs), name=build.__name__)

    METHODS[build.__name__] = build_named
    return build_named


@named
def dpo(objective: Objective = DPO()) -> Method:  # noqa: B008 (frozen)
    """Direct preference optimization on the offline pairs.

    Paper: Rafailov et al., 2023 (Eq. 3 of the MetaAPO paper).
    """
    return Method(SelectNone(), Offline(), objective, Uniform())


@named
def simpo(objective: Objective = SimPO()) -> Method:  # noqa: B008
    """SimPO on the offline pairs: length-normalized, no reference.

    Paper: Meng et al., 2024; defaults of the MetaAPO paper's Table 3.
    """
    return Method(SelectNone(), Offline(), objective, Uniform())


@named
def online_dpo(objective: Objective = DPO(), num_generations: int = 8) -> Method:  # noqa: B008
    """Best against worst of K fresh responses to every prompt; the reference is the recipe's choice.

    Paper: Xiong et al., 2023, as described in B.3 of the MetaAPO paper.
    Deviation: there the reference follows the policy after each iteration; here that is `reference: previous`, and
    the default is the initial model, as for MetaAPO.
    """
    return Method(SelectAll(), Online(num_generations), objective, Uniform(), warmup_epochs=1)


@named
def metaapo(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
    unscaled: bool = False,
    keep_unselected: bool = False,
    constant_fill: bool = False,
) -> Method:
    """MetaAPO: a meta-learner picks the prompts to generate for and blends offline and online loss per prompt.

    Paper: Yang et al., 2025 (MetaAPO), Algorithm 1, Eqs. 4-6, Table 3.
    Deviations: the meta-learner starts from random instead of constant weights (`constant_fill` restores the
    constant), scores carry beta as in Eq. 4 (`unscaled` drops it, as the released code does), prompts whose fresh
    responses are all equal leave the iteration, and the learner sees the scores of the training forward passes.
    """
    scale = 1 / objective.beta if unscaled else 1.0
    learner = MetaLearner(learning_rate, update_interval, scale, constant_fill)
    return Method(
        selection=SelectByLearner(learner),
        pairing=OfflineAndOnline(num_generations, keep_unselected),
        objective=objective,
        weighting=LearnedBlend(learner),
        warmup_epochs=1 if objective.needs_reference else 0,
    )


@named
def metaapo_simpo(
    objective: Objective = SimPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
) -> Method:
    """MetaAPO on the SimPO objective: scores by Eq. A.9, no reference and no warm-up.

    Paper: Yang et al., 2025 (MetaAPO), A.3 and C.2.
    """
    return metaapo(objective, num_generations, learning_rate, update_interval)
