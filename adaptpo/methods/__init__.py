"""The named methods: each body is one `return Method(...)` with the published settings as defaults.

To add one, write a function under `@named` in the file of its paper and add its row here. The four choices that it
names define it completely.
"""

from __future__ import annotations

from collections.abc import Callable

from adaptpo.choices.method import Method
from adaptpo.methods.metaapo import (
    metaapo,
    metaapo_adaptive,
    metaapo_all,
    metaapo_all_offline,
    metaapo_deep,
    metaapo_fixed,
    metaapo_gradient_norm,
    metaapo_heuristic,
    metaapo_hidden_state,
    metaapo_multi_feature,
    metaapo_multi_objective,
    metaapo_previous,
    metaapo_random,
    metaapo_same_rate,
    metaapo_semantic,
    metaapo_simpo,
    metaapo_threshold,
    metaapo_uniform,
    metaapo_unscaled,
)
from adaptpo.methods.metapo import iterative_dpo_metapo, metaapo_metapo, metapo
from adaptpo.methods.offline import (
    conservative_dpo,
    dpo,
    dpo_shift,
    focalpo,
    hinge,
    ipo,
    kto,
    loss_curriculum,
    orpo,
    perplexity_filter,
    selective_dpo,
    simpo,
    slic_hf,
    weighted_dpo,
)
from adaptpo.methods.online import adpo, bees, grpo, iterative_dpo, map, online_dpo, ppo, rdo, rloo, selm
from adaptpo.methods.stages import metaapo_stage, off_off, off_on, on_off, on_on, stage_blend, two_stage

ROWS: tuple[Callable[..., Method], ...] = (
    dpo,
    simpo,
    ipo,
    hinge,
    slic_hf,
    dpo_shift,
    conservative_dpo,
    orpo,
    kto,
    selective_dpo,
    perplexity_filter,
    loss_curriculum,
    focalpo,
    weighted_dpo,
    online_dpo,
    bees,
    map,
    iterative_dpo,
    selm,
    adpo,
    ppo,
    grpo,
    rloo,
    rdo,
    metaapo,
    metaapo_simpo,
    metaapo_random,
    metaapo_same_rate,
    metaapo_threshold,
    metaapo_all,
    metaapo_uniform,
    metaapo_heuristic,
    metaapo_fixed,
    metaapo_all_offline,
    metaapo_deep,
    metaapo_multi_feature,
    metaapo_semantic,
    metaapo_gradient_norm,
    metaapo_hidden_state,
    metaapo_multi_objective,
    metaapo_adaptive,
    metaapo_unscaled,
    metaapo_previous,
    metapo,
    iterative_dpo_metapo,
    metaapo_metapo,
    off_off,
    off_on,
    on_off,
    on_on,
    two_stage,
    stage_blend,
    metaapo_stage,
)
METHODS = {build.__name__: build for build in ROWS}
"""Every named method by its name."""
