"""Objectives against hand-derived values and against TRL."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from adaptpo.choices.iteration import Iteration
from adaptpo.choices.method import Method
from adaptpo.choices.objectives import (
    CPO,
    DPO,
    IPO,
    KTO,
    OBJECTIVES,
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
    Objective,
    OptimisticDPO,
    RobustDPO,
    SigmoidNorm,
    SimPO,
    SLiCHF,
    SPPOHard,
    WeightedSum,
    score,
)
from adaptpo.choices.objectives.kto import ReferencePoint
from adaptpo.choices.objectives.orpo import log_odds
from adaptpo.choices.pairing import Offline
from adaptpo.choices.selection import SelectNone
from adaptpo.choices.weighting import Uniform
from adaptpo.distributed.quiet import turn_off_telemetry
from adaptpo.models.collate import GroupCollator
from adaptpo.models.logps import pair_logps
from adaptpo.models.packing import PADDED, RowPacking
from adaptpo.models.shared_prompt.attention import share_prompts
from adaptpo.training.step import preference_step
from adaptpo.types import PairBatch, PairLogps, PreferencePair, Prompt, PromptGroup, Response
from tests.groups import random_groups, tokenized_groups
from tests.tiny import byte_tokenizer, preference_rows, tiny_model


def logps(chosen: float, rejected: float, reference: tuple[float, float] | None = None, tokens=(2, 4)) -> PairLogps:
    def one(x: float) -> torch.Tensor:
        return torch.tensor([x], dtype=torch.float64, requires_grad=True)

    references = (None, None) if reference is None else tuple(map(one, reference))
    return PairLogps(one(chosen), one(rejected), *(torch.tensor([t]) for t in tokens), *references)


def test_dpo_margin_score_and_loss_by_hand() -> None:
    pair = logps(-10.0, -12.0, reference=(-11.0, -11.5))
    margin = 0.1 * ((-10.0 + 11.0) - (-12.0 + 11.5))
    assert DPO(beta=0.1).margin(pair).item() == pytest.approx(margin)
    assert DPO(beta=0.1).loss(pair).item() == pytest.approx(math.log(1 + math.exp(-margin)))
    assert score(torch.tensor(margin)).item() == pytest.approx(-math.log(1 + math.exp(-margin)))


def test_dpo_gradient_by_hand() -> None:
    pair = logps(-10.0, -12.0, reference=(-11.0, -11.5))
    objective = DPO(beta=0.5)
    objective.loss(pair).sum().backward()
    distrust = 1 - torch.sigmoid(objective.margin(pair)).item()
    assert pair.chosen.grad.item() == pytest.approx(-0.5 * distrust)
    assert pair.rejected.grad.item() == pytest.approx(0.5 * distrust)


@pytest.mark.parametrize("name", [name for name, kind in OBJECTIVES.items() if kind.needs_reference])
def test_missing_reference_is_said(name: str) -> None:
    with pytest.raises(ValueError, match="reference"):
        OBJECTIVES[name]().margin(logps(-1.0, -2.0))


def test_simpo_margin_and_gradient_by_hand() -> None:
    pair = logps(-6.0, -20.0, tokens=(3, 5))
    objective = SimPO(beta=2.0, gamma=0.5)
    margin = 2.0 * (-6.0 / 3) - 2.0 * (-20.0 / 5) - 0.5
    assert objective.margin(pair).item() == pytest.approx(margin)
    objective.loss(pair).sum().backward()
    distrust = 1 / (1 + math.exp(margin))
    assert pair.chosen.grad.item() == pytest.approx(-2.0 / 3 * distrust)
    assert pair.rejected.grad.item() == pytest.approx(2.0 / 5 * distrust)


def kto(z0: float, **settings: float) -> KTO:
    objective = KTO(**settings)
    objective.reference_point.value = z0
    return objective


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def odds(p: float) -> float:
    return p / (1 - p)


# Loss and its derivatives by both log-probs at logp_w = -6, logp_l = -20, ref_w = -7, ref_l = -18.5, |y| = (3, 5).
SMOOTHED = sigmoid(0.5 * (1.0 + 1.5))
SHIFTED = sigmoid(0.5 * (1.0 + 0.8 * 1.5))
MARGIN = 0.5 * 2.5
"""DPO's margin of that pair with beta 0.5, whose log-ratios are 1 and -1.5."""
GAP = (1.0 / 3 + 1.5 / 5) - 1 / (2 * 0.5)
DISTRUST = 1 / (1 + odds(math.exp(-2)) / odds(math.exp(-4)))
FORWARD = 0.5 * (math.exp(1.5) - math.exp(-1.0))
JENSEN_SHANNON = 0.5 * math.log(sigmoid(1.0) / sigmoid(-1.5))
ALPHA = 0.5 * (math.exp(0.75) - math.exp(-0.5)) / 0.5
SHAPED = 2.0 * (math.exp(1.0) - math.exp(0.5)) / 0.25 - 0.5
BLENDED = (1 - SMOOTHED) * (SMOOTHED * math.log(SMOOTHED) - 1 + SMOOTHED) + SMOOTHED * math.exp(-MARGIN) * -SMOOTHED
"""d loss / d margin of DiscoPOP with tau 1, where the share of the exponential loss is SMOOTHED itself."""
DESIRED, UNDESIRED = sigmoid(0.5 * (1.0 - 0.4)), sigmoid(0.5 * (0.4 + 1.5))
BY_HAND: list[tuple[Objective, float, float, float]] = [
    (
        DPO(0.5, label_smoothing=0.1),
        -0.9 * math.log(SMOOTHED) - 0.1 * math.log(1 - SMOOTHED),
        -0.5 * (0.9 - SMOOTHED),
        0.5 * (0.9 - SMOOTHED),
    ),
    (DPOShift(0.5, 0.8, 1.0), -math.log(SHIFTED), -0.5 * (1 - SHIFTED), 0.8 * 0.5 * (1 - SHIFTED)),
    (IPO(0.5), GAP**2, 2 * GAP / 3, -2 * GAP / 5),
    (
        RobustDPO(0.5, label_smoothing=0.1),
        (-0.9 * math.log(SMOOTHED) + 0.1 * math.log(1 - SMOOTHED)) / 0.8,
        0.5 * (SMOOTHED - 0.9 / 0.8),
        -0.5 * (SMOOTHED - 0.9 / 0.8),
    ),
    (
        EXOPair(0.5, label_smoothing=0.01),
        SMOOTHED * math.log(SMOOTHED / 0.99) + (1 - SMOOTHED) * math.log((1 - SMOOTHED) / 0.01),
        0.5 * SMOOTHED * (1 - SMOOTHED) * (MARGIN - math.log(99)),
        -0.5 * SMOOTHED * (1 - SMOOTHED) * (MARGIN - math.log(99)),
    ),
    (
        NCAPair(0.5),
        -1.5 * math.log(sigmoid(0.5)) + 0.25 - 0.5 * math.log(sigmoid(0.75)),
        0.5 * (1.5 * sigmoid(0.5) - 1),
        0.25 * sigmoid(-0.75),
    ),
    (
        BCOPair(0.5),
        -math.log(sigmoid(0.5)) - math.log(sigmoid(0.75)),
        -0.5 * sigmoid(-0.5),
        0.5 * sigmoid(-0.75),
    ),
    (SPPOHard(0.25), (1.0 - 2) ** 2 + (-1.5 + 2) ** 2, -2.0, 1.0),
    (
        APOZero(0.5),
        sigmoid(-0.5) + sigmoid(-0.75),
        -0.5 * sigmoid(0.5) * sigmoid(-0.5),
        0.5 * sigmoid(0.75) * sigmoid(-0.75),
    ),
    (
        APODown(0.5),
        sigmoid(0.5) + 1 - SMOOTHED,
        0.5 * (sigmoid(0.5) * sigmoid(-0.5) - SMOOTHED * (1 - SMOOTHED)),
        0.5 * SMOOTHED * (1 - SMOOTHED),
    ),
    (
        DiscoPOP(0.5, discopop_tau=1.0),
        -(1 - SMOOTHED) * math.log(SMOOTHED) + SMOOTHED * math.exp(-MARGIN),
        0.5 * BLENDED,
        -0.5 * BLENDED,
    ),
    (
        SigmoidNorm(2.0),
        -math.log(sigmoid(2.0 * (1 / 3 + 1.5 / 5))),
        -2.0 / 3 * sigmoid(-2.0 * (1 / 3 + 1.5 / 5)),
        2.0 / 5 * sigmoid(-2.0 * (1 / 3 + 1.5 / 5)),
    ),
    (
        DPO(0.5, f_divergence_type="forward_kl"),
        -math.log(sigmoid(FORWARD)),
        -0.5 * math.exp(-1.0) * sigmoid(-FORWARD),
        0.5 * math.exp(1.5) * sigmoid(-FORWARD),
    ),
    (
        DPO(0.5, f_divergence_type="js_divergence"),
        -math.log(sigmoid(JENSEN_SHANNON)),
        -0.5 * sigmoid(-1.0) * sigmoid(-JENSEN_SHANNON),
        0.5 * sigmoid(1.5) * sigmoid(-JENSEN_SHANNON),
    ),
    (
        DPO(0.5, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.5),
        -math.log(sigmoid(ALPHA)),
        -0.5 * math.exp(-0.5) * sigmoid(-ALPHA),
        0.5 * math.exp(0.75) * sigmoid(-ALPHA),
    ),
    (SFT(), 2.0, -1 / 3, 0.0),
    (
        CPO(0.1, cpo_alpha=0.5),
        -math.log(sigmoid(1.4)) + 0.5 * 2.0,
        -0.1 * sigmoid(-1.4) - 0.5 / 3,
        0.1 * sigmoid(-1.4),
    ),
    (
        AlphaPO(2.0, gamma=0.5, alpha=0.25),
        -math.log(sigmoid(SHAPED)),
        -2.0 / 3 * math.exp(0.5) * sigmoid(-SHAPED),
        2.0 / 5 * math.exp(1.0) * sigmoid(-SHAPED),
    ),
    (
        WeightedSum((DPO(0.5), SFT()), (0.5, 0.25)),
        -0.5 * math.log(SMOOTHED) + 0.25 * 2.0,
        -0.5 * 0.5 * (1 - SMOOTHED) - 0.25 / 3,
        0.5 * 0.5 * (1 - SMOOTHED),
    ),
    (Hinge(0.2), 1 - 0.2 * 2.5, -0.2, 0.2),
    (Hinge(0.5), 0.0, 0.0, 0.0),
    (SLiCHF(delta=15.0, sft_weight=0.1), 15.0 - 14.0 + 0.6, -1.1, 1.0),
    (SLiCHF(delta=1.0, sft_weight=0.1), 0.6, -0.1, 0.0),
    (
        ORPO(0.5),
        2.0 - 0.5 * math.log(1 - DISTRUST),
        (-1 - 0.5 * DISTRUST / (1 - math.exp(-2))) / 3,
        0.5 * DISTRUST / (1 - math.exp(-4)) / 5,
    ),
    (
        kto(0.4, beta=0.5, desirable_weight=1.2, undesirable_weight=0.8),
        0.6 * (1 - DESIRED) + 0.4 * (1 - UNDESIRED),
        -0.6 * 0.5 * DESIRED * (1 - DESIRED),
        0.4 * 0.5 * UNDESIRED * (1 - UNDESIRED),
    ),
]


@pytest.mark.parametrize(("objective", "loss", "by_chosen", "by_rejected"), BY_HAND, ids=lambda x: type(x).__name__)
def test_loss_and_gradient_by_hand(objective: Objective, loss: float, by_chosen: float, by_rejected: float) -> None:
    pair = logps(-6.0, -20.0, reference=(-7.0, -18.5), tokens=(3, 5))
    value = objective.loss(pair)
    slopes = torch.autograd.grad(value.sum(), (pair.chosen, pair.rejected), materialize_grads=True)
    assert value.item() == pytest.approx(loss)
    assert [slope.item() for slope in slopes] == pytest.approx([by_chosen, by_rejected])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        tokens = torch.tensor([3, 5, 2])
        return OBJECTIVES[name]().loss(
            PairLogps(chosen, rejected, tokens, tokens.flip(0), references[0], references[1])
        )

    generator = torch.Generator().manual_seed(0)
    chosen, rejected, *references = -10 * torch.rand(4, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (chosen.clone().requires_grad_(), rejected.clone().requires_grad_()))


NOT_CONVEX = ("discopop",)
"""Its loss rises with the margin near 0, where it turns from logistic to exponential."""


@pytest.mark.parametrize("name", OBJECTIVES)
def test_higher_chosen_log_prob_raises_the_margin_and_no_loss(name: str) -> None:
    objective = OBJECTIVES[name]()
    low, high = (logps(chosen, -5.0, reference=(-4.0, -4.0)) for chosen in (-6.0, -5.5))
    assert objective.margin(high) > objective.margin(low)
    assert objective.loss(high) <= objective.loss(low) or name in NOT_CONVEX


def random_pairs() -> PairLogps:
    generator = torch.Generator().manual_seed(1)
    chosen, rejected, *references = -30 * torch.rand(4, 16, generator=generator)
    tokens = torch.randint(1, 9, (2, 16), generator=generator)
    return PairLogps(chosen, rejected, tokens[0], tokens[1], *references)


@pytest.mark.parametrize(
    "objective",
    [
        DPOShift(0.3, 1.0, 1.0),
        DPOShift(0.3).at(1.0),
        DPO(0.3, label_smoothing=0.0),
        RobustDPO(0.3, label_smoothing=0.0),
        DPO(0.3, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1.0),
        WeightedSum((DPO(0.3), SFT()), (1.0, 0.0)),
        OptimisticDPO(0.3, optimism=0.0),
    ],
    ids=repr,
)
def test_is_dpo(objective: Objective) -> None:
    pairs = replace(random_pairs(), sample=torch.full((16,), -40.0))
    assert torch.equal(objective.loss(pairs), -score(DPO(0.3).margin(pairs)))
    assert torch.equal(objective.margin(pairs), DPO(0.3).margin(pairs))


def test_optimism_by_hand() -> None:
    """It lowers the log-prob of the sample at the rate optimism * beta, and leaves the pair to DPO."""
    pair, plain = (logps(-6.0, -20.0, reference=(-7.0, -18.5)) for _ in range(2))
    sample = torch.tensor([-30.0], dtype=torch.float64, requires_grad=True)
    loss = OptimisticDPO(0.5, optimism=0.02).loss(replace(pair, sample=sample))
    expected = DPO(0.5).loss(plain)
    assert loss.item() == pytest.approx(expected.item() + 0.02 * 0.5 * -30.0)
    loss.sum().backward()
    expected.sum().backward()
    assert sample.grad.item() == pytest.approx(0.02 * 0.5)
    assert (pair.chosen.grad, pair.rejected.grad) == (plain.chosen.grad, plain.rejected.grad)


def test_optimism_without_a_sample_is_dpo() -> None:
    assert torch.equal(OptimisticDPO(0.3).loss(random_pairs()), DPO(0.3).loss(random_pairs()))


@pytest.mark.parametrize("rows", [PADDED, RowPacking(shared_prompts=True)], ids=["padded", "shared"])
def test_optimism_in_the_step_is_about_the_samples_alone(rows: RowPacking) -> None:
    """Against the log-prob of each sample computed as a chosen response; the first pair has none."""
    model = tiny_model(byte_tokenizer())
    share_prompts(model)
    groups = [replace(g, pairs=(replace(g.pairs[0], reference_logps=(-9.0, -8.0)),)) for g in random_groups(4)]
    sampled = [g.pairs[1].chosen for g in random_groups(4)]
    with_samples = groups[:1] + [
        replace(g, pairs=(replace(g.pairs[0], sample=y),)) for g, y in zip(groups[1:], sampled[1:], strict=True)
    ]
    as_chosen = [replace(g, pairs=(replace(g.pairs[0], chosen=y),)) for g, y in zip(groups, sampled, strict=True)]
    logps_of_samples = pair_logps(model, GroupCollator(0)(as_chosen)).chosen[1:]

    def loss(objective: Objective, groups: list[PromptGroup]) -> float:
        method = Method(SelectNone(), Offline(), objective, Uniform())
        return preference_step(model, GroupCollator(0, rows)(groups), method, 4).loss.item()

    expected = loss(DPO(0.5), groups) + 0.1 * 0.5 * logps_of_samples.sum().item() / 4
    assert loss(OptimisticDPO(0.5, optimism=0.1), with_samples) == pytest.approx(expected, rel=1e-5)
    assert loss(OptimisticDPO(0.5, optimism=0.0), with_samples) == pytest.approx(loss(DPO(0.5), groups), rel=1e-5)


def test_dpo_shift_rises_linearly() -> None:
    assert [DPOShift().at(p).start for p in (0.0, 0.5, 1.0)] == pytest.approx([0.95, 0.975, 1.0])
    assert DPO().at(0.5) == DPO()


def test_slic_hf_without_regularizer_is_the_hinge_without_reference() -> None:
    pairs = random_pairs()
    zero = torch.zeros_like(pairs.chosen)
    unreferenced = PairLogps(pairs.chosen, pairs.rejected, pairs.chosen_tokens, pairs.rejected_tokens, zero, zero)
    torch.testing.assert_close(SLiCHF(1.0, sft_weight=0.0).loss(pairs), Hinge(1.0).loss(unreferenced))


@pytest.mark.parametrize("logp", [-1e-12, -1e-4, -0.69, -0.7, -50.0])
def test_orpo_log_odds_are_exact_and_finite(logp: float) -> None:
    pair = logps(logp, -700.0, tokens=(1, 1))
    expected = logp - math.log(-math.expm1(logp))
    assert log_odds(pair.chosen).item() == pytest.approx(expected, rel=1e-12)
    ORPO().loss(pair).sum().backward()
    assert pair.chosen.grad.isfinite() and pair.rejected.grad.isfinite()


def test_orpo_of_a_certain_response_is_finite() -> None:
    pair = logps(0.0, -3.0, tokens=(1, 1))
    ORPO().loss(pair).sum().backward()
    assert pair.chosen.grad.item() == pytest.approx(-1.0)  # only that of the SFT term


def observed(*log_ratios: float) -> PairBatch:
    number = torch.arange(len(log_ratios))
    one = torch.ones_like(number)
    ratios = torch.tensor(log_ratios)[:, None] + torch.tensor([-1.0, 1.0])
    return PairBatch(number, number, one, one * 0, one.float(), one.float(), one.float(), ratios)


def test_reference_point_is_the_mean_of_the_last_step_not_below_zero() -> None:
    point = ReferencePoint()
    for batches, expected in ([(1.0, 2.0), (6.0,)], 3.0), ([(-4.0,), (1.0,)], 0.0), ([(0.5,)], 0.5), ([], 0.5):
        for batch in batches:
            point.observe(observed(*batch))
        point.update(lambda rows: rows)
        assert point.value == expected
    point.start_iteration(Iteration(1, 2))
    assert point.value == 0.0


def test_reference_point_resumes_in_the_middle_of_a_step() -> None:
    point, other = ReferencePoint(), ReferencePoint()
    point.observe(observed(2.0))
    other.load_state_dict(point.state_dict())
    for each in (point, other):
        each.observe(observed(4.0))
        each.update(lambda rows: rows)
    assert point.value == other.value == 3.0


def test_method_holds_the_learner_of_its_objective_also_in_a_copy() -> None:
    method = copy.deepcopy(Method(SelectNone(), Offline(), KTO(), Uniform()))
    assert method.learners() == method.warmup().learners() == (method.objective.reference_point,)


TRLS_REWARDS = ("ipo", "orpo", "sigmoid_norm")
"""Their logged rewards are TRL's, and the margin is another quantity."""


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in TRLS_REWARDS])
def test_rewards_differ_by_the_margin_but_for_a_constant(name: str) -> None:
    objective = OBJECTIVES[name]()
    gaps = []
    for chosen in (-3.0, -9.0):
        pair = logps(chosen, -5.0, reference=(-4.0, -4.0))
        better, worse = objective.rewards(pair)
        gaps.append((better - worse - objective.margin(pair)).item())
    assert gaps[0] == pytest.approx(gaps[1])


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return preference_rows(6, seed=3)


def loss_of_groups(model: torch.nn.Module, groups: list[PromptGroup], objective: Objective) -> torch.Tensor:
    method = Method(SelectNone(), Offline(), objective, Uniform())
    return preference_step(model, GroupCollator(0)(groups), method, num_prompts=len(groups)).loss


def trl_arguments(kind, tmp_path, **extra):
    return kind(
        output_dir=str(tmp_path), per_device_train_batch_size=6, report_to="none", use_cpu=True, bf16=False,
        max_length=None, **extra,
    )  # fmt: skip


def trl_batch(trainer) -> dict:
    trainer.args.dataloader_pin_memory = False
    examples = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    return trainer.data_collator(examples)


@pytest.mark.parametrize(
    ("objective", "loss_type"), [(DPO(beta=0.3), "sigmoid"), (IPO(beta=0.3), "ipo"), (Hinge(beta=0.3), "hinge")]
)
def test_loss_and_gradient_equal_trl(objective: Objective, loss_type: str, rows: list[dict], tmp_path) -> None:
    turn_off_telemetry()
    tokenizer = byte_tokenizer()
    model, reference = tiny_model(tokenizer, seed=0), tiny_model(tokenizer, seed=1)
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=trl_arguments(DPOConfig, tmp_path, beta=0.3, loss_type=[loss_type]),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    theirs = trainer.compute_loss(model.train(), trl_batch(trainer))
    theirs.backward()
    their_gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    ours = loss_of_groups(model, tokenized_groups(tokenizer, rows, reference), objective)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    at_reference = objective.loss(logps(0.0, 0.0, reference=(0.0, 0.0))).item()
    assert abs(ours.item() - at_reference) > 1e-3  # the comparison is not one of two zeros
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, their_gradient[name], atol=1e-5, rtol=1e-4)


def test_simpo_loss_equals_trl(rows: list[dict], tmp_path) -> None:
    turn_off_telemetry()
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer, seed=0)
    config = trl_arguments(CPOConfig, tmp_path, loss_type="simpo", cpo_alpha=0.0, beta=2.5, simpo_gamma=0.6)
    trainer = CPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = trl_batch(trainer)
    theirs, _ = trainer.get_batch_loss_metrics(model, batch)
    # CPOTrainer puts tokens of its own around the response, so its own rows are compared.
    ours = loss_of_groups(model, [labelled_group(batch, row) for row in range(6)], SimPO(beta=2.5, gamma=0.6))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_label_smoothing_equals_trl(rows: list[dict], tmp_path) -> None:
    """TRL smooths in CPO's loss, which is DPO's with reference log-probs of 0."""
    turn_off_telemetry()
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer, seed=0)
    config = trl_arguments(CPOConfig, tmp_path, loss_type="sigmoid", cpo_alpha=0.0, beta=0.3, label_smoothing=0.2)
    trainer = CPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = trl_batch(trainer)
    theirs, _ = trainer.get_batch_loss_metrics(model, batch)
    groups = [labelled_group(batch, row, reference_logps=(0.0, 0.0)) for row in range(6)]
    assert loss_of_groups(model, groups, DPO(0.3, label_smoothing=0.2)).item() == pytest.approx(theirs.item(), abs=1e-5)
    assert abs(loss_of_groups(model, groups, DPO(0.3)).item() - theirs.item()) > 1e-3


def test_orpo_loss_equals_trl(rows: list[dict], tmp_path) -> None:
    """Its penalty, and its mean log-probs of the chosen responses; TRL's own first term counts prompts as well."""
    turn_off_telemetry()
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer, seed=0)
    config = trl_arguments(ORPOConfig, tmp_path, beta=0.3)
    trainer = ORPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = trl_batch(trainer)
    chosen, rejected = trainer.concatenated_forward(model, batch)[:2]
    theirs = -chosen.mean() - trainer.odds_ratio_loss(chosen, rejected)[0].mean()
    ours = loss_of_groups(model, [labelled_group(batch, row) for row in range(6)], ORPO(0.3))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_kto_loss_and_gradient_equal_trl(rows: list[dict], tmp_path) -> None:
    """With TRL's reference point, which is an estimate of its own."""
    turn_off_telemetry()
    tokenizer = byte_tokenizer()
    model, reference = tiny_model(tokenizer, seed=1), tiny_model(tokenizer, seed=0)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.9}
    trainer = KTOTrainer(
        model=model,
        ref_model=reference,
        args=trl_arguments(KTOConfig, tmp_path, beta=0.3, **weights),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    theirs = trainer.compute_loss(model.train(), trl_batch(trainer))
    theirs.backward()
    their_gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    z0 = trainer._metrics["train"]["kl"][-1]
    assert z0 > 0.01
    ours = loss_of_groups(model, tokenized_groups(tokenizer, rows, reference), kto(z0, beta=0.3, **weights))
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, their_gradient[name], atol=1e-5, rtol=1e-4)


def labelled_group(batch: dict, row: int, **facts: Any) -> PromptGroup:
    """A group from TRL's rows, whose labels are -100 on the prompt and on padding."""
    responses = []
    for side in ("chosen", "rejected"):
        ids, labels = batch[f"{side}_input_ids"][row], batch[f"{side}_labels"][row]
        responses.append(Response("", ids[labels != -100].tolist()))
        prompt = ids[(labels == -100) & batch[f"{side}_attention_mask"][row].bool()].tolist()
    return PromptGroup(Prompt(row, "", prompt), (PreferencePair(row, "offline", *responses, **facts),))


def test_pair_logps_of_reference_and_policy_are_the_same_path(rows: list[dict]) -> None:
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer)
    batch = GroupCollator(0)(tokenized_groups(tokenizer, rows, reference=model))
    with torch.no_grad():
        assert DPO().margin(pair_logps(model, batch)).abs().max() < 1e-5
