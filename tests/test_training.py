"""The method-blind step: its gradient by hand, and that batching changes nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from transformers import TrainingArguments

from adaptpo import methods
from adaptpo.choices.method import Method
from adaptpo.choices.objectives import DPO, KTO, DPOShift
from adaptpo.choices.selection import ScoredPrompts
from adaptpo.errors import ConfigError, ModelError, TrainingError
from adaptpo.models.collate import FILLER, GroupCollator
from adaptpo.models.inference import autocast
from adaptpo.models.loading import load_causal_lm, load_policy
from adaptpo.models.logps import pair_logps, token_logps
from adaptpo.models.packing import PADDED, RowPacking
from adaptpo.models.shared_prompt.attention import share_prompts
from adaptpo.pipeline.phases.train import stretch
from adaptpo.run.files import JsonLines
from adaptpo.training.preference_trainer import PreferenceTrainer
from adaptpo.training.sharding import reduce_in_float32
from adaptpo.training.step import on_host, preference_step
from adaptpo.types import OFFLINE, PairLogps, PromptGroup
from tests.groups import random_groups, with_reference
from tests.runs import SETTINGS, start
from tests.runs import weights as weights_of
from tests.tiny import byte_tokenizer, save_policy, save_reward_model, tiny_model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def groups(tokenizer: Any) -> list[PromptGroup]:
    return with_reference(random_groups(10), tiny_model(tokenizer, seed=1))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=tolerance, rtol=1e-4, msg=name)


def test_metaapo_loss_and_gradient_by_hand(tokenizer: Any, groups: list[PromptGroup]) -> None:
    """Eq. 5 with the weight a constant: dL/dtheta = -1/N sum_i [w_i dl_off/dtheta + (1 - w_i) dl_on/dtheta], and
    dl/dtheta = (1 - sigmoid(m)) * beta * d(logp_w - logp_l)/dtheta."""
    model, method = tiny_model(tokenizer), methods.metaapo()
    batch = GroupCollator(0)(groups)
    preference_step(model, batch, method, len(groups)).loss.backward()
    ours = gradients(model)

    model.zero_grad()
    logps = pair_logps(model, batch)
    beta, learner = method.objective.beta, method.learners()[0]
    margins = (
        beta * ((logps.chosen - batch["reference_chosen"]) - (logps.rejected - batch["reference_rejected"])).detach()
    )
    by_group = margins.view(len(groups), 2)
    trust = learner.weight(ScoredPrompts(len(groups), by_group[:, 0]))
    weights = torch.stack([trust, 1 - trust], dim=1).view(-1)
    coefficients = -weights * torch.sigmoid(-margins) * beta / len(groups)
    (coefficients * (logps.chosen - logps.rejected)).sum().backward()
    assert_close(ours, gradients(model))

    scores = torch.log(torch.sigmoid(by_group))
    expected = -(trust * scores[:, 0] + (1 - trust) * scores[:, 1]).mean()
    assert preference_step(model, batch, method, len(groups)).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_step_gives_the_policy_no_gradient_through_the_weight(tokenizer: Any, groups: list[PromptGroup]) -> None:
    method = methods.metaapo()
    step = preference_step(tiny_model(tokenizer), GroupCollator(0)(groups), method, len(groups))
    assert not step.weights.requires_grad
    assert not step.pairs.margin.requires_grad
    step.loss.backward()
    assert all(p.grad is None for p in method.learners()[0].network.parameters())


def make_trainer(
    model: torch.nn.Module,
    groups: list[PromptGroup],
    tokenizer: Any,
    method: Method,
    out: Path,
    rows: RowPacking = PADDED,
    **settings: Any,
) -> PreferenceTrainer:
    defaults = {
        "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
        "learning_rate": 1e-3, "remove_unused_columns": False, "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(out), **(defaults | settings))
    if rows.shared_prompts:
        assert share_prompts(model)
    return PreferenceTrainer(model, arguments, groups, tokenizer, method, log=lambda step, values: None, rows=rows)


def trained(method: Method, groups: list[PromptGroup], tokenizer: Any, out: Path, **settings: Any) -> PreferenceTrainer:
    method.reset(seed=0)
    trainer = make_trainer(tiny_model(tokenizer), groups, tokenizer, method, out, **settings)
    trainer.train()
    return trainer


def parameters(trainer: PreferenceTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def learner_parameters(method: Method) -> dict[str, torch.Tensor]:
    return dict(method.learners()[0].network.state_dict())


def test_accumulation_is_the_same_as_one_large_batch(tokenizer: Any, groups: list[PromptGroup], tmp_path: Path) -> None:
    """10 groups, 8 a step: the last step is smaller. Learner updates included."""
    results = []
    for per_device, accumulation in ((8, 1), (1, 8), (2, 4)):
        method = methods.metaapo(update_interval=1)
        sizes = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation}
        trainer = trained(method, groups, tokenizer, tmp_path, **sizes)
        assert trainer.state.global_step == 2
        results.append((parameters(trainer), learner_parameters(method)))
    for policy, learner in results[1:]:
        assert_close(policy, results[0][0], tolerance=1e-5)
        assert_close(learner, results[0][1], tolerance=1e-5)


def test_training_moves_the_policy_towards_the_chosen_responses(
    tokenizer: Any, groups: list[PromptGroup], tmp_path: Path
) -> None:
    batch = GroupCollator(0)(groups)
    before = pair_logps(tiny_model(tokenizer), batch)
    method = methods.metaapo()
    settings = {"per_device_train_batch_size": 5, "num_train_epochs": 5, "learning_rate": 3e-3}
    after = pair_logps(trained(method, groups, tokenizer, tmp_path, **settings).model, batch)
    gain = method.objective.margin
    assert (gain(with_references(after, batch)) - gain(with_references(before, batch))).mean() > 0.05


def with_references(logps: PairLogps, batch: dict[str, torch.Tensor]) -> PairLogps:
    names = ("reference_chosen", "reference_rejected")
    return replace(logps, **{name: batch[name] for name in names})


def test_reference_point_of_kto_does_not_depend_on_micro_batches(tokenizer: Any, tmp_path: Path) -> None:
    groups = [with_reference_logps(group, -60.0) for group in random_groups(10)]
    results = []
    for per_device, accumulation in ((4, 1), (1, 4)):
        sizes = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation}
        method = methods.dpo(KTO())
        trainer = trained(method, groups, tokenizer, tmp_path, **sizes)
        results.append((parameters(trainer), method.objective.reference_point.value))
    assert_close(results[0][0], results[1][0], tolerance=2e-5)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-3) and results[0][1] > 0


def with_reference_logps(group: PromptGroup, logp: float) -> PromptGroup:
    return replace(group, pairs=tuple(replace(pair, reference_logps=(logp, logp)) for pair in group.pairs))


def test_objective_sees_the_progress_of_the_run(
    tokenizer: Any, groups: list[PromptGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(DPOShift, "at", lambda self, progress: seen.append(progress) or self)
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    trainer = make_trainer(tiny_model(tokenizer), groups, tokenizer, methods.dpo(DPOShift()), tmp_path, **sizes)
    trainer.stretch = (0.5, 1.0)
    trainer.train()
    assert seen == pytest.approx([0.5, 0.5, 0.6, 0.6, 0.7, 0.7, 0.8, 0.8, 0.9, 0.9])


def test_dpo_shift_of_one_trains_as_dpo(tokenizer: Any, groups: list[PromptGroup], tmp_path: Path) -> None:
    results = [
        parameters(trained(methods.dpo(objective), groups, tokenizer, tmp_path, per_device_train_batch_size=5))
        for objective in (DPO(), DPOShift(start=1.0), DPOShift())
    ]
    assert_close(results[0], results[1], tolerance=0)
    assert any(not torch.equal(results[0][name], results[2][name]) for name in results[0])


def test_iterations_share_the_progress_of_the_run() -> None:
    assert [stretch(i, 4) for i in (None, 0, 3)] == [(0.0, 0.0), (0.0, 0.25), (0.75, 1.0)]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(
    reentrant: bool, tokenizer: Any, groups: list[PromptGroup], tmp_path: Path
) -> None:
    plain = trained(methods.metaapo(), groups, tokenizer, tmp_path, per_device_train_batch_size=5)
    checkpointing = {
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
    }  # fmt: skip
    recomputed = trained(methods.metaapo(), groups, tokenizer, tmp_path, per_device_train_batch_size=5, **checkpointing)
    assert_close(parameters(plain), parameters(recomputed), tolerance=1e-6)


def test_bf16_stays_near_float32(tokenizer: Any, groups: list[PromptGroup], tmp_path: Path) -> None:
    full = trained(methods.dpo(), offline_only(groups), tokenizer, tmp_path, per_device_train_batch_size=5)
    half = trained(methods.dpo(), offline_only(groups), tokenizer, tmp_path, per_device_train_batch_size=5, bf16=True)
    batch = GroupCollator(0)(groups)
    with torch.no_grad():
        difference = pair_logps(full.model, batch).chosen - pair_logps(half.model, batch).chosen
    assert difference.abs().max() < 0.1


def test_training_computes_chunks_of_the_head_in_the_precision_of_scoring(
    tokenizer: Any, groups: list[PromptGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate's autocast holds in the model's forward alone, and the chunks are computed after it."""
    trainer = make_trainer(tiny_model(tokenizer), groups, tokenizer, methods.dpo(), tmp_path, bf16=True)
    batch = GroupCollator(0)(groups)
    with torch.no_grad(), autocast(trainer.args):
        scored = token_logps(tiny_model(tokenizer), batch)
    prepared = trainer.accelerator.prepare_model(trainer.model)
    monkeypatch.setattr("adaptpo.models.head.LOGIT_BYTES", 4 * len(tokenizer) * 50)
    with torch.no_grad():
        torch.testing.assert_close(token_logps(prepared, batch, chunked_head=True), scored, rtol=0, atol=1e-5)


@dataclass
class LongerElsewhere:
    """Two ranks, of which the other has two batches more in each micro-batch."""

    index: int = 0
    count: int = 2

    def gather(self, told: Any) -> list[Any]:
        total, lengths, tokens = told
        return [told, (total, [length + 2 for length in lengths], tokens)]


@pytest.mark.parametrize("rows", [PADDED, RowPacking(shared_prompts=True)])
def test_batches_that_fill_up_lie_on_the_device_of_training(
    rows: RowPacking, tokenizer: Any, groups: list[PromptGroup], tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_model(tokenizer), groups, tokenizer, methods.dpo(), tmp_path, rows=rows)
    trainer.ranks = LongerElsewhere()
    (passes,), _ = trainer.get_batch_samples(iter([trainer.passes(groups[:2])]), 1, torch.device("meta"))
    fillers = [batch for batch in passes if FILLER in batch]
    assert len(fillers) == 2
    moved = [(name, value) for batch in fillers for name, value in batch.items() if name not in ("pairs", "num_tokens")]
    for name, value in moved:
        parts = (
            [value.keys, value.query_starts, value.key_starts, value.padded.places]
            if name == "shared_prompts"
            else [value]
        )
        assert {part.device.type for part in parts} == {"meta"}, name


def test_what_weights_are_computed_from_comes_in_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another device than the CPU: values, dtypes and shapes are those of the fields; a field may be absent."""
    logps = PairLogps(
        torch.randn(3, requires_grad=True), torch.randn(3), torch.tensor([4, 0, 2**23 + 1]), torch.ones(3).long(),
        shared=torch.randn(3, 2), divergence=torch.rand(3).half(),
    )  # fmt: skip
    here = on_host(logps, {"losses": torch.randn(3)})
    assert not here[0].chosen.requires_grad
    assert here[0].shared is not None
    assert here[0].shared.data_ptr() == logps.shared.data_ptr()
    more = {"losses": torch.randn(3)}
    monkeypatch.setattr("adaptpo.training.step.lies_on_host", lambda _: False)
    there = on_host(logps, more)
    for name, value in (vars(logps) | more).items():
        found = (vars(there[0]) | there[1])[name]
        assert found is value is None or (found.dtype == value.dtype and torch.equal(found, value)), name


def test_ranks_sum_gradients_in_float32() -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    reduce_in_float32(plugin)
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)


def offline_only(groups: list[PromptGroup]) -> list[PromptGroup]:
    return [PromptGroup(g.prompt, tuple(p for p in g.pairs if p.source == "offline")) for g in groups]


def test_lora_trains_the_adapter_alone_and_starts_at_the_reference(tokenizer: Any, tmp_path: Path) -> None:
    base = save_policy(tmp_path / "policy")
    policy = load_policy(base, base, {"r": 4, "target_modules": "all-linear"}, {}, seed=0)
    with policy.disable_adapter():
        groups = with_reference(random_groups(6), policy)
    batch = GroupCollator(0)(groups)
    method = methods.metaapo()
    first = preference_step(policy, batch, method, len(groups))
    assert first.pairs.margin.abs().max() < 1e-5
    frozen = {n: p.detach().clone() for n, p in policy.named_parameters() if not p.requires_grad}
    trainer = make_trainer(policy, groups, tokenizer, method, tmp_path / "run", per_device_train_batch_size=3)
    trainer.train()
    assert_close(frozen, {n: p for n, p in policy.named_parameters() if not p.requires_grad}, tolerance=0)
    assert preference_step(policy, batch, method, len(groups)).pairs.margin.abs().max() > 1e-4


def test_torn_group_stops_training(tokenizer: Any, groups: list[PromptGroup]) -> None:
    batch = GroupCollator(0)(groups)
    batch["pairs"].group_size[0] = 3
    with pytest.raises(TrainingError, match="whole prompt groups"):
        preference_step(tiny_model(tokenizer), batch, methods.metaapo(), len(groups))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_finite_stops_before_weights_are_written(
    where: str, tokenizer: Any, groups: list[PromptGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(
        tiny_model(tokenizer), groups, tokenizer, methods.metaapo(), tmp_path, per_device_train_batch_size=5
    )
    before = parameters(trainer)
    if where == "loss":
        monkeypatch.setattr(GroupCollator, "__call__", poisoned(GroupCollator.__call__))
    else:
        trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=f"{where} is not finite after step 0"):
        trainer.train()
    assert_close(before, parameters(trainer), tolerance=0)


def poisoned(original: Any) -> Any:
    def call(self: Any, groups: Any) -> dict[str, torch.Tensor]:
        batch = original(self, groups)
        batch["reference_chosen"][batch["pairs"].source == OFFLINE] = float("nan")
        return batch

    return call


def test_pair_log_says_how_each_pair_counted(tokenizer: Any, groups: list[PromptGroup], tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_model(tokenizer), groups, tokenizer, methods.metaapo(), tmp_path, per_device_train_batch_size=4
    )
    trainer.pair_log = JsonLines(tmp_path / "pair_weights.jsonl")
    trainer.train()
    records = trainer.pair_log.read()
    assert sorted({r["step"] for r in records}) == [1, 2, 3]
    for prompt in range(10):
        mine = [r for r in records if r["prompt_id"] == prompt]
        assert {r["source"] for r in mine} == {"offline", "online"}
        assert sum(r["weight"] for r in mine) == pytest.approx(1, abs=2e-6)


def test_models_with_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a causal language model: it has no lm_head\.weight"):
        load_causal_lm(save_reward_model(tmp_path / "reward"), {})
    with pytest.raises(ModelError, match="model_init_kwargs"):
        load_causal_lm(save_policy(tmp_path / "policy"), {"attn_implementation": "none such"})


def test_peft_modules_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    base = save_policy(tmp_path / "policy")
    with pytest.raises(
        ConfigError, match=r"peft.target_modules: the model has no module 'no_such_module'; it has .*q_proj"
    ):
        load_policy(base, base, {"target_modules": ["no_such_module"]}, {}, seed=0)


def test_trained_reward_model_does_not_depend_on_what_was_drawn_before(tmp_path: Path) -> None:
    policy, found = save_policy(tmp_path / "policy"), []
    for number in range(2):
        torch.manual_seed(number)
        out = tmp_path / str(number)
        start(policy, out, "train", "online_dpo", rows=16, held_out=0, num_iterations=1, warmup_epochs=0)
        found.append({name: tensor for name, tensor in weights_of(out).items() if name.startswith("reward/model/")})
    assert found[0] and all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_max_steps_are_those_of_an_iteration_and_not_of_the_warm_up(tmp_path: Path) -> None:
    """16 rows, 4 in a step: the warm-up's epoch has 4 steps; an iteration has one, of the two that its rows fill."""
    policy, out = save_policy(tmp_path / "policy"), tmp_path / "run"
    training = SETTINGS["training"] | {"max_steps": 1}
    start(policy, out, None, "dpo", rows=16, held_out=0, warmup_epochs=1, training=training)
    phases = json.loads((out / "state.json").read_text())["phases"]
    steps = {name: phases[name]["steps"] for name in ("warmup", "iterations/0/train", "iterations/1/train")}
    assert steps == {"warmup": 4, "iterations/0/train": 1, "iterations/1/train": 1}
