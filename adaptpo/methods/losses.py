"""The other losses of TRL's trainers on the offline pairs: variants of DPO, several losses in one, WPO's weights."""

from __future__ import annotations

from dataclasses import replace

from adaptpo.choices.method import Method
from adaptpo.choices.objectives import (
    CPO,
    DPO,
    SFT,
    AlphaPO,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    EXOPair,
    LogRatioObjective,
    NCAPair,
    Objective,
    RobustDPO,
    SigmoidNorm,
    SPPOHard,
    WeightedSum,
)
from adaptpo.choices.pairing import Offline
from adaptpo.choices.reference import Synced
from adaptpo.choices.selection import SelectNone
from adaptpo.choices.weighting import OnPolicy, Uniform
from adaptpo.config.numbers import Count, Fraction, NonNegative
from adaptpo.methods.named import named


def offline(objective: Objective) -> Method:
    return Method(SelectNone(), Offline(), objective, Uniform())


@named
def robust_dpo(objective: Objective = RobustDPO()) -> Method:  # noqa: B008 (frozen)
    """DPO whose loss is unbiased where a known share of the labels is flipped.

    Paper: Chowdhury et al., 2024 (robust DPO).
    """
    return offline(objective)


@named
def exo_pair(objective: Objective = EXOPair()) -> Method:  # noqa: B008
    """EXO on pairs: the KL divergence of the policy's preference from the smoothed label.

    Paper: Ji et al., 2024 (EXO), Eq. 16.
    """
    return offline(objective)


@named
def nca_pair(objective: Objective = NCAPair()) -> Method:  # noqa: B008
    """NCA on pairs: keeps the likelihood of chosen responses from falling with that of rejected ones.

    Paper: Chen et al., 2024 (noise contrastive alignment).
    """
    return offline(objective)


@named
def bco_pair(objective: Objective = BCOPair()) -> Method:  # noqa: B008
    """BCO on pairs: classifies each response by itself; takes unpaired data as well.

    Paper: Jung et al., 2024 (BCO).
    Deviation: without the paper's reward shift, as TRL's loss type of that name.
    """
    return offline(objective)


@named
def sppo_hard(objective: Objective = SPPOHard()) -> Method:  # noqa: B008
    """SPPO with certain preferences: pulls each log-ratio to its own target.

    Paper: Wu et al., 2024 (SPPO), Eq. 4.7.
    Deviation: on the offline pairs, whose chosen response wins for certain; the paper samples and estimates.
    """
    return offline(objective)


@named
def apo_zero(objective: Objective = APOZero()) -> Method:  # noqa: B008
    """APO for data that is better than the policy: chosen likelier, rejected less likely; takes unpaired data as well.

    Paper: D'Oosterlinck et al., 2024 (APO), Eq. 7.
    """
    return offline(objective)


@named
def apo_down(objective: Objective = APODown()) -> Method:  # noqa: B008
    """APO for data that is worse than the policy: both responses less likely, rejected ones more so.

    Paper: D'Oosterlinck et al., 2024 (APO), Eq. 8.
    """
    return offline(objective)


@named
def discopop(objective: Objective = DiscoPOP()) -> Method:  # noqa: B008
    """The loss that a language model discovered: logistic below a margin of 0, exponential above.

    Paper: Lu et al., 2024 (DiscoPOP), Eq. 5.
    """
    return offline(objective)


@named
def sigmoid_norm(objective: Objective = SigmoidNorm()) -> Method:  # noqa: B008
    """Length-normalized DPO: the log-ratios are means over tokens.

    Paper: Lambert et al., 2024 (Tülu 3).
    """
    return offline(objective)


@named
def f_dpo(objective: Objective = DPO(f_divergence_type="js_divergence")) -> Method:  # noqa: B008
    """DPO with another divergence from the reference: Jensen-Shannon by default, or `f_divergence_type`.

    Paper: Wang et al., 2023 (f-DPO).
    """
    return offline(objective)


@named
def ld_dpo(objective: Objective = DPO(ld_alpha=0.5)) -> Method:  # noqa: B008
    """DPO in which the tokens beyond the length of the shorter response count less (`ld_alpha`).

    Paper: Liu et al., 2024 (LD-DPO).
    Deviation: `ld_alpha` is 0.5 (ours); the paper chooses it for each model.
    """
    return offline(objective)


@named
def cpo(objective: Objective = CPO()) -> Method:  # noqa: B008
    """CPO: DPO without a reference, beside the likelihood of the chosen response.

    Paper: Xu et al., 2024 (CPO), Eq. 3.
    Deviation: the likelihood term is a mean over tokens, as in TRL.
    """
    return offline(objective)


@named
def alphapo(objective: Objective = AlphaPO()) -> Method:  # noqa: B008
    """SimPO with rewards of another shape (`alpha`), which is steeper for unlikely responses.

    Paper: Gupta et al., 2025 (AlphaPO).
    Deviation: the default settings are SimPO's and an alpha of ours.
    """
    return offline(objective)


@named
def rpo(objective: Objective = DPO(), rpo_alpha: NonNegative = 1.0) -> Method:  # noqa: B008
    """DPO beside the likelihood of the chosen response.

    Paper: Pang et al., 2024 (iterative reasoning preference optimization).
    """
    return offline(WeightedSum((objective, SFT()), (1.0, rpo_alpha)))


@named
def mpo(
    objective: Objective = DPO(),  # noqa: B008
    preference_weight: NonNegative = 0.8,
    quality_weight: NonNegative = 0.2,
    generation_weight: NonNegative = 1.0,
) -> Method:
    """DPO, BCO and the likelihood of the chosen response, weighted.

    Paper: Wang et al., 2024 (mixed preference optimization).
    Deviation: BCO without its reward shift, as in TRL.
    """
    ld_alpha = objective.ld_alpha if isinstance(objective, LogRatioObjective) else None
    parts = (objective, BCOPair(objective.beta, ld_alpha=ld_alpha), SFT())
    return offline(WeightedSum(parts, (preference_weight, quality_weight, generation_weight)))


@named
def tr_dpo(
    objective: Objective = DPO(),  # noqa: B008
    ref_model_sync_steps: Count = 512,
    ref_model_mixup_alpha: Fraction = 0.6,
) -> Method:
    """DPO whose reference follows the policy: every few hundred steps, it moves most of the way to it.

    Paper: Gorbatovski et al., 2024 (TR-DPO), soft update.
    Deviation: 0.6 and 512 are TRL's defaults.
    """
    return replace(offline(objective), reference=Synced(ref_model_sync_steps, ref_model_mixup_alpha))


@named
def wpo(objective: Objective = DPO()) -> Method:  # noqa: B008
    """DPO whose pairs count by how likely the current policy is to write them.

    Paper: Zhou et al., 2024 (WPO), Eq. 2, with sampled alignment.
    """
    return Method(SelectNone(), Offline(), objective, OnPolicy())
