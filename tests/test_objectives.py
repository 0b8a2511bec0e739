"""Objectives against hand-derived values and against TRL."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from adaptpo.method import Method
from adaptpo.objectives import DPO, OBJECTIVES, Objective, PairLogps, SimPO, score
from adaptpo.pairing import Offline
from adaptpo.selection import SelectNone
from adaptpo.telemetry import turn_off_telemetry
from adaptpo.training.collate import GroupCollator
from adaptpo.training.logps import pair_logps
from adaptpo.training.step import preference_step
from adaptpo.types import PreferencePair, Prompt, PromptGroup, Response
from adaptpo.weighting import Uniform
from tests.groups import tokenized_groups
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


def test_dpo_without_reference_says_so() -> None:
    with pytest.raises(ValueError, match="reference"):
        DPO().margin(logps(-1.0, -2.0))


def test_simpo_margin_and_gradient_by_hand() -> None:
    pair = logps(-6.0, -20.0, tokens=(3, 5))
    objective = SimPO(beta=2.0, gamma=0.5)
    margin = 2.0 * (-6.0 / 3) - 2.0 * (-20.0 / 5) - 0.5
    assert objective.margin(pair).item() == pytest.approx(margin)
    objective.loss(pair).sum().backward()
    distrust = 1 / (1 + math.exp(margin))
    assert pair.chosen.grad.item() == pytest.approx(-2.0 / 3 * distrust)
    assert pair.rejected.grad.item() == pytest.approx(2.0 / 5 * distrust)


@pytest.mark.parametrize("name", OBJECTIVES)
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


def test_dpo_loss_and_gradient_equal_trl(rows: list[dict], tmp_path) -> None:
    turn_off_telemetry()
    tokenizer = byte_tokenizer()
    model, reference = tiny_model(tokenizer, seed=0), tiny_model(tokenizer, seed=1)
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=trl_arguments(DPOConfig, tmp_path, beta=0.3),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    theirs = trainer.compute_loss(model.train(), trl_batch(trainer))
    theirs.backward()
    their_gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    ours = loss_of_groups(model, tokenized_groups(tokenizer, rows, reference), DPO(beta=0.3))
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert abs(ours.item() - math.log(2)) > 1e-3  # the comparison is not one of two zeros
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


def labelled_group(batch: dict, row: int) -> PromptGroup:
    """A group from TRL's rows, whose labels are -100 on the prompt and on padding."""
    responses = []
    for side in ("chosen", "rejected"):
        ids, labels = batch[f"{side}_input_ids"][row], batch[f"{side}_labels"][row]
        responses.append(Response("", ids[labels != -100].tolist()))
        prompt = ids[(labels == -100) & batch[f"{side}_attention_mask"][row].bool()].tolist()
    return PromptGroup(Prompt(row, "", prompt), (PreferencePair(row, "offline", *responses),))


def test_pair_logps_of_reference_and_policy_are_the_same_path(rows: list[dict]) -> None:
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer)
    batch = GroupCollator(0)(tokenized_groups(tokenizer, rows, reference=model))
    with torch.no_grad():
        assert DPO().margin(pair_logps(model, batch)).abs().max() < 1e-5
