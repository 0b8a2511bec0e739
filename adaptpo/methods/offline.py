"""Methods on the offline pairs alone: DPO, its variants and filters."""

from __future__ import annotations

from dataclasses import replace

from adaptpo.choices.filters import EasyFirst, LowHeldOutLoss, LowPerplexity
from adaptpo.choices.method import Method
from adaptpo.choices.objectives import DPO, IPO, KTO, ORPO, DPOShift, Hinge, Objective, SimPO, SLiCHF
from adaptpo.choices.pairing import Offline
from adaptpo.choices.selection import SelectNone
from adaptpo.choices.weighting import DataWeight, Focal, Uniform
from adaptpo.config.numbers import NonNegative, PositiveFraction
from adaptpo.methods.named import named


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
    """IPO on the offline pairs: the margin is pulled to a target instead of growing without limit.

    Paper: Azar et al., 2024; a baseline of the MetaAPO paper.
    Deviation: log-ratios are divided by token counts as in TRL; the paper sums them.
    """
    return Method(SelectNone(), Offline(), objective, Uniform())


@named
def hinge(objective: Objective = Hinge()) -> Method:  # noqa: B008
    """A hinge on DPO's margin, like TRL's loss type of that name.

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
    """DPO-Shift: the rejected reward is multiplied by f, which rises from 0.95 to 1.0 over the run.

    Paper: Yang et al., 2025 (DPO-Shift); B.3 of the MetaAPO paper.
    Deviation: margin and score are DPO's, regardless of f.
    """
    return Method(SelectNone(), Offline(), objective, Uniform())


@named
def conservative_dpo(objective: Objective = DPO(label_smoothing=0.1)) -> Method:  # noqa: B008
    """DPO that assumes a share of the labels to be wrong.

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
    Deviation: the reference point is the mean log-ratio of the previous optimizer step, not that of mismatched pairs.
    """
    # Not a default argument: its reference point is state, and belongs to one method.
    return Method(SelectNone(), Offline(), objective or KTO(), Uniform())


@named
def selective_dpo(objective: Objective = DPO(), share: PositiveFraction = 0.5) -> Method:  # noqa: B008
    """DPO on the pairs that a model trained on the other half of the data ranks best.

    Paper: Gao et al., 2025 (Selective DPO), as described in B.3 of the MetaAPO paper.
    Deviation: the share kept is ours, as B.3 gives none.
    """
    return replace(dpo(objective), filter=LowHeldOutLoss(share))


@named
def perplexity_filter(objective: Objective = DPO(), share: PositiveFraction = 0.8) -> Method:  # noqa: B008
    """DPO on the pairs whose chosen response surprises the initial model least.

    Paper: Table 17 of the MetaPO paper.
    Deviation: the paper does not say whose perplexity; here it is that of the chosen response.
    """
    return replace(dpo(objective), filter=LowPerplexity(share))


@named
def loss_curriculum(objective: Objective = DPO()) -> Method:  # noqa: B008
    """DPO on all pairs, easy ones first.

    Paper: Table 17 of the MetaPO paper.
    Deviation: DPO's initial loss is the same for all pairs; here the loss is that of a model trained on the other half.
    """
    return replace(dpo(objective), filter=EasyFirst())


@named
def focalpo(objective: Objective = DPO(), gamma: NonNegative = 0.05) -> Method:  # noqa: B008
    """DPO whose pairs have the weight `p^gamma`, higher if the policy ranks them correctly.

    Paper: Liu et al., 2025 (FocalPO); Eq. 2 of the MetaPO paper.
    Deviation: the factor carries no gradient, like MetaPO's weights.
    """
    return Method(SelectNone(), Offline(), objective, Focal(gamma))


@named
def weighted_dpo(objective: Objective = DPO()) -> Method:  # noqa: B008
    """DPO whose pairs are weighted by the data set's column `weight`.

    Paper: none; the user provides the column.
    """
    return Method(SelectNone(), Offline(), objective, DataWeight())
