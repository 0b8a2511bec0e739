"""Log-probs of responses against a computation of its own: one row at a time, all logits, summed in float64."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM, TrainingArguments

from adaptpo.choices.objectives import DPO
from adaptpo.models.collate import Batch, GroupCollator
from adaptpo.models.inference import PromptedPair, evaluate_pairs
from adaptpo.models.logps import accepted_arguments, pair_logps, response_logps
from adaptpo.types import PairLogps, PromptGroup
from tests.groups import random_groups, with_reference
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer()
Row = tuple[list[int], list[int]]


@pytest.fixture(scope="module")
def groups() -> list[PromptGroup]:
    return random_groups(6)


@pytest.fixture(scope="module")
def batch(groups: list[PromptGroup]) -> Batch:
    return GroupCollator(0)(groups)


def rows_of(groups: list[PromptGroup]) -> list[Row]:
    """(prompt, response) in the collator's order: all chosen responses, then all rejected ones."""
    members = [(group.prompt.ids, pair) for group in groups for pair in group.pairs]
    return [(ids, pair.chosen.ids) for ids, pair in members] + [(ids, pair.rejected.ids) for ids, pair in members]


@torch.no_grad()
def one_by_one(model: nn.Module, rows: list[Row]) -> Tensor:
    """log pi(response | prompt) of each row by itself: no padding, no masks, no position ids."""
    sums = []
    for prompt, response in rows:
        logps = model(input_ids=torch.tensor([prompt + response])).logits[0].double().log_softmax(dim=-1)
        positions = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        sums.append(sum(logps[position, token] for position, token in zip(positions, response, strict=True)))
    return torch.stack(sums)


def sharpened(model: nn.Module) -> nn.Module:
    """Fresh weights give nearly uniform logits, in which a wrong mask or position would hardly show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval()


@torch.no_grad()
def sums_of(model: nn.Module, batch: Batch) -> Tensor:
    return response_logps(model, batch)[0].double()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_padded_batch_equals_single_rows(
    family: str, dtype: torch.dtype, tolerance: float, groups: list[PromptGroup], batch: Batch
) -> None:
    model = sharpened(tiny_model(TOKENIZER, family)).to(dtype)
    rows = rows_of(groups)
    assert len({len(prompt) for prompt, _ in rows}) > 3 and len({len(response) for _, response in rows}) > 3
    with torch.no_grad():
        sums, counts = response_logps(model, batch)
    expected = one_by_one(model, rows)
    assert expected.std() > 1
    torch.testing.assert_close(sums.double(), expected, atol=tolerance, rtol=0)
    assert counts.tolist() == [len(response) for _, response in rows]


def test_response_after_one_prompt_token_by_hand() -> None:
    """A model whose next-token distribution depends on the last token alone: log p = sum of table entries."""
    table = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [1.0, 1.0, 1.0]])

    class Bigram(nn.Module):
        def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
            return SimpleNamespace(logits=table[input_ids])

    one = random_groups(1, sources=("offline",))[0]
    pair = replace(
        one.pairs[0],
        chosen=replace(one.pairs[0].chosen, ids=[2, 0]),
        rejected=replace(one.pairs[0].rejected, ids=[1]),
    )
    group = PromptGroup(replace(one.prompt, ids=[2, 1]), (pair,))
    logps = pair_logps(Bigram(), GroupCollator(0)([group]))
    p = table.softmax(dim=-1)
    assert logps.chosen.item() == pytest.approx((p[1, 2].log() + p[2, 0].log()).item(), abs=1e-6)
    assert logps.rejected.item() == pytest.approx(p[1, 1].log().item(), abs=1e-6)
    assert (logps.chosen_tokens.item(), logps.rejected_tokens.item()) == (2, 1)


class WithoutOptions(nn.Module):
    """A model that neither cuts its logits nor takes position ids."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, use_cache: bool = True) -> Any:
        return self.model(input_ids=input_ids, use_cache=use_cache)


def test_model_without_logits_to_keep_and_position_ids(groups: list[PromptGroup], batch: Batch) -> None:
    model = sharpened(tiny_model(TOKENIZER))
    plain = WithoutOptions(model)
    assert not accepted_arguments(plain) & {"logits_to_keep", "position_ids"}
    assert accepted_arguments(model) >= {"logits_to_keep", "position_ids"}
    torch.testing.assert_close(sums_of(plain, batch), one_by_one(model, rows_of(groups)), atol=1e-4, rtol=0)


def test_absolute_positions_count_from_the_first_token_and_not_from_the_padding(
    groups: list[PromptGroup], batch: Batch
) -> None:
    torch.manual_seed(0)
    model = sharpened(GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=4)))
    torch.testing.assert_close(sums_of(model, batch), one_by_one(model, rows_of(groups)), atol=1e-3, rtol=0)


def test_state_space_model_skips_the_padding_before_prompts(groups: list[PromptGroup], batch: Batch) -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=len(TOKENIZER), hidden_size=16, num_hidden_layers=2, state_size=4)
    model = sharpened(MambaForCausalLM(config))
    torch.testing.assert_close(sums_of(model, batch), one_by_one(model, rows_of(groups)), atol=1e-3, rtol=0)


class PackedLogits(nn.Module):
    """Gives a float32 model's logits rounded to bfloat16: what the head of a bfloat16 model does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, use_cache: bool = True) -> Any:
        output = self.model(input_ids=input_ids, use_cache=use_cache)
        return SimpleNamespace(logits=output.logits.bfloat16())


def long_groups() -> list[PromptGroup]:
    rng = random.Random(0)
    return [
        PromptGroup(g.prompt, tuple(with_long_responses(pair, rng) for pair in g.pairs))
        for g in random_groups(4, sources=("offline",))
    ]


def with_long_responses(pair: Any, rng: random.Random) -> Any:
    ids = [[rng.randrange(6, 200) for _ in range(60)] for _ in range(2)]
    return replace(pair, chosen=replace(pair.chosen, ids=ids[0]), rejected=replace(pair.rejected, ids=ids[1]))


def test_bfloat16_model_stays_near_float32() -> None:
    batch = GroupCollator(0)(long_groups())
    model = tiny_model(TOKENIZER).eval()
    full = sums_of(model, batch)
    assert (sums_of(model.bfloat16(), batch) - full).abs().max() < 0.1


def test_log_softmax_and_sum_are_not_computed_in_bfloat16() -> None:
    """60 tokens of about -5.5 nats: bfloat16 has a step of 2 near -330, so that its own sums are far off."""
    batch = GroupCollator(0)(long_groups())
    model = PackedLogits(tiny_model(TOKENIZER).eval())
    with torch.no_grad():
        sums, _ = response_logps(model, batch)
        logits = model(batch["input_ids"]).logits[:, batch["columns"]]
    targets, mask = batch["targets"][..., None], batch["target_mask"]
    exact = (logits.double().log_softmax(-1).gather(-1, targets)[..., 0] * mask).sum(1)
    rough = (logits.log_softmax(-1).gather(-1, targets)[..., 0] * mask).sum(1)
    assert sums.dtype == torch.float32
    assert (sums - exact).abs().max() < 1e-3
    assert (rough - exact).abs().max() > 0.5


def test_gradients_are_finite_and_equal_those_of_single_rows(groups: list[PromptGroup], batch: Batch) -> None:
    """Ragged rows have positions that attend to nothing: their gradient must be 0 and not NaN."""
    model = sharpened(tiny_model(TOKENIZER)).double()
    sums, _ = response_logps(model, batch)
    weights = torch.linspace(-1, 1, len(sums), dtype=torch.float64)
    (weights * sums).sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert all(torch.isfinite(gradient).all() for gradient in ours.values())
    model.zero_grad()
    for weight, (prompt, response) in zip(weights, rows_of(groups), strict=True):
        logps = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(dim=-1)
        chosen = logps[len(prompt) - 1 : -1].gather(-1, torch.tensor(response)[:, None])
        (weight * chosen.sum()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-9, rtol=1e-7, msg=name)


def test_one_group(groups: list[PromptGroup]) -> None:
    model = sharpened(tiny_model(TOKENIZER))
    one = GroupCollator(0)(groups[:1])
    torch.testing.assert_close(sums_of(model, one), one_by_one(model, rows_of(groups[:1])), atol=1e-4, rtol=0)


# --- passes without training -----------------------------------------------------------------------------------------


def arguments(folder: Path, batch_size: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", per_device_eval_batch_size=batch_size
    )


def items_of(groups: list[PromptGroup]) -> list[PromptedPair]:
    return [(group.prompt, pair) for group in groups for pair in group.pairs]


def values(logps: PairLogps) -> Iterator[tuple[str, Tensor]]:
    return ((field.name, value) for field in fields(logps) if (value := getattr(logps, field.name)) is not None)


def test_evaluation_keeps_the_order_of_its_items_whatever_the_batch_size(
    groups: list[PromptGroup], tmp_path: Path
) -> None:
    model = sharpened(tiny_model(TOKENIZER))
    items = items_of(with_reference(groups, tiny_model(TOKENIZER, seed=1)))
    assert len(items) == 12
    logps = [evaluate_pairs(model, 0, items, arguments(tmp_path, size)) for size in (1, 5, 32)]
    expected = one_by_one(model, rows_of(groups)).chunk(2)
    for result in logps:
        torch.testing.assert_close(result.chosen.double(), expected[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(result.rejected.double(), expected[1], atol=1e-4, rtol=0)
        assert result.chosen_tokens.tolist() == [len(pair.chosen.ids) for _, pair in items]
        assert result.rejected_tokens.tolist() == [len(pair.rejected.ids) for _, pair in items]
        assert result.reference_chosen is not None and result.reference_rejected is not None
        kept = [pair.reference_logps for _, pair in items]
        torch.testing.assert_close(result.reference_chosen, torch.tensor([chosen for chosen, _ in kept]))
        torch.testing.assert_close(result.reference_rejected, torch.tensor([rejected for _, rejected in kept]))


def test_pairs_without_reference_have_none(groups: list[PromptGroup], tmp_path: Path) -> None:
    logps = evaluate_pairs(tiny_model(TOKENIZER), 0, items_of(groups), arguments(tmp_path, 4))
    assert logps.reference_chosen is None and logps.reference_rejected is None


@pytest.mark.parametrize("precision", ["float32", "bf16 autocast"])
def test_margin_of_the_reference_itself_is_zero(precision: str, groups: list[PromptGroup], tmp_path: Path) -> None:
    """Both sides computed by the same pass, in different batches."""
    model, objective = sharpened(tiny_model(TOKENIZER)), DPO(beta=1.0)
    args, tolerance = arguments(tmp_path, 4), 1e-5
    if precision != "float32":
        args.bf16, tolerance = True, 0.2
    items = items_of(groups)
    kept = evaluate_pairs(model, 0, items, args)
    referenced = [
        (prompt, replace(pair, reference_logps=(kept.chosen[i].item(), kept.rejected[i].item())))
        for i, (prompt, pair) in enumerate(items)
    ]
    args.per_device_eval_batch_size = 5
    assert objective.margin(evaluate_pairs(model, 0, referenced, args)).abs().max() < tolerance
    other = sharpened(tiny_model(TOKENIZER, seed=2))
    assert objective.margin(evaluate_pairs(other, 0, referenced, args)).abs().mean() > 1


def test_evaluation_leaves_no_gradient_and_switches_dropout_off(groups: list[PromptGroup], tmp_path: Path) -> None:
    model = tiny_model(TOKENIZER, attention_dropout=0.5).train()
    first, second = (evaluate_pairs(model, 0, items_of(groups), arguments(tmp_path, 4)) for _ in range(2))
    assert torch.equal(first.chosen, second.chosen) and not first.chosen.requires_grad


def test_empty_list(tmp_path: Path) -> None:
    logps = evaluate_pairs(tiny_model(TOKENIZER), 0, [], arguments(tmp_path, 4))
    assert {tuple(value.shape) for _, value in values(logps)} == {(0,), (0, 2)}
    assert DPO().margin(logps).shape == (0,)
