"""Losses of TRL's trainers on the real model: each one, and the weights after three steps of gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from adaptpo import methods
from adaptpo.choices.objectives import (
    CPO,
    DPO,
    AlphaPO,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    EXOPair,
    NCAPair,
    Objective,
    RobustDPO,
    SigmoidNorm,
    SPPOHard,
)
from adaptpo.choices.weighting import OnPolicy, Uniform, Weighting
from adaptpo.methods.losses import offline
from adaptpo.models.collate import Batch, GroupCollator
from adaptpo.training.step import preference_step
from adaptpo.training.whole_vocabulary import VocabularyProbe
from tests.groups import tokenized_groups
from tests.real_model import load_real_model, needs_real_model, real_tokenizer
from tests.test_objectives import labelled_group, trl_batch
from tests.test_real_model_training import ROWS, perturbed, trl_arguments

pytestmark = [needs_real_model, pytest.mark.engines]
SHORT = [{"prompt": "Tea?", "chosen": " Yes.", "rejected": " A dog, no."}]
"""One pair of few tokens, because each case takes seconds; its responses differ in length."""
PLAIN: dict[str, Any] = {
    "label_smoothing": 0.0, "ld_alpha": None, "f_divergence_type": "reverse_kl", "loss_weights": [1.0],
    "use_weighting": False,
}  # fmt: skip
JS = {"f_divergence_type": "js_divergence"}
FORWARD = {"f_divergence_type": "forward_kl"}
ALPHA = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}
CASES: dict[str, tuple[Objective, str, dict[str, Any]]] = {
    "robust": (RobustDPO(0.3, 0.1), "robust", {"label_smoothing": 0.1}),
    "apo_zero": (APOZero(0.3), "apo_zero", {}),
    "apo_down": (APODown(0.3), "apo_down", {}),
    "exo_pair": (EXOPair(0.3, 0.01), "exo_pair", {"label_smoothing": 0.01}),
    "nca_pair": (NCAPair(0.3), "nca_pair", {}),
    "bco_pair": (BCOPair(0.3), "bco_pair", {}),
    "sppo_hard": (SPPOHard(0.3), "sppo_hard", {}),
    "discopop": (DiscoPOP(0.3), "discopop", {}),
    "sigmoid_norm": (SigmoidNorm(0.3), "sigmoid_norm", {}),
    "js_divergence": (DPO(0.3, **JS), "sigmoid", JS),
    "forward_kl": (DPO(0.3, **FORWARD), "sigmoid", FORWARD),
    "alpha_divergence": (DPO(0.3, **ALPHA), "sigmoid", ALPHA),
    "ld_alpha": (DPO(0.3, ld_alpha=0.4), "sigmoid", {"ld_alpha": 0.4}),
    "mpo": (
        methods.mpo(beta=0.3).objective, "",
        {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    ),
    "wpo": (DPO(0.3), "sigmoid", {"use_weighting": True}),
}  # fmt: skip
"""By TRL's name: the objective, TRL's loss type and its settings."""
STEEP = {"discopop": 1e-4, "sppo_hard": 1e-4}
"""Losses whose slope multiplies what rounding leaves of the log-probs: near a margin of 0 by 1 / (4 tau) = 5, and by
twice the distance from 1 / (2 beta), which is squared."""
STEPS = 3
MOVE = 5e-4
"""How far the first step moves some weight; after larger steps the losses amplify rounding."""
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
"""The keys of a batch in which TRL finds what the reference says; else it asks it at every step."""
Loss = Callable[[nn.Module], Tensor]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """The reference, a policy that is near it, another one with the same weights, and these weights."""
    policy = perturbed(load_real_model())
    start = [weight.detach().clone() for weight in policy.parameters()]
    other = load_real_model()
    return {"reference": load_real_model(), "policy": policy, "other": other, "start": start}


@pytest.fixture(scope="module")
def trainer(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> DPOTrainer:
    made = DPOTrainer(
        model=models["policy"],
        ref_model=models["reference"],
        args=trl_arguments(DPOConfig, tmp_path_factory.mktemp("dpo"), beta=0.3, use_weighting=True),
        train_dataset=Dataset.from_list(SHORT),
        processing_class=real_tokenizer(),
    )
    made.precompute_ref_logps = True  # By each case, because `ld_alpha` changes them.
    return made


@pytest.fixture(scope="module")
def batch(models: dict[str, Any]) -> Batch:
    return GroupCollator(0)(tokenized_groups(real_tokenizer(), SHORT, models["reference"]))


def ours(batch: Batch, objective: Objective, weighting: Weighting | None = None) -> Loss:
    """Of a batch of one pair."""
    method = replace(offline(objective), weighting=weighting or Uniform())
    probe = VocabularyProbe(None, method.weighting.measures, nullcontext)
    return lambda model: preference_step(model, batch, method, 1, probe=probe).loss


def descend(model: nn.Module, start: list[Tensor], loss: Loss, rate: float | None) -> tuple[list[float], float]:
    """Takes three steps from the given weights; returns the losses and the learning rate, which the first gradient
    decides if it is not given."""
    weights = list(model.parameters())
    with torch.no_grad():
        torch._foreach_copy_(weights, start)
    losses = []
    for _ in range(STEPS):
        value = loss(model)
        gradients = torch.autograd.grad(value, weights)
        rate = rate or MOVE / max(gradient.abs().max().item() for gradient in gradients)
        with torch.no_grad():
            torch._foreach_add_(weights, gradients, alpha=-rate)
        losses.append(value.item())
    assert rate is not None
    return losses, rate


def furthest(some: Iterable[Tensor], others: Iterable[Tensor]) -> float:
    """The largest difference between two weights."""
    with torch.no_grad():
        return max(torch.dist(one, other, torch.inf).item() for one, other in zip(some, others, strict=True))


def assert_equal(models: dict[str, Any], their_loss: Loss, our_loss: Loss, tolerance: float = 1e-5) -> None:
    expected, rate = descend(models["policy"], models["start"], their_loss, None)
    found, _ = descend(models["other"], models["start"], our_loss, rate)
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance) and expected[0] != expected[-1]
    moved = furthest(models["policy"].parameters(), models["start"])
    apart = furthest(models["policy"].parameters(), models["other"].parameters())
    assert moved > 2e-4 and apart < 1e-5, (moved, apart)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_weights_equal_trl(name: str, models: dict[str, Any], trainer: DPOTrainer, batch: Batch) -> None:
    objective, loss_type, settings = CASES[name]
    for field, value in (PLAIN | {"loss_types": [loss_type]} | settings).items():
        setattr(trainer, field, value)
    theirs = trainer.data_collator([trainer.train_dataset[0]])
    theirs |= zip(REFERENCE, trainer.compute_ref_log_probs(trainer.ref_model, theirs), strict=True)
    loss, tolerance = ours(batch, objective, OnPolicy() if name == "wpo" else None), STEEP.get(name, 1e-5)
    assert_equal(models, lambda model: trainer.compute_loss(model, theirs), loss, tolerance)


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (CPO(0.3, cpo_alpha=0.7), {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.7}),
        (AlphaPO(2.5, 0.6, alpha=0.25), {"loss_type": "alphapo", "beta": 2.5, "simpo_gamma": 0.6, "alpha": 0.25}),
    ],
    ids=["cpo", "alphapo"],
)
def test_cpo_and_alphapo_equal_trl(
    objective: Objective, settings: dict[str, Any], models: dict[str, Any], tmp_path: Path
) -> None:
    """CPOTrainer puts tokens of its own around a response, so its own row is compared. The responses are longer,
    because AlphaPO's slope multiplies what rounding leaves of a mean log-prob."""
    config = trl_arguments(CPOConfig, tmp_path, **settings)
    data, tokenizer = Dataset.from_list(ROWS[1:2]), real_tokenizer()
    trainer = CPOTrainer(model=models["policy"], args=config, train_dataset=data, processing_class=tokenizer)
    theirs = trl_batch(trainer)
    own = GroupCollator(0)([labelled_group(theirs, 0)])

    def their_loss(model: nn.Module) -> Tensor:
        return trainer.get_batch_loss_metrics(model, theirs)[0]

    assert_equal(models, their_loss, ours(own, objective))
