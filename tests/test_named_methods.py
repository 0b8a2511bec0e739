"""Every named method, written out: its choices and their settings, and that no argument is ignored."""

from __future__ import annotations

import inspect
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch

from adaptpo import Method, methods
from adaptpo.choices.filters import (
    AgreeingMargins,
    AlignmentPotential,
    EasyFirst,
    LowHeldOutLoss,
    LowPerplexity,
)
from adaptpo.choices.hold_out import Validation
from adaptpo.choices.iteration import Iteration
from adaptpo.choices.learners.base import METHOD_STATE
from adaptpo.choices.learners.meta_learner import DegreeLearner, MetaLearner
from adaptpo.choices.learners.pair_features import GradientNorm, HiddenState, Similarity
from adaptpo.choices.learners.reward_gap import RunningGap
from adaptpo.choices.learners.temporal import FeatureSet, TemporalLearner, ValidationGoal
from adaptpo.choices.learners.temporal.cadence import Cadence
from adaptpo.choices.learners.trust import SigmoidTrust
from adaptpo.choices.objectives import (
    CPO,
    DPO,
    IPO,
    KTO,
    ORPO,
    SFT,
    AlphaPO,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    DPOShift,
    EXOPair,
    Hinge,
    NCAPair,
    RobustDPO,
    SigmoidNorm,
    SimPO,
    SLiCHF,
    SPPOHard,
    WeightedSum,
)
from adaptpo.choices.pairing import (
    MixedPool,
    NestedPool,
    Offline,
    OfflineAndOnline,
    OnePairPerObjective,
    Online,
    PairingByStage,
    PairingSchedule,
    Rollouts,
)
from adaptpo.choices.policy_update import GRPO, PPO, RLOO
from adaptpo.choices.reference import Synced
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
    OnPolicy,
    RewardDifference,
    StageBlend,
    Temporal,
    Uniform,
)
from adaptpo.methods import METHODS

BOTH = OfflineAndOnline(8)
HISTORY = ("margin", "margin_ema", "volatility", "volatility_ema", "divergence", "divergence_ema")
MEMORY = TemporalLearner(
    FeatureSet(HISTORY, 0.9), learning_rate=0.03, cadence=Cadence(0.02), goal=ValidationGoal(0.1)
)  # fmt: skip
HELD: dict[str, Any] = {"num_train_epochs": 3, "validation": Validation(0.03, "stratified", "step")}


def offline(objective: Any = DPO(0.1), weighting: Any = Uniform(), **rest: Any) -> Method:  # noqa: B008
    return Method(SelectNone(), Offline(), objective, weighting, **rest)


def online(pairing: Any = Online(8), weighting: Any = Uniform(), objective: Any = DPO(0.1), **rest: Any) -> Method:  # noqa: B008
    return Method(SelectAll(), pairing, objective, weighting, **({"warmup_epochs": 1} | rest))


def metaapo(learner: Any = None, **rest: Any) -> Method:
    learner = learner or MetaLearner(5e-3, 8)
    parts = {"selection": SelectByLearner(learner), "pairing": BOTH, "weighting": LearnedBlend(learner)}
    return Method(**({"objective": DPO(0.1), "warmup_epochs": 1} | parts | rest))


def stages(*plan: Any) -> Method:
    return online(PairingSchedule(plan), warmup_epochs=0, reference="previous")


WRITTEN = {
    "dpo": offline(),
    "simpo": offline(SimPO(2.5, 0.6)),
    "ipo": offline(IPO(0.1)),
    "hinge": offline(Hinge(0.1)),
    "slic_hf": offline(SLiCHF(1.0, 0.1)),
    "dpo_shift": offline(DPOShift(0.1, start=0.95, end=1.0)),
    "conservative_dpo": offline(DPO(0.1, label_smoothing=0.1)),
    "orpo": offline(ORPO(0.1)),
    "kto": offline(KTO(0.1, 1.0, 1.0)),
    "robust_dpo": offline(RobustDPO(0.1, label_smoothing=0.1)),
    "exo_pair": offline(EXOPair(0.1, label_smoothing=1e-3)),
    "nca_pair": offline(NCAPair(0.1)),
    "bco_pair": offline(BCOPair(0.1)),
    "sppo_hard": offline(SPPOHard(0.1)),
    "apo_zero": offline(APOZero(0.1)),
    "apo_down": offline(APODown(0.1)),
    "discopop": offline(DiscoPOP(0.1, discopop_tau=0.05)),
    "sigmoid_norm": offline(SigmoidNorm(5.0)),
    "f_dpo": offline(DPO(0.1, f_divergence_type="js_divergence")),
    "ld_dpo": offline(DPO(0.1, ld_alpha=0.5)),
    "cpo": offline(CPO(0.1, cpo_alpha=1.0)),
    "alphapo": offline(AlphaPO(2.5, 0.6, 0.25)),
    "rpo": offline(WeightedSum((DPO(0.1), SFT()), (1.0, 1.0))),
    "mpo": offline(WeightedSum((DPO(0.1), BCOPair(0.1), SFT()), (0.8, 0.2, 1.0))),
    "tr_dpo": offline(reference=Synced(512, 0.6)),
    "wpo": offline(weighting=OnPolicy()),
    "focalpo": offline(weighting=Focal(0.05)),
    "weighted_dpo": offline(weighting=DataWeight()),
    "selective_dpo": offline(filter=LowHeldOutLoss(0.5)),
    "perplexity_filter": offline(filter=LowPerplexity(0.8)),
    "loss_curriculum": offline(filter=EasyFirst()),
    "online_dpo": online(),
    "bees": online(filter=AgreeingMargins(0.25)),
    "map": online(filter=AlignmentPotential(0.4)),
    "iterative_dpo": online(reference="previous"),
    "selm": online(MixedPool(8)),
    "adpo": Method(SelectUncertain(1.0), OfflineAndOnline(8, True), DPO(0.1), Uniform(), warmup_epochs=1),
    "ppo": online(Rollouts(8), warmup_epochs=0, trainer=PPO(
        clip=0.2, value_clip=0.2, value_coef=0.1, kl_coef=0.05, gamma=1.0, gae_lambda=0.95, epochs=1,
        critic_learning_rate=None, cut_penalty=0.0)),
    "grpo": online(Rollouts(8), warmup_epochs=0, trainer=GRPO(epsilon=0.2, beta=0.04)),
    "rloo": online(Rollouts(8), warmup_epochs=0, trainer=RLOO(epsilon=0.2, beta=0.05)),
    "rdo": online(weighting=RewardDifference(RunningGap(0.9), 3.0)),
    "pool_kto": online(NestedPool(2), RewardDifference(RunningGap(0.9), 3.0), KTO(0.1, 1.0, 1.0)),
    "metaapo": metaapo(),
    "metaapo_simpo": metaapo(objective=SimPO(2.5, 0.6), warmup_epochs=0),
    "metaapo_random": metaapo(selection=SelectRandom(0.5)),
    "metaapo_same_rate": metaapo(selection=SelectAtSameRate(MetaLearner(5e-3, 8))),
    "metaapo_threshold": metaapo(selection=SelectLowest(0.533)),
    "metaapo_all": metaapo(selection=SelectAll()),
    "metaapo_uniform": metaapo(weighting=Uniform()),
    "metaapo_heuristic": metaapo(SigmoidTrust()),
    "metaapo_fixed": metaapo(MetaLearner(5e-3, 8, frozen=True)),
    "metaapo_all_offline": metaapo(pairing=OfflineAndOnline(8, True)),
    "metaapo_deep": metaapo(MetaLearner(5e-3, 8, layers=5)),
    "metaapo_multi_feature": metaapo(MetaLearner(5e-3, 8, features=("score", "ratios"))),
    "metaapo_semantic": metaapo(MetaLearner(5e-3, 8, pair_features=(Similarity(None),))),
    "metaapo_gradient_norm": metaapo(MetaLearner(5e-3, 8, pair_features=(GradientNorm(),))),
    "metaapo_hidden_state": metaapo(MetaLearner(5e-3, 8, pair_features=(HiddenState(4),))),
    "metaapo_multi_objective": metaapo(
        pairing=OnePairPerObjective(8, 2), selection=SelectByLearner(DegreeLearner(2, 5e-3, 8)),
        weighting=LabelDegrees(DegreeLearner(2, 5e-3, 8))),
    "metaapo_adaptive": metaapo(MetaLearner(5e-3, 8, drift=0.25)),
    "metaapo_unscaled": metaapo(MetaLearner(5e-3, 8, score_scale=10.0)),
    "metaapo_previous": metaapo(reference="previous"),
    "metaapo_stage": metaapo(MetaLearner(5e-3, 8, stage_start=True)),
    "metapo": offline(weighting=Temporal(MEMORY), **HELD),
    "iterative_dpo_metapo": online(weighting=Temporal(MEMORY), reference="previous", **HELD),
    "metaapo_metapo": metaapo(weighting=Temporal(MEMORY, LearnedBlend(MetaLearner(5e-3, 8))), **HELD),
    "off_off": stages(Offline(), Offline()),
    "off_on": stages(Offline(), Online(2)),
    "on_off": stages(Online(2), Offline()),
    "on_on": stages(Online(2), Online(2)),
    "two_stage": online(PairingByStage(2), warmup_epochs=0, reference="previous"),
    "stage_blend": Method(SelectByStage(), OfflineAndOnline(8, True), DPO(0.1), StageBlend(), reference="previous"),
}  # fmt: skip
"""What the papers, or docs/papers.md where a paper is silent, say that each method is."""


def facts(method: Method) -> dict[str, str]:
    """What a method is, in words, but its name."""
    named = ("filter", "trainer", "reference", "validation", "warmup_epochs", "num_train_epochs")
    return method.choices() | {name: repr(getattr(method, name)) for name in named} | method.external_inputs()


@pytest.mark.parametrize("name", WRITTEN)
def test_a_method_is_what_is_written(name: str) -> None:
    assert facts(METHODS[name]()) == facts(WRITTEN[name])


def test_no_two_methods_are_alike() -> None:
    seen: dict[str, str] = {}
    for name in METHODS:
        other = seen.setdefault(repr(facts(METHODS[name]())), name)
        assert other == name, f"{name} is {other}"


@pytest.mark.parametrize("name", ["metaapo", "metaapo_same_rate", "metaapo_multi_objective"])
def test_one_learner_selects_and_weighs(name: str) -> None:
    method = METHODS[name]()
    assert method.selection.learner is method.weighting.learner  # type: ignore[attr-defined]


# Arguments

ARGUMENTS = [(name, key) for name in METHODS for key in inspect.signature(METHODS[name]).parameters]
CHANGED = {"objective": DPO(0.37), "features": ("margin",), "encoder": "an/encoder", "validation_batch": 7}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with a meta-learner."""
    folder = tmp_path_factory.mktemp("run")
    torch.save({"learners": [{"network": MetaLearner().network.state_dict()}]}, folder / METHOD_STATE)
    return str(folder)


def changed(name: str, key: str, trained: str) -> Any:
    """Another valid value of a method's argument."""
    if key == "learner":
        return trained
    if key in CHANGED:
        return CHANGED[key]
    usual = inspect.signature(METHODS[name]).parameters[key].default
    options = literals(get_type_hints(METHODS[name])[key])
    if isinstance(usual, str):
        return next(option for option in options if option != usual)
    if isinstance(usual, bool):
        return not usual
    return 0.37 if isinstance(usual, float) else 5


def literals(hint: Any) -> list[Any]:
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [option for part in get_args(hint) if get_origin(hint) is Union for option in literals(part)]


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_no_argument_of_a_method_is_ignored(name: str, key: str, trained: str) -> None:
    """A run recognizes a method by these facts, so another value is another run."""
    usual, other = METHODS[name](), METHODS[name](**{key: changed(name, key, trained)})
    assert facts(other) != facts(usual)
    if key == "num_generations":
        assert other.pairing.num_generations == 5


def test_arguments_of_ppo_go_where_they_are_named() -> None:
    given = {"clip": 0.11, "value_clip": 0.12, "value_coef": 0.13, "kl_coef": 0.14, "gamma": 0.15, "gae_lambda": 0.16}
    more = {"epochs": 3, "critic_learning_rate": 0.17, "cut_penalty": 0.18}
    assert methods.ppo(**given, **more).trainer == PPO(**given, **more)


def test_arguments_of_metapo_go_where_they_are_named() -> None:
    method = methods.metapo(
        meta_interval=7, meta_learning_rate=0.11, margin_weight=0.12, entropy=0.13, features=("margin_ema",),
        decay=0.14, centre="ema", architecture="mlp", estimator="jvp", validation_share=0.15, validation_split="random",
        divergence="exact", dense_start=0.16, normalize_weights=True, max_weight=17.0, validation_batch=18,
    )  # fmt: skip
    learner = TemporalLearner(
        FeatureSet(("margin_ema",), 0.14, "ema"), architecture="mlp", learning_rate=0.11, cadence=Cadence(7, 0.16),
        goal=ValidationGoal(0.12), entropy=0.13, estimator="jvp", divergence="exact", normalize=True,
        max_weight=17.0,
    )  # fmt: skip
    assert repr(method.weighting) == repr(Temporal(learner))
    assert method.validation == Validation(0.15, "random", 18)


def test_constant_fill_and_scale_are_those_of_the_learner() -> None:
    (learner,) = METHODS["metaapo"](constant_fill=True, unscaled=True, beta=0.2).learners()
    assert (learner.constant_fill, learner.score_scale) == (True, pytest.approx(5.0))  # type: ignore[attr-defined]
    assert learner.network[0].weight.unique().numel() == 1  # type: ignore[attr-defined]


def test_schedules_begin_with_what_they_name() -> None:
    for name in ("off_off", "off_on", "on_off", "on_on"):
        method = METHODS[name]()
        now = [type(method.at(Iteration(number, 2)).pairing) for number in (0, 1)]
        assert now == [{"off": Offline, "on": Online}[part] for part in name.split("_")]


def test_a_learner_shows_all_of_its_settings(trained: str) -> None:
    """A run recognizes a learner by its text."""
    others = {"features": ("score", "ratios"), "pair_features": (GradientNorm(),), "trained": trained, "drift": 0.3}
    for name, parameter in inspect.signature(MetaLearner).parameters.items():
        usual = parameter.default
        value = others.get(name, not usual if isinstance(usual, bool) else 3 if isinstance(usual, int) else 0.37)
        assert repr(MetaLearner(**{name: value})) != repr(MetaLearner()), name
