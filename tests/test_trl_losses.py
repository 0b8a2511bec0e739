"""Losses, weights and references of TRL's trainers: loss, gradient, and weights after three steps on a tiny Llama."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from adaptpo import Method, methods
from adaptpo.choices.objectives import (
    CPO,
    DPO,
    IPO,
    KTO,
    SFT,
    AlphaPO,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    EXOPair,
    Hinge,
    NCAPair,
    Objective,
    RobustDPO,
    SigmoidNorm,
    SPPOHard,
    WeightedSum,
)
from adaptpo.choices.weighting import OnPolicy, Uniform, Weighting
from adaptpo.distributed.quiet import turn_off_telemetry
from adaptpo.methods.losses import offline
from adaptpo.models.collate import GroupCollator
from adaptpo.training.following_reference import FollowingReference
from adaptpo.training.preference_trainer import PreferenceTrainer
from adaptpo.training.step import preference_step
from adaptpo.training.whole_vocabulary import VocabularyProbe
from adaptpo.types import PromptGroup
from tests.groups import tokenized_groups
from tests.test_objectives import kto, labelled_group, trl_arguments, trl_batch
from tests.tiny import byte_tokenizer, preference_rows, tiny_model

TOKENIZER = byte_tokenizer()
ROWS = preference_rows(6, seed=3)
PLAIN = {
    "loss_types": ["sigmoid"],
    "loss_weights": [1.0],
    "beta": 0.3,
    "label_smoothing": 0.0,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "use_weighting": False,
}


def one(loss_type: str, **settings: Any) -> dict[str, Any]:
    return {"loss_types": [loss_type], **settings}


ALPHA = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}
MIX = WeightedSum((DPO(0.3), BCOPair(0.3)), (0.8, 0.2))
CASES: list[tuple[Objective, dict[str, Any]]] = [
    (RobustDPO(0.3, 0.1), one("robust", label_smoothing=0.1)),
    (EXOPair(0.3, 0.01), one("exo_pair", label_smoothing=0.01)),
    (NCAPair(0.3), one("nca_pair")),
    (BCOPair(0.3), one("bco_pair")),
    (SPPOHard(0.3), one("sppo_hard")),
    (APOZero(0.3), one("apo_zero")),
    (APODown(0.3), one("apo_down")),
    (DiscoPOP(0.3), one("discopop")),
    (SigmoidNorm(0.3), one("sigmoid_norm")),
    (DPO(0.3, f_divergence_type="forward_kl"), one("sigmoid", f_divergence_type="forward_kl")),
    (DPO(0.3, f_divergence_type="js_divergence"), one("sigmoid", f_divergence_type="js_divergence")),
    (DPO(0.3, **ALPHA), one("sigmoid", **ALPHA)),
    (IPO(0.3, **ALPHA), one("ipo", **ALPHA)),
    (Hinge(0.3, f_divergence_type="js_divergence"), one("hinge", f_divergence_type="js_divergence")),
    (RobustDPO(0.3, 0.1, **ALPHA), one("robust", label_smoothing=0.1, **ALPHA)),
    (EXOPair(0.3, 0.01, **ALPHA), one("exo_pair", label_smoothing=0.01, **ALPHA)),
    (DiscoPOP(0.3, **ALPHA), one("discopop", **ALPHA)),
    (SigmoidNorm(0.3, **ALPHA), one("sigmoid_norm", **ALPHA)),
    (DPO(0.3, ld_alpha=0.4), one("sigmoid", ld_alpha=0.4)),
    (DPO(0.3, ld_alpha=0.0), one("sigmoid", ld_alpha=0.0)),
    (BCOPair(0.3, ld_alpha=0.4), one("bco_pair", ld_alpha=0.4)),
    (MIX, {"loss_types": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2]}),
    (
        methods.mpo(DPO(0.3, ld_alpha=0.4), generation_weight=0.0).objective,
        {"loss_types": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2], "ld_alpha": 0.4},
    ),
]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    turn_off_telemetry()


@pytest.fixture(scope="module")
def dpo_trainer(tmp_path_factory: pytest.TempPathFactory) -> DPOTrainer:
    """TRL's, with another reference than its policy; its settings are set for each case."""
    return DPOTrainer(
        model=tiny_model(TOKENIZER, seed=0),
        ref_model=tiny_model(TOKENIZER, seed=1),
        args=trl_arguments(DPOConfig, tmp_path_factory.mktemp("dpo"), beta=0.3, use_weighting=True),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=TOKENIZER,
    )


@pytest.fixture(scope="module")
def groups() -> list[PromptGroup]:
    return tokenized_groups(TOKENIZER, ROWS, tiny_model(TOKENIZER, seed=1))


def theirs(trainer: DPOTrainer, settings: dict[str, Any], rows: list[int] | None = None) -> torch.Tensor:
    for name, value in (PLAIN | settings).items():
        setattr(trainer, name, value)
    trainer.args.dataloader_pin_memory = False
    batch = trainer.data_collator([trainer.train_dataset[i] for i in rows or range(len(ROWS))])
    return trainer.compute_loss(trainer.model.train(), batch)


def ours(
    model: torch.nn.Module, groups: list[PromptGroup], objective: Objective, weighting: Weighting | None = None
) -> torch.Tensor:
    weighting = weighting or Uniform()
    method = Method(offline(objective).selection, offline(objective).pairing, objective, weighting)
    probe = VocabularyProbe(None, weighting.measures, nullcontext)
    return preference_step(model, GroupCollator(0)(groups), method, len(groups), probe=probe).loss


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_equal(model: torch.nn.Module, their_loss: torch.Tensor, our_loss: torch.Tensor) -> None:
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    found, expected = gradients(model, our_loss), gradients(model, their_loss)
    assert max(tensor.abs().max() for tensor in expected.values()) > 1e-4  # not a comparison of zeros
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("objective", "settings"), CASES, ids=lambda value: repr(value)[:60])
def test_loss_and_gradient_equal_trl(
    objective: Objective, settings: dict[str, Any], dpo_trainer: DPOTrainer, groups: list[PromptGroup]
) -> None:
    model = dpo_trainer.model
    assert_equal(model, theirs(dpo_trainer, settings), ours(model, groups, objective))


def test_responses_differ_in_length_where_that_matters(groups: list[PromptGroup]) -> None:
    assert any(len(g.pairs[0].chosen.ids) != len(g.pairs[0].rejected.ids) for g in groups)


@pytest.mark.parametrize(("objective", "settings"), [CASES[3], CASES[21], (DPO(0.3), one("sigmoid"))], ids=str)
def test_wpo_weights_equal_trl(
    objective: Objective, settings: dict[str, Any], dpo_trainer: DPOTrainer, groups: list[PromptGroup]
) -> None:
    model = dpo_trainer.model
    weighted = theirs(dpo_trainer, settings | {"use_weighting": True})
    assert_equal(model, weighted, ours(model, groups, objective, OnPolicy()))
    assert abs(weighted.item() - ours(model, groups, objective).item()) > 1e-3


def test_the_likelihood_term_equals_trls_in_micro_batches_of_one(
    dpo_trainer: DPOTrainer, groups: list[PromptGroup]
) -> None:
    """In a larger micro-batch TRL's mean is over tokens, so that it depends on the division into micro-batches."""
    model, objective = dpo_trainer.model, WeightedSum((DPO(0.3), SFT()), (1.0, 0.5))
    settings = {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    alone = torch.stack([theirs(dpo_trainer, settings, [row]) for row in range(len(ROWS))]).mean()
    assert_equal(model, alone, ours(model, groups, objective))
    assert abs(theirs(dpo_trainer, settings).item() - alone.item()) > 1e-4


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (CPO(0.3, cpo_alpha=0.7), {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.7}),
        (AlphaPO(2.5, 0.6, alpha=0.25), {"loss_type": "alphapo", "beta": 2.5, "simpo_gamma": 0.6, "alpha": 0.25}),
    ],
    ids=["cpo", "alphapo"],
)
def test_cpo_and_alphapo_equal_trl(objective: Objective, settings: dict[str, Any], tmp_path: Path) -> None:
    """CPO's likelihood term in a micro-batch of one; AlphaPO's loss is a mean over pairs anyway."""
    model = tiny_model(TOKENIZER, seed=0)
    config = trl_arguments(CPOConfig, tmp_path, **settings)
    trainer = CPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(ROWS), processing_class=TOKENIZER)
    batch = trl_batch(trainer)
    single = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(len(ROWS))]
    their_loss = torch.stack([trainer.get_batch_loss_metrics(model, part)[0] for part in single]).mean()
    # CPOTrainer puts tokens of its own around the response, so its own rows are compared.
    assert_equal(model, their_loss, ours(model, [labelled_group(batch, row) for row in range(len(ROWS))], objective))


# Weights after three steps

STEPS = {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "train_sampling_strategy": "sequential",
    "num_train_epochs": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


def weights_of_trl(tmp_path: Path, **settings: Any) -> PreTrainedModel:
    model = tiny_model(TOKENIZER, seed=0)
    args = DPOConfig(output_dir=str(tmp_path / "trl"), max_length=None, beta=0.3, **STEPS, **settings)
    reference, data = tiny_model(TOKENIZER, seed=0), Dataset.from_list(ROWS)
    trainer = DPOTrainer(model=model, ref_model=reference, args=args, train_dataset=data, processing_class=TOKENIZER)
    assert trainer.train().global_step == 3
    return trainer.model


def our_weights(tmp_path: Path, method: Method) -> PreTrainedModel:
    model, initial = tiny_model(TOKENIZER, seed=0), tiny_model(TOKENIZER, seed=0)
    args = TrainingArguments(output_dir=str(tmp_path / "own"), remove_unused_columns=False, **STEPS)
    following = None if isinstance(method.reference, str) else FollowingReference(initial, method.reference)
    groups = tokenized_groups(TOKENIZER, ROWS, None if following else initial)
    trainer = PreferenceTrainer(
        model, args, groups, TOKENIZER, copy.deepcopy(method), lambda *_: None,
        probe=VocabularyProbe(None, method.weighting.measures, nullcontext), reference=following,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 3
    return model


SYNCED = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.6}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (methods.robust_dpo(beta=0.3), {"loss_type": ["robust"], "label_smoothing": 0.1}),
        (methods.sppo_hard(beta=0.3), {"loss_type": ["sppo_hard"]}),
        (
            methods.f_dpo(beta=0.3, ld_alpha=0.4),
            {"loss_type": ["sigmoid"], "f_divergence_type": "js_divergence", "ld_alpha": 0.4},
        ),
        (methods.mpo(beta=0.3), {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}),
        (methods.wpo(beta=0.3), {"use_weighting": True}),
        (methods.tr_dpo(DPO(0.3), ref_model_sync_steps=1), SYNCED),
    ],
    ids=lambda value: value.name if isinstance(value, Method) else "",
)
def test_weights_after_three_steps_equal_trl(method: Method, settings: dict[str, Any], tmp_path: Path) -> None:
    expected = dict(weights_of_trl(tmp_path, **settings).named_parameters())
    found = dict(our_weights(tmp_path, method).named_parameters())
    start = dict(tiny_model(TOKENIZER, seed=0).named_parameters())
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-3
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)


# Unpaired data

UNPAIRED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for number, row in enumerate(ROWS)
    for side in ("chosen", "rejected")
    if (number + (side == "chosen")) % 3
]


def test_kto_of_unpaired_rows_equals_trl(tmp_path: Path) -> None:
    """With TRL's reference point, which is an estimate of its own."""
    model, reference = tiny_model(TOKENIZER, seed=1), tiny_model(TOKENIZER, seed=0)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.9}
    args = trl_arguments(KTOConfig, tmp_path, beta=0.3, **weights)
    data = Dataset.from_list(UNPAIRED)
    trainer = KTOTrainer(model=model, ref_model=reference, args=args, train_dataset=data, processing_class=TOKENIZER)
    their_loss = trainer.compute_loss(model.train(), trl_batch(trainer))
    z0 = trainer._metrics["train"]["kl"][-1]
    assert z0 > 0.01
    groups = tokenized_groups(TOKENIZER, UNPAIRED, reference)
    assert_equal(model, their_loss, ours(model, groups, kto(z0, beta=0.3, **weights)))


def test_apo_zero_of_unpaired_rows_equals_trl(tmp_path: Path) -> None:
    model, reference = tiny_model(TOKENIZER, seed=1), tiny_model(TOKENIZER, seed=0)
    args = trl_arguments(KTOConfig, tmp_path, beta=0.3, loss_type="apo_zero_unpaired")
    data = Dataset.from_list(UNPAIRED)
    trainer = KTOTrainer(model=model, ref_model=reference, args=args, train_dataset=data, processing_class=TOKENIZER)
    their_loss = trainer.compute_loss(model.train(), trl_batch(trainer))
    assert_equal(model, their_loss, ours(model, tokenized_groups(TOKENIZER, UNPAIRED, reference), APOZero(0.3)))


@pytest.mark.parametrize("objective", [KTO(0.3), APOZero(0.3), BCOPair(0.3)], ids=repr)
def test_unpaired_responses_train_as_their_pairs_do(objective: Objective, groups: list[PromptGroup]) -> None:
    """All responses of the pairs as rows of their own: APO and BCO sum the two, KTO takes their mean."""
    model = tiny_model(TOKENIZER, seed=0)
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in ROWS
        for side in ("chosen", "rejected")
    ]
    alone = ours(model, tokenized_groups(TOKENIZER, rows, tiny_model(TOKENIZER, seed=1)), objective)
    together = ours(model, groups, objective)
    assert_equal(model, together, alone if isinstance(objective, KTO) else 2 * alone)
