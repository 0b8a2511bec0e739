"""The named methods: each body is one `return Method(...)` with the published settings as defaults.

Adding one: a function here under `@named`. The four choices that it names are all there is to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

from adaptpo.choices.filters import AgreeingMargins, AlignmentPotential, EasyFirst, LowHeldOutLoss, LowPerplexity
from adaptpo.choices.hold_out import Split, Validation
from adaptpo.choices.learners.base import Estimator
from adaptpo.choices.learners.degree_learner import DegreeLearner
from adaptpo.choices.learners.meta_learner import MetaLearner
from adaptpo.choices.learners.pair_features import GradientNorm, HiddenState, Similarity
from adaptpo.choices.learners.reward_gap import RunningGap
from adaptpo.choices.learners.temporal import FeatureSet, TemporalLearner, ValidationGoal
from adaptpo.choices.learners.temporal.features import BASE, Centre
from adaptpo.choices.learners.temporal.networks import Architecture
from adaptpo.choices.learners.temporal.temporal_learner import Divergence
from adaptpo.choices.learners.trust import SigmoidTrust, Trust
from adaptpo.choices.method import Method
from adaptpo.choices.objectives import DPO, IPO, KTO, ORPO, DPOShift, Hinge, Objective, SimPO, SLiCHF
from adaptpo.choices.pairing import (
    MixedPool,
    Offline,
    OfflineAndOnline,
    OnePairPerObjective,
    Online,
    Pairing,
    PairingByStage,
    PairingSchedule,
    Rollouts,
)
from adaptpo.choices.policy_update import GRPO, PPO, RLOO
from adaptpo.choices.selection import (
    SelectAll,
    SelectAtSameRate,
    SelectByLearner,
    SelectByStage,
    SelectLowest,
    SelectNone,
    SelectRandom,
    SelectUncertain,
)
from adaptpo.choices.weighting import (
    DataWeight,
    Focal,
    LabelDegrees,
    LearnedBlend,
    RewardDifference,
    StageBlend,
    Temporal,
    Uniform,
)

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
def ipo(objective: Objective = IPO()) -> Method:  # noqa: B008
    """IPO on the offline pairs: the margin is drawn to a target instead of growing.

    Paper: Azar et al., 2024; a baseline of the MetaAPO paper.
    Deviation: log-ratios are divided by token counts as in TRL; the publication sums them.
    """
    return Method(SelectNone(), Offline(), objective, Uniform())


@named
def hinge(objective: Objective = Hinge()) -> Method:  # noqa: B008
    """A hinge on DPO's margin, as TRL's loss type of that name.

    Paper: Zhao et al., 2023 (SLiC), with DPO's margin.
    """
    return Method(SelectNone(), Offline(), objective, Uniform())


@named
def slic_hf(objective: Objective = SLiCHF()) -> Method:  # noqa: B008
    """SLiC-HF: a hinge on log-probs without a reference, and a likelihood term on the chosen response.

    Paper: Zhao et al., 2023; section 6 of the alignment-stages paper.
    Deviation: the regularizer's target is the chosen response; hyperparameters are ours, as the papers give none.
    """
    return Method(SelectNone(), Offline(), objective, Uniform())


@named
def dpo_shift(objective: Objective = DPOShift()) -> Method:  # noqa: B008
    """DPO-Shift: the rejected reward counts f, which rises from 0.95 to 1.0 over the run.

    Paper: Yang et al., 2025 (DPO-Shift); B.3 of the MetaAPO paper.
    Deviation: margin and score are DPO's, whatever f.
    """
    return Method(SelectNone(), Offline(), objective, Uniform())


@named
def conservative_dpo(objective: Objective = DPO(label_smoothing=0.1)) -> Method:  # noqa: B008
    """DPO that takes a share of the labels for wrong.

    Paper: Mitchell, 2023 (conservative DPO).
    """
    return Method(SelectNone(), Offline(), objective, Uniform())


@named
def orpo(objective: Objective = ORPO()) -> Method:  # noqa: B008
    """ORPO: an odds-ratio penalty beside the likelihood of the chosen response, without a reference.

    Paper: Hong et al., 2024; a baseline of the MetaPO paper.
    Deviation: the likelihood term covers response tokens only.
    """
    return Method(SelectNone(), Offline(), objective, Uniform())


@named
def kto(objective: Objective | None = None) -> Method:
    """KTO on pairs: chosen responses are desirable, rejected ones are not.

    Paper: Ethayarajh et al., 2024; a baseline of the MetaAPO and MetaPO papers.
    Deviation: the reference point is the mean log-ratio of the optimizer step before, not that of mismatched pairs.
    """
    # Not a default argument: its reference point is state, and belongs to one method.
    return Method(SelectNone(), Offline(), objective or KTO(), Uniform())


@named
def selective_dpo(objective: Objective = DPO(), share: float = 0.5) -> Method:  # noqa: B008
    """DPO on the pairs that a model trained on the other half of the data ranks best.

    Paper: Gao et al., 2025 (Selective DPO), as described in B.3 of the MetaAPO paper.
    Deviation: the share kept is ours, as B.3 gives none.
    """
    return replace(dpo(objective), filter=LowHeldOutLoss(share))


@named
def perplexity_filter(objective: Objective = DPO(), share: float = 0.8) -> Method:  # noqa: B008
    """DPO on the pairs whose chosen response surprises the initial model least.

    Paper: Table 17 of the MetaPO paper.
    Deviation: the paper does not say whose perplexity; here it is that of the chosen response.
    """
    return replace(dpo(objective), filter=LowPerplexity(share))


@named
def loss_curriculum(objective: Objective = DPO()) -> Method:  # noqa: B008
    """DPO on all pairs, easy ones first.

    Paper: Table 17 of the MetaPO paper.
    Deviation: DPO's initial loss is the same for all pairs; here it is that of a model trained on the other half.
    """
    return replace(dpo(objective), filter=EasyFirst())


@named
def online_dpo(objective: Objective = DPO(), num_generations: int = 8) -> Method:  # noqa: B008
    """Best against worst of K fresh responses to every prompt; the reference is the recipe's choice.

    Paper: Xiong et al., 2023, as described in B.3 of the MetaAPO paper.
    Deviation: there the reference follows the policy after each iteration; here that is `reference: previous`, and
    the default is the initial model, as for MetaAPO.
    """
    return Method(SelectAll(), Online(num_generations), objective, Uniform(), warmup_epochs=1)


@named
def bees(objective: Objective = DPO(), num_generations: int = 8, share: float = 0.25) -> Method:  # noqa: B008
    """Online DPO on the prompts of the pairs on which reward model and a trained policy agree most.

    Paper: Deng et al., 2025 (BeeS), with the 25 % of B.3 of the MetaAPO paper and online augmentation (section 5.1).
    Deviation: standardized margins are added as log-odds; the implicit margins are those of one epoch of DPO.
    """
    return replace(online_dpo(objective, num_generations), filter=AgreeingMargins(share))


@named
def map(objective: Objective = DPO(), num_generations: int = 8, share: float = 0.4) -> Method:  # noqa: B008
    """Online DPO on the prompts of the pairs whose reward gap exceeds the policy's own margin most.

    Paper: Huang et al., 2025 (MAP), with the 40 % of B.3 of the MetaAPO paper and online augmentation (section 5.1).
    Deviation: both margins are standardized; the implicit ones are those of one epoch of DPO.
    """
    return replace(online_dpo(objective, num_generations), filter=AlignmentPotential(share))


@named
def iterative_dpo(objective: Objective = DPO(), num_generations: int = 8) -> Method:  # noqa: B008
    """Online DPO whose reference is, in each iteration, the policy that started it.

    Paper: Xiong et al., 2023; Table 21 of the MetaPO paper.
    """
    return replace(online_dpo(objective, num_generations), reference="previous")


@named
def selm(objective: Objective = DPO(), num_generations: int = 8) -> Method:  # noqa: B008
    """Best against worst of K fresh responses and the two offline ones in one ranking pool.

    Paper: Zhang et al., 2024 (SELM), as described in B.3 of the MetaAPO paper.
    Deviation: without SELM's optimism term, which B.3 does not use either; the objective `optimistic_dpo` has it. SELM
    draws one response, not K, and its reference follows the policy, which is `reference: previous` here.
    """
    pairing = MixedPool(num_generations, keep_sample=objective.needs_sample)
    return Method(SelectAll(), pairing, objective, Uniform(), warmup_epochs=1)


@named
def adpo(objective: Objective = DPO(), num_generations: int = 8, threshold: float = 1.0) -> Method:  # noqa: B008
    """Fresh responses for prompts on which the policy is undecided, trained on beside the offline pair.

    Paper: Ji et al., 2024 (ADPO), as described in B.3 of the MetaAPO paper.
    Deviation: ADPO asks for labels of given pairs, B.3 for new pairs; the threshold on the absolute margin is ours, as
    B.3 gives none. Offline pairs of prompts that are not selected stay.
    """
    pairing = OfflineAndOnline(num_generations, keep_unselected=True)
    return Method(SelectUncertain(threshold), pairing, objective, Uniform(), warmup_epochs=1)


@named
def ppo(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    clip: float = 0.2,
    value_clip: float = 0.2,
    value_coef: float = 0.1,
    kl_coef: float = 0.05,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    epochs: int = 1,
    critic_learning_rate: float | None = None,
    cut_penalty: float = 0.0,
) -> Method:
    """PPO with a critic on the rewards of fresh responses, one batch of them per iteration.

    Paper: Schulman et al., 2017; Ouyang et al., 2022; a baseline of the MetaAPO paper.
    Deviation: the critic starts as a copy of the policy, not of the reward model, which may be a function. All prompts
    of an iteration are one batch of responses: set num_iterations so that it is small (B.3 has 1024 prompts). The
    objective serves a warm-up, of which there is none by default, and evaluation.
    """
    trainer = PPO(clip, value_clip, value_coef, kl_coef, gamma, gae_lambda, epochs, critic_learning_rate, cut_penalty)
    return Method(SelectAll(), Rollouts(num_generations), objective, Uniform(), trainer=trainer)


@named
def grpo(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    epsilon: float = 0.2,
    beta: float = 0.04,
) -> Method:
    """GRPO: a policy gradient on rewards standardized within each prompt's responses, by TRL's `GRPOTrainer`.

    Paper: Shao et al., 2024 (DeepSeekMath).
    Deviation: TRL's loss, a mean over all tokens, where the paper has the mean over each response's. Responses are
    generated at every optimizer step, by TRL; prompts that fill no whole step are left out.
    """
    return Method(SelectAll(), Rollouts(num_generations), objective, Uniform(), trainer=GRPO(epsilon, beta))


@named
def rloo(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    epsilon: float = 0.2,
    beta: float = 0.05,
) -> Method:
    """RLOO: REINFORCE whose baseline is the mean reward of the prompt's other responses, by TRL's `RLOOTrainer`.

    Paper: Ahmadian et al., 2024.
    Deviation: as `grpo`; beta is TRL's default.
    """
    return Method(SelectAll(), Rollouts(num_generations), objective, Uniform(), trainer=RLOO(epsilon, beta))


@named
def focalpo(objective: Objective = DPO(), gamma: float = 0.05) -> Method:  # noqa: B008
    """DPO whose pairs count `p^gamma`, more where the policy ranks them rightly.

    Paper: Liu et al., 2025 (FocalPO); Eq. 2 of the MetaPO paper.
    Deviation: the factor carries no gradient, as MetaPO's weights.
    """
    return Method(SelectNone(), Offline(), objective, Focal(gamma))


@named
def rdo(objective: Objective = DPO(), num_generations: int = 8, limit: float = 3.0) -> Method:  # noqa: B008
    """Online DPO whose pairs count by their reward gap.

    Paper: Wang et al., 2024 (RDO); Table 3 of the MetaPO paper.
    Deviation: the gap over its running mean in place of RDO's closed form, and on fresh pairs, whose rewards are known.
    """
    weighting = RewardDifference(RunningGap(), limit)
    return Method(SelectAll(), Online(num_generations), objective, weighting, warmup_epochs=1)


@named
def weighted_dpo(objective: Objective = DPO()) -> Method:  # noqa: B008
    """DPO whose pairs count as the data set's column `weight` says.

    Paper: none; the column is the user's.
    """
    return Method(SelectNone(), Offline(), objective, DataWeight())


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


def trusting(learner: Trust, objective: Objective, num_generations: int) -> Method:
    """MetaAPO with another learner, which selection and weighting share."""
    method = metaapo(objective, num_generations)
    return replace(method, selection=SelectByLearner(learner), weighting=LearnedBlend(learner))


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


@named
def metaapo_random(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
    share: float = 0.5,
) -> Method:
    """MetaAPO that generates for a random share of the prompts.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/ Random Sampling".
    """
    method = metaapo(objective, num_generations, learning_rate, update_interval)
    return replace(method, selection=SelectRandom(share))


@named
def metaapo_same_rate(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
) -> Method:
    """MetaAPO that generates for as many prompts as its meta-learner would, taken at random.

    Paper: none; the control for MetaAPO's selection at the same number of annotations.
    """
    learner = MetaLearner(learning_rate, update_interval)
    method = metaapo(objective, num_generations)
    return replace(method, selection=SelectAtSameRate(learner), weighting=LearnedBlend(learner))


@named
def metaapo_threshold(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
    share: float = 0.533,
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
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
) -> Method:
    """MetaAPO that generates for every prompt.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/ All Sampling".
    """
    return replace(metaapo(objective, num_generations, learning_rate, update_interval), selection=SelectAll())


@named
def metaapo_uniform(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
) -> Method:
    """MetaAPO's selection with weights of 0.5 for both pairs.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/ Uniform Loss Weighting".
    """
    return replace(metaapo(objective, num_generations, learning_rate, update_interval), weighting=Uniform())


@named
def metaapo_heuristic(objective: Objective = DPO(), num_generations: int = 8) -> Method:  # noqa: B008
    """MetaAPO with a fixed sigmoid of the score in place of the meta-learner.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/o Meta-Learner".
    Deviation: the paper does not give the sigmoid; here it has the range in which the meta-learner starts.
    """
    return trusting(SigmoidTrust(), objective, num_generations)


@named
def metaapo_fixed(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learner: str | None = None,
) -> Method:
    """MetaAPO whose meta-learner never learns: that of an earlier run, or one that stays as it started.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/ Fixed Meta-Learner".
    Deviation: the paper freezes a meta-learner that MetaAPO had trained, which is `learner`, the folder of that run or
    of one of its checkpoints; without it, the meta-learner is frozen at its start.
    """
    return trusting(MetaLearner(frozen=True, trained=learner), objective, num_generations)


@named
def metaapo_all_offline(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
) -> Method:
    """MetaAPO that keeps the offline pairs of prompts that were not selected, with weight 1.

    Paper: Yang et al., 2025 (MetaAPO), Table 7, "w/ All Offline Samples".
    """
    return metaapo(objective, num_generations, learning_rate, update_interval, keep_unselected=True)


@named
def metaapo_deep(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
) -> Method:
    """MetaAPO with a meta-learner of five layers.

    Paper: Yang et al., 2025 (MetaAPO), Table 7, "w/ 5-layers Meta-Learner".
    """
    return trusting(MetaLearner(learning_rate, update_interval, layers=5), objective, num_generations)


@named
def metaapo_multi_feature(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
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
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
    encoder: str | None = None,
) -> Method:
    """MetaAPO whose meta-learner sees the score and how alike the two offline responses are.

    Paper: Yang et al., 2025 (MetaAPO), Table 2, "w/ Semantic Similarity", and C.5.
    Deviations: without an `encoder` (a model's path or hub id), the likeness is one of mean-pooled hidden states of the
    initial policy; the paper has Qwen/Qwen3-Embedding-0.6B. With one, its hidden states are mean-pooled as well.
    """
    return trusting(
        MetaLearner(learning_rate, update_interval, pair_features=(Similarity(encoder),)), objective, num_generations
    )


@named
def metaapo_gradient_norm(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
) -> Method:
    """MetaAPO whose meta-learner sees the score and the norm of the offline pair's gradient by the head's weight.

    Paper: none; an open question of Yang et al., 2025 (MetaAPO, section 6).
    """
    return trusting(
        MetaLearner(learning_rate, update_interval, pair_features=(GradientNorm(),)), objective, num_generations
    )


@named
def metaapo_hidden_state(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
    dimensions: int = 4,
) -> Method:
    """MetaAPO whose meta-learner sees the score and a few projections of the policy's hidden states of the pair.

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
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
    objectives: int = 2,
) -> Method:
    """MetaAPO over several rewards: a pair for each beside the offline one, weighted by normalized label degrees.

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
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
    drift: float = 0.25,
) -> Method:
    """MetaAPO whose meta-learner is updated when the scores have drifted, not every T_meta steps.

    Paper: none; an open question of Yang et al., 2025 (MetaAPO).
    """
    return trusting(MetaLearner(learning_rate, update_interval, drift=drift), objective, num_generations)


@named
def metaapo_unscaled(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
) -> Method:
    """MetaAPO whose scores leave beta out.

    Paper: the authors' released code of MetaAPO.
    """
    return metaapo(objective, num_generations, learning_rate, update_interval, unscaled=True)


@named
def metaapo_previous(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
) -> Method:
    """MetaAPO whose reference is, in each iteration, the policy that started it.

    Paper: the authors' released code of MetaAPO, from the second iteration on.
    """
    return replace(metaapo(objective, num_generations, learning_rate, update_interval), reference="previous")


def in_turn(objective: Objective, measured: bool, *plan: Pairing) -> Method:
    """Pairings that share the iterations of a run evenly; each iteration's reference is the policy that started it."""
    return Method(SelectAll(), PairingSchedule(plan, measured), objective, Uniform(), reference="previous")


@named
def off_off(objective: Objective = DPO(), measured: bool = False) -> Method:  # noqa: B008
    """Offline pairs in both halves of the iterations.

    Paper: the alignment-stages paper, Tables 1 and 3 (DPO) and 5 (SLiC-HF), "PC_off, PC_off".
    Deviation: each iteration has its own part of the data, and offline pairs keep the labels of the data.
    """
    return in_turn(objective, measured, Offline(), Offline())


@named
def off_on(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 2,
    measured: bool = False,
) -> Method:
    """Offline pairs in the first half of the iterations, the policy's own in the second.

    Paper: the alignment-stages paper, Tables 1 and 3 (DPO) and 5 (SLiC-HF), "PC_off, PC_on".
    Deviation: each iteration has its own part of the data, and offline pairs keep the labels of the data.
    """
    return in_turn(objective, measured, Offline(), Online(num_generations))


@named
def on_off(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 2,
    measured: bool = False,
) -> Method:
    """The policy's own pairs in the first half of the iterations, offline ones in the second.

    Paper: the alignment-stages paper, Tables 1 and 3 (DPO) and 5 (SLiC-HF), "PC_on, PC_off".
    Deviation: each iteration has its own part of the data, and offline pairs keep the labels of the data.
    """
    return in_turn(objective, measured, Online(num_generations), Offline())


@named
def on_on(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 2,
    measured: bool = False,
) -> Method:
    """The policy's own pairs in both halves of the iterations.

    Paper: the alignment-stages paper, Tables 1 and 3 (DPO) and 5 (SLiC-HF), "PC_on, PC_on".
    Deviation: each iteration has its own part of the data.
    """
    return in_turn(objective, measured, Online(num_generations), Online(num_generations))


@named
def two_stage(objective: Objective = DPO(), num_generations: int = 2) -> Method:  # noqa: B008
    """Measures the alignment stage before each iteration: offline pairs under injection, own pairs under fine-tuning.

    Paper: the alignment-stages paper, Algorithm 1.
    Deviation: an undecided measurement follows Algorithm 1's rule, V_off > V_on; the paper's own runs are fixed
    schedules, and no run of it switches by the measurement.
    """
    return Method(SelectAll(), PairingByStage(num_generations), objective, Uniform(), reference="previous")


@named
def stage_blend(objective: Objective = DPO(), num_generations: int = 8) -> Method:  # noqa: B008
    """The boundary score as the share of prompts to generate for, and as the weight of their online pair.

    Paper: none; section 7 of the alignment-stages paper leaves smooth blending to future work. `stage.groups` of the
    recipe gives each group of prompts its own score.
    """
    pairing = OfflineAndOnline(num_generations, keep_unselected=True)
    return Method(SelectByStage(), pairing, objective, StageBlend(), reference="previous")


@named
def metaapo_stage(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
) -> Method:
    """MetaAPO whose meta-learner starts from the stage: under injection it first trusts offline pairs more.

    Paper: none; MetaAPO (Yang et al., 2025) with the boundary score of the alignment-stages paper.
    """
    return trusting(MetaLearner(learning_rate, update_interval, stage_start=True), objective, num_generations)


@named
def metapo(
    objective: Objective = DPO(),  # noqa: B008
    meta_interval: int | None = 100,
    meta_learning_rate: float = 1e-4,
    margin_weight: float = 0.1,
    entropy: float = 0.0,
    features: Sequence[str] = BASE,
    decay: float = 0.9,
    centre: Centre = "mean",
    architecture: Architecture = "linear",
    estimator: Estimator = "central",
    validation_share: float = 0.03,
    validation_split: Split = "stratified",
    divergence: Divergence = "k3",
) -> Method:
    """MetaPO: each pair's training history makes its weight, by a meta-learner that is learned on held-out pairs.

    Paper: Li et al., 2026 (MetaPO), Algorithm 1, Eqs. 3-13.
    Deviations: the meta-learner takes Adam steps (the paper names no optimizer) and is measured on as many held-out
    pairs as a step trains on, not on all; difficulty is a preference of the initial model, whose loss is the same for
    all pairs; the divergence is that at the tokens of the data, estimated from their kept log-probs (`divergence:
    exact` computes it over the whole vocabulary).
    """
    learner = TemporalLearner(
        features=FeatureSet(tuple(features), decay, centre),
        architecture=architecture,
        learning_rate=meta_learning_rate,
        interval=meta_interval,
        goal=ValidationGoal(margin_weight),
        entropy=entropy,
        estimator=estimator,
        divergence=divergence,
    )
    validation = Validation(validation_share, validation_split)
    return Method(SelectNone(), Offline(), objective, Temporal(learner), validation=validation)


@named
def iterative_dpo_metapo(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    meta_interval: int | None = 100,
    meta_learning_rate: float = 1e-4,
) -> Method:
    """Iterative DPO whose fresh pairs count by MetaPO's weights, learned on held-out offline pairs.

    Paper: Li et al., 2026 (MetaPO), Table 21.
    Deviation: a fresh pair has a history only if it is trained on for more than one epoch.
    """
    weighting = metapo(objective, meta_interval, meta_learning_rate).weighting
    return replace(iterative_dpo(objective, num_generations), weighting=weighting, validation=Validation())


@named
def metaapo_metapo(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: int = 8,
    learning_rate: float = 5e-3,
    update_interval: int = 8,
    meta_interval: int | None = 100,
    meta_learning_rate: float = 1e-4,
) -> Method:
    """MetaAPO whose blend of offline and online pair is multiplied by MetaPO's weight of each.

    Paper: none; MetaAPO (Yang et al., 2025) and MetaPO (Li et al., 2026) together.
    """
    method = metaapo(objective, num_generations, learning_rate, update_interval)
    temporal = TemporalLearner(interval=meta_interval, learning_rate=meta_learning_rate)
    return replace(method, weighting=Temporal(temporal, method.weighting), validation=Validation())
