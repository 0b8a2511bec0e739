"""Methods on the policy's own responses: Online DPO, its variants, and policy gradients."""

from __future__ import annotations

from dataclasses import replace

from adaptpo.choices.filters import AgreeingMargins, AlignmentPotential
from adaptpo.choices.learners.reward_gap import RunningGap
from adaptpo.choices.method import Method
from adaptpo.choices.objectives import DPO, Objective
from adaptpo.choices.pairing import MixedPool, OfflineAndOnline, Online, Rollouts
from adaptpo.choices.policy_update import GRPO, PPO, RLOO
from adaptpo.choices.selection import SelectAll, SelectUncertain
from adaptpo.choices.weighting import RewardDifference, Uniform
from adaptpo.config.numbers import Count, Fraction, LearningRate, NonNegative, Positive, PositiveFraction, Responses
from adaptpo.methods.named import named


@named
def online_dpo(objective: Objective = DPO(), num_generations: Responses = 8) -> Method:  # noqa: B008
    """The best against the worst of K fresh responses to every prompt; the recipe chooses the reference.

    Paper: Xiong et al., 2023, as described in B.3 of the MetaAPO paper.
    Deviation: there the reference follows the policy after each iteration; here that is `reference: previous`, and
    the default is the initial model, as for MetaAPO.
    """
    return Method(SelectAll(), Online(num_generations), objective, Uniform(), warmup_epochs=1)


@named
def bees(objective: Objective = DPO(), num_generations: Responses = 8, share: PositiveFraction = 0.25) -> Method:  # noqa: B008
    """Online DPO on the prompts of the pairs on which the reward model and a trained policy agree most.

    Paper: Deng et al., 2025 (BeeS), with the 25 % of B.3 of the MetaAPO paper and online augmentation (section 5.1).
    Deviation: standardized margins are taken for log-odds; the implicit margins are those of one epoch of DPO.
    """
    return replace(online_dpo(objective, num_generations), filter=AgreeingMargins(share))


@named
def map(objective: Objective = DPO(), num_generations: Responses = 8, share: PositiveFraction = 0.4) -> Method:  # noqa: B008
    """Online DPO on the prompts of the pairs whose reward gap exceeds the policy's margin by the most.

    Paper: Huang et al., 2025 (MAP), with the 40 % of B.3 of the MetaAPO paper and online augmentation (section 5.1).
    Deviation: both margins are standardized; the implicit ones are those of one epoch of DPO.
    """
    return replace(online_dpo(objective, num_generations), filter=AlignmentPotential(share))


@named
def iterative_dpo(objective: Objective = DPO(), num_generations: Responses = 8) -> Method:  # noqa: B008
    """Online DPO whose reference in each iteration is the policy that started it.

    Paper: Xiong et al., 2023; Table 21 of the MetaPO paper.
    """
    return replace(online_dpo(objective, num_generations), reference="previous")


@named
def selm(objective: Objective = DPO(), num_generations: Responses = 8) -> Method:  # noqa: B008
    """The best against the worst of K fresh responses and the two offline ones in one ranking pool.

    Paper: Zhang et al., 2024 (SELM), as described in B.3 of the MetaAPO paper.
    Deviation: SELM's optimism term is omitted, as in B.3; the objective `optimistic_dpo` has it. SELM draws one
    response, not K, and its reference follows the policy, which is `reference: previous` here.
    """
    pairing = MixedPool(num_generations, keep_sample=objective.needs_sample)
    return Method(SelectAll(), pairing, objective, Uniform(), warmup_epochs=1)


@named
def adpo(objective: Objective = DPO(), num_generations: Responses = 8, threshold: NonNegative = 1.0) -> Method:  # noqa: B008
    """Fresh responses for prompts on which the policy is undecided, used for training beside the offline pairs.

    Paper: Ji et al., 2024 (ADPO); a baseline of the MetaAPO paper (B.3).
    Deviation: the rule is the publication's, a small absolute margin. B.3 instead selects where the loss is below a
    threshold, which are the pairs that the policy already ranks correctly. As in B.3, and unlike the publication, which
    asks for labels of given pairs, the selected prompts get new pairs, and offline pairs of unselected prompts stay.
    Neither gives a threshold for this margin; 1 is ours.
    """
    pairing = OfflineAndOnline(num_generations, keep_unselected=True)
    return Method(SelectUncertain(threshold), pairing, objective, Uniform(), warmup_epochs=1)


@named
def ppo(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    clip: Positive = 0.2,
    value_clip: Positive = 0.2,
    value_coef: NonNegative = 0.1,
    kl_coef: NonNegative = 0.05,
    gamma: Fraction = 1.0,
    gae_lambda: Fraction = 0.95,
    epochs: Count = 1,
    critic_learning_rate: LearningRate | None = None,
    cut_penalty: NonNegative = 0.0,
) -> Method:
    """PPO with a critic on the rewards of fresh responses, one batch of them per iteration.

    Paper: Schulman et al., 2017; Ouyang et al., 2022; a baseline of the MetaAPO paper.
    Deviation: the critic starts as a copy of the policy, not of the reward model, which may be a function. All prompts
    of an iteration form one batch of responses; set num_iterations to keep it small (B.3 has 1024 prompts). The
    objective serves evaluation and a warm-up, which is off by default.
    """
    trainer = PPO(clip, value_clip, value_coef, kl_coef, gamma, gae_lambda, epochs, critic_learning_rate, cut_penalty)
    return Method(SelectAll(), Rollouts(num_generations), objective, Uniform(), trainer=trainer)


@named
def grpo(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    epsilon: Positive = 0.2,
    beta: NonNegative = 0.04,
) -> Method:
    """GRPO: a policy gradient on rewards standardized within each prompt's responses, by TRL's `GRPOTrainer`.

    Paper: Shao et al., 2024 (DeepSeekMath).
    Deviation: TRL's loss is a mean over all tokens; the paper first averages over each response. TRL generates
    responses at every optimizer step; prompts that do not fill a whole step are left out.
    """
    return Method(SelectAll(), Rollouts(num_generations), objective, Uniform(), trainer=GRPO(epsilon, beta))


@named
def rloo(
    objective: Objective = DPO(),  # noqa: B008
    num_generations: Responses = 8,
    epsilon: Positive = 0.2,
    beta: NonNegative = 0.05,
) -> Method:
    """RLOO: REINFORCE whose baseline is the mean reward of the prompt's other responses, by TRL's `RLOOTrainer`.

    Paper: Ahmadian et al., 2024.
    Deviation: as for `grpo`; beta is TRL's default.
    """
    return Method(SelectAll(), Rollouts(num_generations), objective, Uniform(), trainer=RLOO(epsilon, beta))


@named
def rdo(objective: Objective = DPO(), num_generations: Responses = 8, limit: Positive = 3.0) -> Method:  # noqa: B008
    """Online DPO whose pairs are weighted by their reward gap.

    Paper: Wang et al., 2024 (RDO); Table 3 of the MetaPO paper.
    Deviation: the gap over its running mean replaces RDO's closed form, on fresh pairs, whose rewards are known.
    """
    weighting = RewardDifference(RunningGap(), limit)
    return Method(SelectAll(), Online(num_generations), objective, weighting, warmup_epochs=1)
