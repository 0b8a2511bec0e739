"""MetaAPO and its ablations."""

from __future__ import annotations

from dataclasses import replace

from adaptpo.choices.learners.meta_learner import DegreeLearner, MetaLearner
from adaptpo.choices.learners.pair_features import GradientNorm, HiddenState, Similarity
from adaptpo.choices.learners.trust import SigmoidTrust, Trust
from adaptpo.choices.method import Method
from adaptpo.choices.objectives import DPO, Objective, SimPO
from adaptpo.choices.pairing import OfflineAndOnline, OnePairPerObjective
from adaptpo.choices.selection import SelectAll, SelectAtSameRate, SelectByLearner, SelectLowest, SelectRandom
from adaptpo.choices.weighting import LabelDegrees, LearnedBlend, Uniform
from adaptpo.config.numbers import Count, Fraction, LearningRate, NonNegative, Responses
from adaptpo.methods.named import named


@named
def metaapo(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
    unscaled: bool = False,
    keep_unselected: bool = False,
    constant_fill: bool = False,
) -> Method:
    """MetaAPO: a meta-learner selects the prompts to generate for and blends offline and online loss per prompt.

    Paper: Yang et al., 2025 (MetaAPO), Algorithm 1, Eqs. 4-6, Table 3.
    Deviations: the meta-learner starts from random instead of constant weights (`constant_fill` restores the
    constant), scores include beta as in Eq. 4 (`unscaled` omits it, like the released code), prompts whose fresh
    responses are all equal are left out, and the learner sees the scores of the training forward passes.
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


def trusting(learner: Trust, objective: Objective, num_generations: int) -> Method:
    """MetaAPO with another learner, which selection and weighting share."""
    method = metaapo(objective, num_generations)
    return replace(method, selection=SelectByLearner(learner), weighting=LearnedBlend(learner))


@named
def metaapo_simpo(
    objective: Objective = SimPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
) -> Method:
    """MetaAPO with the SimPO objective: scores by Eq. A.9, no reference and no warm-up.

    Paper: Yang et al., 2025 (MetaAPO), A.3 and C.2.
    """
    return metaapo(objective, num_generations, learning_rate, update_interval)


@named
def metaapo_random(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
    share: Fraction = 0.5,
) -> Method:
    """MetaAPO that generates for a random share of the prompts.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/ Random Sampling".
    """
    method = metaapo(objective, num_generations, learning_rate, update_interval)
    return replace(method, selection=SelectRandom(share))


@named
def metaapo_same_rate(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
) -> Method:
    """MetaAPO that generates for as many prompts as its meta-learner would, chosen at random.

    Paper: none; a control for MetaAPO's selection at the same number of annotations.
    """
    learner = MetaLearner(learning_rate, update_interval)
    method = metaapo(objective, num_generations)
    return replace(method, selection=SelectAtSameRate(learner), weighting=LearnedBlend(learner))


@named
def metaapo_threshold(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
    share: Fraction = 0.533,
) -> Method:
    """MetaAPO that generates for the prompts whose offline pairs have the lowest scores.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/ Threshold Sampling".
    Deviation: the share of prompts is fixed instead of the threshold, which the paper does not give.
    """
    method = metaapo(objective, num_generations, learning_rate, update_interval)
    return replace(method, selection=SelectLowest(share))


@named
def metaapo_all(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
) -> Method:
    """MetaAPO that generates for every prompt.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/ All Sampling".
    """
    return replace(metaapo(objective, num_generations, learning_rate, update_interval), selection=SelectAll())


@named
def metaapo_uniform(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
) -> Method:
    """MetaAPO's selection with weights of 0.5 for both pairs.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/ Uniform Loss Weighting".
    """
    return replace(metaapo(objective, num_generations, learning_rate, update_interval), weighting=Uniform())


@named
def metaapo_heuristic(objective: Objective = DPO(), num_generations: Responses = 8) -> Method:  # noqa: B008
    """MetaAPO with a fixed sigmoid of the score in place of the meta-learner.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/o Meta-Learner".
    Deviation: the paper does not give the sigmoid; here it has the range of the meta-learner at its start.
    """
    return trusting(SigmoidTrust(), objective, num_generations)


@named
def metaapo_fixed(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learner: str | None = None,
) -> Method:
    """MetaAPO whose meta-learner never learns: that of an earlier run, or one frozen at its start.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/ Fixed Meta-Learner".
    Deviation: the paper freezes a meta-learner that MetaAPO had trained. Here `learner` is the folder of that run or of
    one of its checkpoints; without it, the meta-learner is frozen at its start.
    """
    return trusting(MetaLearner(frozen=True, trained=learner), objective, num_generations)


@named
def metaapo_all_offline(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
) -> Method:
    """MetaAPO that keeps the offline pairs of unselected prompts, with weight 1.

    Paper: Yang et al., 2025 (MetaAPO), Table 7, "w/ All Offline Samples".
    """
    return metaapo(objective, num_generations, learning_rate, update_interval, keep_unselected=True)


@named
def metaapo_deep(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
) -> Method:
    """MetaAPO with a meta-learner of five layers.

    Paper: Yang et al., 2025 (MetaAPO), Table 7, "w/ 5-layers Meta-Learner".
    """
    return trusting(MetaLearner(learning_rate, update_interval, layers=5), objective, num_generations)


@named
def metaapo_multi_feature(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
) -> Method:
    """MetaAPO whose meta-learner sees the score and both log-ratios.

    Paper: Yang et al., 2025 (MetaAPO), Table 7, "w/ Multi-Feature Input".
    """
    return trusting(
        MetaLearner(learning_rate, update_interval, features=("score", "ratios")), objective, num_generations
    )


@named
def metaapo_semantic(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
    encoder: str | None = None,
) -> Method:
    """MetaAPO whose meta-learner sees the score and the similarity of the two offline responses.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/ Semantic Similarity", and C.5.
    Deviations: without an `encoder` (a model's path or hub id), the similarity is that of mean-pooled hidden states of
    the initial policy; the paper uses Qwen/Qwen3-Embedding-0.6B. An encoder's hidden states are mean-pooled as well.
    """
    return trusting(
        MetaLearner(learning_rate, update_interval, pair_features=(Similarity(encoder),)), objective, num_generations
    )


@named
def metaapo_gradient_norm(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
) -> Method:
    """MetaAPO whose meta-learner sees the score and the norm of the offline pair's gradient at the language-model head.

    Paper: none; an open question of Yang et al., 2025 (MetaAPO, section 6).
    """
    return trusting(
        MetaLearner(learning_rate, update_interval, pair_features=(GradientNorm(),)), objective, num_generations
    )


@named
def metaapo_hidden_state(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
    dimensions: Count = 4,
) -> Method:
    """MetaAPO whose meta-learner sees the score and a few projections of the policy's hidden states.

    Paper: none; an open question of Yang et al., 2025 (MetaAPO, section 6).
    """
    return trusting(
        MetaLearner(learning_rate, update_interval, pair_features=(HiddenState(dimensions),)),
        objective,
        num_generations,
    )


@named
def metaapo_multi_objective(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
    objectives: Count = 2,
) -> Method:
    """MetaAPO with several rewards: one pair per reward beside the offline pair, weighted by normalized label degrees.

    Paper: Yang et al., 2025 (MetaAPO), section 4.1.
    Deviations: the paper does not say where the objectives' preferences come from, nor how the degrees enter the loss
    and the meta-learner's update; here each objective ranks the fresh responses, the degrees are the pairs' weights,
    and Eq. 6 is summed over all pairs. Prompts are selected by the offline pair's own degree, as in MetaAPO.
    """
    learner = DegreeLearner(objectives, learning_rate, update_interval)
    return replace(
        metaapo(objective, num_generations),
        selection=SelectByLearner(learner),
        pairing=OnePairPerObjective(num_generations, objectives),
        weighting=LabelDegrees(learner),
    )


@named
def metaapo_adaptive(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
    drift: NonNegative = 0.25,
) -> Method:
    """MetaAPO whose meta-learner is updated when the scores have drifted, not every T_meta steps.

    Paper: none; an open question of Yang et al., 2025 (MetaAPO).
    """
    return trusting(MetaLearner(learning_rate, update_interval, drift=drift), objective, num_generations)


@named
def metaapo_unscaled(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
) -> Method:
    """MetaAPO whose scores omit beta.

    Paper: the authors' released code of MetaAPO.
    """
    return metaapo(objective, num_generations, learning_rate, update_interval, unscaled=True)


@named
def metaapo_previous(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    learning_rate: LearningRate = 5e-3,
    update_interval: Count = 8,
) -> Method:
    """MetaAPO whose reference in each iteration is the policy that started it.

    Paper: the authors' released code of MetaAPO, from the second iteration on.
    """
    return replace(metaapo(objective, num_generations, learning_rate, update_interval), reference="previous")
