"""What MetaPO's weights ask of the whole vocabulary: against plain computations in float64, and in runs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import log_softmax
from transformers import GraniteConfig, GraniteForCausalLM, PreTrainedModel

from adaptpo import AlignmentConfig, AlignmentTrainer, Method, methods
from adaptpo.choices.learners.temporal.features import BASE, GRADIENT
from adaptpo.choices.objectives import DPO, ORPO, Objective, SimPO
from adaptpo.errors import ModelError
from adaptpo.models.collate import GroupCollator
from adaptpo.models.loading import base_is_untouched
from adaptpo.models.logps import pair_logps
from adaptpo.models.packing import PADDED, RowPacking
from adaptpo.models.shared_prompt.attention import share_prompts
from adaptpo.run.files import JsonLines, read_rows
from adaptpo.training.whole_vocabulary import LiveReference, VocabularyProbe
from adaptpo.types import PromptGroup, Response
from tests.groups import random_groups, with_reference
from tests.runs import SETTINGS, weights
from tests.test_metapo import with_wide_norms
from tests.tiny import SIZES, byte_tokenizer, preference_rows, save_policy, tiny_model

ROWS = {"padded": PADDED, "shared": RowPacking(shared_prompts=True)}
DIVERGENCE = frozenset({"divergence"})
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}


def in_float64(seed: int) -> PreTrainedModel:
    model = with_wide_norms(tiny_model(byte_tokenizer(), seed=seed).double())
    share_prompts(model)
    return model.eval()


@pytest.fixture(scope="module")
def policy() -> PreTrainedModel:
    return in_float64(seed=0)


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return in_float64(seed=1)


@pytest.fixture(scope="module")
def groups(reference: PreTrainedModel) -> list[PromptGroup]:
    """Two pairs a prompt; one pair has a sample, which nothing here looks at."""
    made = with_reference(random_groups(4), reference)
    sampled = replace(made[1].pairs[0], sample=Response("", [7, 8, 9]))
    return [made[0], replace(made[1], pairs=(sampled, made[1].pairs[1])), *made[2:]]


@pytest.fixture(params=["at once", "in chunks"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """In chunks of 3 tokens, of which most responses have more."""
    if request.param == "in chunks":
        monkeypatch.setattr("adaptpo.models.head.LOGIT_BYTES", 4 * len(byte_tokenizer()) * 3)
    return request.param == "in chunks"


def all_logps(model: torch.nn.Module, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Of every token of the vocabulary at each token of the response, in a row of its own."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0]
    return log_softmax(logits[len(prompt) - 1 : -1], dim=-1)


def divergence_by_hand(policy: torch.nn.Module, reference: torch.nn.Module, groups: list[PromptGroup]) -> list[float]:
    means = []
    for prompt, pair in ((group.prompt, pair) for group in groups for pair in group.pairs):
        tokens = []
        for side in (pair.chosen.ids, pair.rejected.ids):
            both = (all_logps(model, prompt.ids, side) for model in (policy, reference))
            tokens += [sum(p.exp() * (p - q) for p, q in zip(*at, strict=True)) for at in zip(*both, strict=True)]
        means.append(float(sum(tokens)) / len(tokens))
    return means


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_exact_divergence_by_hand(
    rows: RowPacking, chunked: bool, policy: PreTrainedModel, reference: PreTrainedModel, groups: list[PromptGroup]
) -> None:
    batch, probe = GroupCollator(0, rows)(groups), VocabularyProbe(LiveReference(reference), DIVERGENCE, nullcontext)
    logps, measured = probe.logps(policy, batch, chunked, DPO())
    expected = divergence_by_hand(policy, reference, groups)
    assert measured.keys() == {"divergence"}
    assert measured["divergence"].tolist() == pytest.approx(expected, rel=1e-10)
    assert min(expected) > 0.01
    same = VocabularyProbe(LiveReference(policy), DIVERGENCE, nullcontext).logps(policy, batch, chunked, DPO())[1]
    assert same["divergence"].abs().max() < 1e-12
    alone = pair_logps(policy, batch, chunked)
    assert torch.equal(logps.chosen, alone.chosen) and torch.equal(logps.rejected, alone.rejected)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("objective", [DPO(0.5), SimPO(), ORPO()], ids=lambda x: type(x).__name__)
def test_head_gradient_norm_is_that_of_a_backward_pass(
    objective: Objective, rows: RowPacking, chunked: bool, policy: PreTrainedModel, groups: list[PromptGroup]
) -> None:
    """Of each pair's loss by itself, whatever else is in the batch."""
    batch = GroupCollator(0, rows)(groups)
    measured = VocabularyProbe(None, frozenset({"head_gradient_norm"}), nullcontext).logps(
        policy, batch, chunked, objective
    )[1]
    head, losses = policy.get_output_embeddings().weight, objective.loss(pair_logps(policy, batch))
    norms = [torch.autograd.grad(loss, head, retain_graph=True)[0].norm().log1p().item() for loss in losses]
    assert measured.keys() == {"head_gradient_norm"}
    assert measured["head_gradient_norm"].tolist() == pytest.approx(norms, rel=1e-9)
    assert len(set(norms)) == 8


def test_reference_computes_in_the_precision_of_training(groups: list[PromptGroup]) -> None:
    """Of mixed precision training, only the policy's forward is in autocast by itself."""
    policy, reference = (tiny_model(byte_tokenizer()).eval() for _ in range(2))
    policy.forward = low_precision()(policy.forward)
    batch, live = GroupCollator(0)(groups), LiveReference(reference)
    found, other = (
        VocabularyProbe(live, DIVERGENCE, precision).logps(policy, batch, True, DPO())[1]["divergence"]
        for precision in (low_precision, nullcontext)
    )
    assert found.abs().max() == 0 < other.abs().min()


def low_precision() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def test_policy_without_its_adapter_is_the_reference(groups: list[PromptGroup]) -> None:
    """Dropout of the adapter included; gradients are what they are without looking."""
    torch.manual_seed(3)
    plain, adapted = in_float64(seed=0), in_float64(seed=0)
    settings = LoraConfig(**LORA, init_lora_weights=False, lora_dropout=0.5)
    adapted = get_peft_model(adapted, settings).double().train()
    batch = GroupCollator(0)(groups)
    beside, without = (
        VocabularyProbe(found, DIVERGENCE, nullcontext)
        for found in (LiveReference(plain), LiveReference(adapted, adapted.disable_adapter))
    )
    found, gradients = [], []
    for probe in (beside, without, None):
        torch.manual_seed(0)
        if probe is None:
            logps = pair_logps(adapted, batch)
        else:
            logps, measured = probe.logps(adapted, batch, False, DPO())
            found.append(measured["divergence"])
        trained = [p for p in adapted.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(DPO().loss(logps).sum(), trained))
    assert torch.equal(found[0], found[1]) and found[0].min() > 1e-4
    assert all(torch.equal(a, b) and torch.equal(b, c) for a, b, c in zip(*gradients, strict=True))
    assert all(part.training for part in adapted.modules())


@pytest.mark.parametrize(
    ("settings", "untouched"),
    [({}, True), ({"bias": "all"}, False), ({"init_lora_weights": "pissa"}, False), ({"target": "lm_head"}, False)],
    ids=str,
)
def test_settings_of_lora_that_change_the_base(settings: dict[str, Any], untouched: bool) -> None:
    target = settings.pop("target", "q_proj")
    peft = {"r": 2, "target_modules": [target], **settings}
    adapted = get_peft_model(tiny_model(byte_tokenizer()), LoraConfig(task_type="CAUSAL_LM", **peft))
    assert base_is_untouched(adapted, peft) == untouched


# Runs


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


def align(start: str, out: Path, method: Method, **settings: Any) -> Path:
    own = {"num_iterations": 1, "warmup_epochs": 0, "training": SETTINGS["training"] | {"learning_rate": 0.03}}
    args = AlignmentConfig(output_dir=str(out), **(SETTINGS | own | settings))
    return AlignmentTrainer(start, args, method, preference_rows(12)).train()


def lines_of(out: Path, iteration: int = 0) -> list[dict[str, Any]]:
    return JsonLines(out / f"iterations/{iteration}/pair_weights.jsonl").read()


def test_measuring_changes_no_bit_of_the_training(start: str, tmp_path: Path) -> None:
    """All weights are 1. Policy and reference agree at the first step, and then part."""
    out = tmp_path / "exact"
    asking = methods.metapo(meta_interval=None, features=(*BASE, *GRADIENT), divergence="exact")
    one = weights(align(start, out, asking))
    other = weights(align(start, tmp_path / "k3", methods.metapo(meta_interval=None)))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert all((line["divergence"] > 1e-6) == (line["step"] > 1) for line in lines_of(out))
    assert all(line["head_gradient_norm"] > 0 for line in lines_of(out))
    kept = read_rows(out / "reference/00000.parquet")[0]
    assert "chosen" in kept and "chosen_tokens" not in kept


def test_reference_of_an_adapter_is_the_base_or_the_policy_before(start: str, tmp_path: Path) -> None:
    """With `reference: previous`: the policy without its adapter in the first iteration, a second model in the next."""
    out = tmp_path / "run"
    method = methods.metapo(meta_interval=None, divergence="exact")
    align(start, out, method, peft=LORA, reference="previous", num_iterations=2)
    for iteration in (0, 1):
        assert all((line["divergence"] > 1e-6) == (line["step"] > 1) for line in lines_of(out, iteration))


def test_heads_that_give_no_logits_by_themselves_are_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    GraniteForCausalLM(GraniteConfig(**SIZES, **tokens, logits_scaling=3.0)).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    with pytest.raises(ModelError, match="divergence to k3"):
        align(str(tmp_path / "policy"), tmp_path / "run", methods.metapo(divergence="exact"))
    assert not (tmp_path / "run/reference").exists()
