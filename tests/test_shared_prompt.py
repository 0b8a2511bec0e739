"""Rows in which a prompt stands once, against each response in a row of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    MambaConfig,
    MistralConfig,
    Qwen3NextConfig,
    RwkvConfig,
)

from adaptpo import methods
from adaptpo.models import head
from adaptpo.models.collate import GroupCollator
from adaptpo.models.head import chosen_logps
from adaptpo.models.logps import response_logps, token_logps
from adaptpo.models.packing import RowPacking, row_tokens, token_batches
from adaptpo.models.self_check import SelfCheck, choose_rows, recomputing, representative
from adaptpo.models.shared_prompt import varlen
from adaptpo.models.shared_prompt.attention import NAME, share_prompts, sharing_prompts
from adaptpo.models.shared_prompt.layout import UNSEEN, shared_prompts
from adaptpo.types import PromptGroup
from tests.groups import random_groups
from tests.test_training import trained
from tests.tiny import SIZES, byte_tokenizer, tiny_config, tiny_model

TOKENIZER = byte_tokenizer()
SHARED = RowPacking(shared_prompts=True)
VOCABULARY = {"vocab_size": len(TOKENIZER), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tiny_config(TOKENIZER, "llama"),
    "qwen2": lambda: tiny_config(TOKENIZER, "qwen2"),
    "qwen3": lambda: tiny_config(TOKENIZER, "qwen3"),
    "mistral": lambda: MistralConfig(**SIZES, **VOCABULARY, sliding_window=7),
    "gemma3": lambda: Gemma3TextConfig(
        **(SIZES | {"num_hidden_layers": 4}), **VOCABULARY, head_dim=8, sliding_window=7, sliding_window_pattern=2
    ),
}
HYBRID = {
    "qwen3_next": lambda: Qwen3NextConfig(
        **(SIZES | {"num_hidden_layers": 4}), **VOCABULARY, head_dim=8, linear_num_value_heads=4,
        linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16,
    ),
    "mamba": lambda: MambaConfig(**VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4),
    "rwkv": lambda: RwkvConfig(**VOCABULARY, hidden_size=16, num_hidden_layers=2, context_length=128),
    "gemma2 (soft-capped)": lambda: Gemma2Config(**SIZES, **VOCABULARY, head_dim=8, sliding_window=7),
}  # fmt: skip


def built(config: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random model with logits far from uniform, in which a wrong mask or position would show."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


@pytest.fixture(scope="module")
def groups() -> list[PromptGroup]:
    """Groups of four responses, prompts of 2 to 30 tokens, responses of 1 to 30."""
    groups = random_groups(6, length=30)
    assert len({len(group.prompt.ids) for group in groups}) > 3
    return groups


def lora(model: nn.Module) -> nn.Module:
    """With an adapter whose second factor is not zero, so that it takes part."""
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    wrapped.enable_input_require_grads()
    return wrapped


Result = tuple[Tensor, dict[str, Tensor]]


def results(model: nn.Module, logps: Tensor) -> Result:
    """Log-probs, and gradients of a combination of them with coefficients of both signs."""
    model.zero_grad()
    (torch.linspace(-1, 1.5, len(logps), dtype=logps.dtype) * logps).sum().backward()
    return logps.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def one_by_one(model: nn.Module, groups: Sequence[PromptGroup]) -> Result:
    """Each response in a forward of its own: ids alone, no padding, mask or positions."""
    members = [(group.prompt.ids, pair) for group in groups for pair in group.pairs]
    rows = [(ids, pair.chosen.ids) for ids, pair in members] + [(ids, pair.rejected.ids) for ids, pair in members]
    sums = []
    for prompt, response in rows:
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        sums.append(chosen_logps(logits, torch.tensor(response)).sum())
    return results(model, torch.stack(sums))


def in_one_row(model: nn.Module, groups: Sequence[PromptGroup]) -> Result:
    batch = GroupCollator(0, SHARED)(groups)
    assert batch["input_ids"].shape[0] == 1
    return results(model, response_logps(model, batch)[0])


def assert_equal(found: Result, expected: Result, nats: float, relative: float = 1e-5) -> None:
    torch.testing.assert_close(found[0], expected[0], atol=nats, rtol=0)
    assert found[1].keys() == expected[1].keys() and found[1]
    for name, gradient in expected[1].items():
        apart = (found[1][name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
        assert apart < relative, (name, apart.item())


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("checkpointing", [None, "reentrant", "non-reentrant"])
@pytest.mark.parametrize("family", CONFIGS)
def test_equals_separate_rows(family: str, checkpointing: str | None, adapter: bool, groups: list[PromptGroup]) -> None:
    model = built(CONFIGS[family]())
    model = (lora(model) if adapter else model).train()
    expected = one_by_one(model, groups)
    assert expected[0].std() > 5
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    assert share_prompts(model)
    assert_equal(in_one_row(model, groups), expected, nats=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_equals_separate_rows_in_float64(family: str, groups: list[PromptGroup]) -> None:
    """Rotary embeddings and norms stay in float32 inside the models, hence the gradients' tolerance."""
    model = built(CONFIGS[family](), torch.float64)
    expected = one_by_one(model, groups)
    assert share_prompts(model)
    assert_equal(in_one_row(model, groups), expected, nats=1e-9, relative=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_groups_of_two_and_four_responses(size: int) -> None:
    groups = random_groups(5, sources=("offline", "online")[:size], length=20)
    model = built(CONFIGS["llama"]())
    expected = one_by_one(model, groups)
    assert share_prompts(model)
    assert_equal(in_one_row(model, groups), expected, nats=1e-4)


def test_without_a_layout_the_attention_is_that_of_the_library(groups: list[PromptGroup]) -> None:
    model = built(CONFIGS["mistral"]())
    plain = GroupCollator(0)(groups)
    expected = response_logps(model, plain)[0]
    with sharing_prompts(model) as possible:
        assert possible and model.config._attn_implementation == NAME
        assert torch.equal(response_logps(model, plain)[0], expected)
        mask = torch.ones(2, 9, dtype=torch.long)
        mask[0, :4] = 0
        left_padded = model(input_ids=torch.full((2, 9), 7), attention_mask=mask).logits
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(model(input_ids=torch.full((2, 9), 7), attention_mask=mask).logits, left_padded)


def test_eager_attention_stays(groups: list[PromptGroup]) -> None:
    model = built(CONFIGS["llama"]())
    model.set_attn_implementation("eager")
    assert not share_prompts(model) and model.config._attn_implementation == "eager"


def test_a_shared_model_is_saved_as_any_other(tmp_path: Path) -> None:
    model = built(CONFIGS["llama"]())
    share_prompts(model)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


# --- one call for all segments ---------------------------------------------------------------------------------------


def any_length_attention(
    query: Tensor, key: Tensor, value: Tensor, query_starts: Tensor, key_starts: Tensor, longest_queries: int,
    longest_keys: int, *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What PyTorch's kernel computes, after its documentation, one sequence at a time."""
    outputs = []
    left, right = window_size
    ends = (pairwise(starts.tolist()) for starts in (query_starts, key_starts))
    for (q, q_end), (k, k_end) in zip(*ends, strict=True):
        assert q_end - q <= longest_queries
        assert k_end - k <= longest_keys
        distance = torch.arange(q_end - q)[:, None] + (k_end - k) - (q_end - q) - torch.arange(k_end - k)
        seen = (distance >= -right) & ((distance <= left) if left >= 0 else True)
        rows = [tensor.transpose(0, 1)[None] for tensor in (query[q:q_end], key[k:k_end], value[k:k_end])]
        output = scaled_dot_product_attention(*rows, attn_mask=seen, scale=scale, enable_gqa=True)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("family", CONFIGS)
def test_one_call_for_all_segments_equals_separate_rows(
    family: str, groups: list[PromptGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself needs a GPU; how it is called, its windows and grouped heads among it, is shown here."""
    calls: list[int] = []

    def counted(query: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        calls.append(len(query))
        return any_length_attention(query, *arguments, **settings)

    monkeypatch.setattr(varlen, "varlen_attn", counted)
    monkeypatch.setattr(varlen, "fits", lambda *_: True)
    model = built(CONFIGS[family]()).train()
    expected = one_by_one(model, groups)
    assert share_prompts(model)
    assert_equal(in_one_row(model, groups), expected, nats=1e-4)
    assert calls == [GroupCollator(0, SHARED)(groups)["input_ids"].numel()] * model.config.num_hidden_layers


def test_the_kernel_needs_a_gpu_and_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(rows: Tensor, **settings: Any) -> bool:
        return varlen.fits(rows, rows, settings)

    half = torch.zeros(1, 2, 3, 64, dtype=torch.bfloat16)
    assert not fits(half)
    monkeypatch.setattr(varlen, "on_recent_gpu", lambda _: True)
    assert fits(half)
    assert not fits(half.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert fits(half.float())
    assert not fits(torch.zeros(1, 2, 3, 512, dtype=torch.bfloat16))
    assert fits(half, scaling=0.5, dropout=0.0)
    assert not fits(half, dropout=0.1)
    assert not fits(half, softcap=30.0)
    with sdpa_kernel(SDPBackend.MATH):
        assert not fits(half)


# --- the layout ------------------------------------------------------------------------------------------------------

lengths = st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(0, 40), min_size=1, max_size=4)), min_size=1)


@settings(max_examples=60, deadline=None)
@given(lengths)
def test_every_token_sees_its_prompt_and_its_own_past_and_nothing_else(row: list[tuple[int, list[int]]]) -> None:
    layout = shared_prompts([prompt for prompt, _ in row], [responses for _, responses in row])
    expected: list[set[int]] = []
    for prompt, responses in row:
        start = len(expected)
        expected += [set(range(start, start + i + 1)) for i in range(prompt)]
        for length in responses:
            own = len(expected)
            expected += [set(range(start, start + prompt)) | set(range(own, own + i + 1)) for i in range(length)]
    assert seen_by_each(layout) == expected


def seen_by_each(layout: Any) -> list[set[int]]:
    """From the indices and positions of the buckets: the tokens that each token of the row sees."""
    outputs: list[set[int]] = []
    for bucket in layout.padded.buckets:
        count, width = bucket.queries.shape
        at = bucket.query_positions.expand(count, -1)[:, :, None]
        keys = bucket.key_positions.expand(count, -1)[:, None, :]
        visible = keys <= at
        assert (bucket.key_positions[bucket.key_positions != UNSEEN] < 100).all()
        for row in range(count):
            outputs += [set(bucket.keys[row][visible[row, place]].tolist()) for place in range(width)]
    return [outputs[place] for place in layout.padded.places.tolist()]


def test_padding_stays_small_where_lengths_differ() -> None:
    layout = shared_prompts([100, 400], [[200, 100, 300, 250], [100, 50, 300, 250]])
    computed = sum(bucket.queries.numel() * bucket.keys.shape[1] for bucket in layout.padded.buckets)
    parts = [(100, [200, 100, 300, 250]), (400, [100, 50, 300, 250])]
    needed = sum(p * p + sum(r * (p + r) for r in rs) for p, rs in parts)
    assert needed <= computed <= 1.15 * needed


# --- batches by tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [RowPacking(max_tokens=90), RowPacking(shared_prompts=True, max_tokens=90)])
def test_batches_hold_whole_groups_within_the_budget(rows: RowPacking) -> None:
    groups = random_groups(20, length=20)
    batches = token_batches(groups, rows)
    assert sorted(index for batch in batches for index in batch) == list(range(20))
    collate = GroupCollator(0, rows)
    for indices in batches:
        chosen = [groups[i] for i in indices]
        assert collate(chosen)["input_ids"].numel() == row_tokens(chosen, rows)
        assert row_tokens(chosen, rows) <= 90 or len(indices) == 1
    assert len(batches) > 3


def test_a_small_token_budget_changes_no_step(tmp_path: Path) -> None:
    """With plain gradient descent, which a wrong divisor would show in; Adam hides it."""
    groups = with_references(random_groups(10))
    sizes = {"per_device_train_batch_size": 5, "optim": "sgd", "learning_rate": 0.1}
    results = []
    for rows in (
        RowPacking(),
        RowPacking(max_tokens=1),
        RowPacking(max_tokens=100),
        RowPacking(True, max_tokens=60),
        RowPacking(True),
    ):
        trainer = trained(methods.metaapo(update_interval=1), groups, TOKENIZER, tmp_path, rows=rows, **sizes)
        learner = trainer.method.learners()[0].network.state_dict()
        results.append({name: p.detach() for name, p in trainer.model.named_parameters()} | learner)
    start = dict(tiny_model(TOKENIZER).named_parameters())
    assert max((start[name] - tensor).abs().max() for name, tensor in results[0].items() if name in start) > 2e-3
    for result in results[1:]:
        for name, tensor in result.items():
            torch.testing.assert_close(tensor, results[0][name], atol=1e-5, rtol=1e-4)


def with_references(groups: list[PromptGroup]) -> list[PromptGroup]:
    kept = [tuple(replace(pair, reference_logps=(-40.0, -42.0)) for pair in group.pairs) for group in groups]
    return [replace(group, pairs=pairs) for group, pairs in zip(groups, kept, strict=True)]


# --- the self-check --------------------------------------------------------------------------------------------------


def chosen_rows(model: nn.Module, groups: list[PromptGroup], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    shared, padded = (np.array([row_tokens([group], rows) for group in groups]) for rows in (SHARED, RowPacking()))
    group, saved = groups[representative(shared)], 1 - shared.sum() / padded.sum()
    return choose_rows(model, group, saved, 0, dtype, nullcontext)


@pytest.mark.parametrize("family", CONFIGS)
def test_check_accepts_the_fast_path(family: str, groups: list[PromptGroup]) -> None:
    facts = chosen_rows(built(CONFIGS[family]()), groups)
    assert facts["rows"] == "shared" and facts["chunked_head"]
    assert facts["logps_difference"] < 1e-4 and facts["gradient_difference"] < 1e-5


def test_check_accepts_bfloat16(groups: list[PromptGroup]) -> None:
    model = tiny_model(TOKENIZER).bfloat16()
    facts = [chosen_rows(model, [group], torch.bfloat16) for group in groups]
    assert all(found["rows"] == "shared" for found in facts)
    assert 0 < max(found["logps_difference"] for found in facts) < 0.1


@pytest.mark.parametrize("family", HYBRID)
def test_models_that_cannot_share_fall_back_and_train_correctly(
    family: str, groups: list[PromptGroup], tmp_path: Path
) -> None:
    model = built(HYBRID[family]())
    facts = chosen_rows(model, groups)
    assert facts["rows"] == "padded" and type(model).__name__ in facts["reason"]
    expected = one_by_one(model.train(), groups)
    found = results(model, response_logps(model, GroupCollator(0)(groups))[0])
    assert_equal(found, expected, nats=1e-3, relative=1e-4)


@pytest.fixture
def broken() -> Any:
    """A sharing attention with one fault, put in place of ours."""
    from transformers import AttentionInterface

    from adaptpo.models.shared_prompt import attention

    def install(fault: Callable[..., Any]) -> None:
        AttentionInterface.register(NAME, fault)

    yield install
    AttentionInterface.register(NAME, attention.shared_prompt_attention)


def ignoring_the_window(*args: Any, **settings: Any) -> Any:
    from adaptpo.models.shared_prompt.attention import shared_prompt_attention

    return shared_prompt_attention(*args, **(settings | {"sliding_window": None}))


def ignoring_the_layout(*args: Any, **settings: Any) -> Any:
    from adaptpo.models.shared_prompt.attention import shared_prompt_attention

    settings.pop("shared_prompts", None)
    args = (*args[:4], None) if len(args) > 4 and args[4] is not None and args[4].numel() == 1 else args
    return shared_prompt_attention(*args, **settings)


def with_half_of_the_gradient(*args: Any, **settings: Any) -> Any:
    from adaptpo.models.shared_prompt.attention import shared_prompt_attention

    output, _ = shared_prompt_attention(*args, **settings)
    return (output + output.detach()) / 2, None


@pytest.mark.parametrize(
    ("family", "fault"),
    [("mistral", ignoring_the_window), ("llama", ignoring_the_layout), ("llama", with_half_of_the_gradient)],
)
def test_check_notices_a_wrong_path_and_says_how_far_off(
    family: str, fault: Callable[..., Any], broken: Callable[..., None], groups: list[PromptGroup]
) -> None:
    broken(fault)
    model = built(CONFIGS[family]())
    facts = chosen_rows(model, groups)
    assert facts["rows"] == "padded"
    if fault is with_half_of_the_gradient:
        assert facts["logps_difference"] < 1e-4 and facts["gradient_difference"] > 0.1
    else:
        assert facts["logps_difference"] > 0.1
    assert type(model).__name__ in facts["reason"] and "nats" in facts["reason"]
    assert model.config._attn_implementation == "sdpa"


class SeesPadding(nn.Module):
    """A model whose tokens see what comes after them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(300, 300)
        self.config = tiny_config(TOKENIZER)
        self.config._attn_implementation = "sdpa"

    def set_attn_implementation(self, name: str) -> None: ...

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        from types import SimpleNamespace

        states = self.embedding(input_ids)
        return SimpleNamespace(logits=states + states.mean(dim=1, keepdim=True))


def test_a_model_that_sees_padding_is_refused(groups: list[PromptGroup]) -> None:
    from adaptpo.errors import ModelError

    with pytest.raises(ModelError, match=r"SeesPadding: log-probs .* change by .* nats .* padded"):
        chosen_rows(SeesPadding(), groups)


def test_sharing_is_off_where_it_saves_too_little() -> None:
    groups = [
        replace(group, prompt=replace(group.prompt, ids=group.prompt.ids[:1])) for group in even_groups(4, length=30)
    ]
    facts = chosen_rows(built(CONFIGS["llama"]()), groups)
    assert facts["tokens_saved"] < 0.1 and facts["rows"] == "padded" and "of the tokens" in facts["reason"]


def even_groups(count: int, length: int) -> list[PromptGroup]:
    groups = random_groups(count, sources=("offline",), length=length)
    return [replace(group, pairs=tuple(map(lengthened, group.pairs))) for group in groups]


def lengthened(pair: Any) -> Any:
    chosen, rejected = (replace(r, ids=(r.ids * 30)[:30]) for r in (pair.chosen, pair.rejected))
    return replace(pair, chosen=chosen, rejected=rejected)


def test_the_check_recomputes_activations_and_changes_nothing(groups: list[PromptGroup]) -> None:
    """Of a model in evaluation mode with dropout, which must stay off."""
    config = CONFIGS["llama"]()
    config.attention_dropout = 0.5
    model = built(config).eval()
    layer = model.model.layers[0]
    calls: list[bool] = []
    layer.self_attn.register_forward_hook(lambda module, *_: calls.append(module.training))
    batch = GroupCollator(0)(groups)
    plain = results(model, token_logps(model, batch).sum(dim=1))
    assert len(calls) == 1
    with recomputing(model):
        again = results(model, token_logps(model, batch).sum(dim=1))
    assert_equal(again, plain, nats=1e-6)
    assert calls == [False] * 3 and not any(part.training for part in model.modules())
    token_logps(model, batch).sum().backward()
    assert len(calls) == 4


def test_the_check_takes_a_twentieth_of_a_run_at_most() -> None:
    """32 forward passes of the group against 4 of the data; with few groups, one of ordinary length."""
    tokens = np.array([100] * 700 + [400, 500, 1500])
    assert tokens[representative(tokens)] == 400
    assert 32 * 400 <= 0.05 * 4 * tokens.sum() < 32 * 500
    assert (10 * tokens)[representative(10 * tokens)] == 1000  # The cap.
    assert representative(np.array([5, 60, 50, 900])) == 2


def test_the_checked_group_is_the_longest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptpo.models.self_check.COST", 1)
    tokens = np.array([30, 50, 20, 40, 50])
    assert representative(tokens) == 1
    monkeypatch.setattr("adaptpo.models.self_check.LONGEST_CHECKED", 30)
    assert representative(tokens) == 0
    monkeypatch.setattr("adaptpo.models.self_check.LONGEST_CHECKED", 1)
    assert representative(tokens) == 2


# --- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [RowPacking(), SHARED])
@pytest.mark.parametrize("adapter", [False, True])
def test_chunked_head_equals_the_whole(
    rows: RowPacking, adapter: bool, groups: list[PromptGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(CONFIGS["llama"]())
    model = lora(model) if adapter else model
    share_prompts(model)
    batch = GroupCollator(0, rows)(groups)
    whole = results(model, token_logps(model, batch).sum(dim=1))
    sizes: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: sizes.append(output.shape[-2]))
    monkeypatch.setattr("adaptpo.models.head.LOGIT_BYTES", 4 * len(TOKENIZER) * 50)
    chunked = results(model, token_logps(model, batch, chunked_head=True).sum(dim=1))
    assert max(sizes) == 50 and len(sizes) > 4
    assert_equal(chunked, whole, nats=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_fused_head_equals_chunks(autocast: bool, groups: list[PromptGroup], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, TRL's function folds tiles of logits in PyTorch; a vocabulary of several tiles is among the cases."""
    monkeypatch.setattr(head, "LOGIT_BYTES", 4 * len(TOKENIZER) * 50)
    monkeypatch.setattr(head, "VOCABULARY_TILE", 100)
    model = built(CONFIGS["llama"]())
    batch = GroupCollator(0, RowPacking())(groups)

    def found() -> Result:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return results(model, token_logps(model, batch, chunked_head=True).sum(dim=1))

    chunks = found()
    monkeypatch.setattr(head, "fused_head_fits", lambda *_: True)
    # In half precision, both round the logits, and only one of them rounds the sums of gradients.
    assert_equal(found(), chunks, *((1e-4, 0.02) if autocast else (1e-4, 1e-5)))


def test_no_chunks_where_logits_are_not_the_heads_output(groups: list[PromptGroup]) -> None:
    config = GraniteConfig(**SIZES, **VOCABULARY, logits_scaling=3.0)
    facts = chosen_rows(built(config), groups)
    assert facts["rows"] == "shared" and not facts["chunked_head"]


def test_unchecked_models_compute_the_whole_head(groups: list[PromptGroup], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptpo.models.head.LOGIT_BYTES", 1)
    model = built(CONFIGS["llama"]())
    hooks: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda *_: hooks.append(1))
    token_logps(model, GroupCollator(0)(groups))
    assert len(hooks) == 1


# --- in a run --------------------------------------------------------------------------------------------------------


def test_a_run_says_in_its_state_how_it_computed(tmp_path: Path) -> None:
    import json

    from tests.runs import start
    from tests.tiny import save_policy, vowel_reward

    start(save_policy(tmp_path / "policy"), tmp_path / "run", vowel_reward, rows=12)
    found = json.loads((tmp_path / "run" / "state.json").read_text())["phases"]["check"]
    assert found["rows"] == "shared" and found["logps_difference"] < 1e-3
    AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    assert NAME not in (tmp_path / "run" / "final" / "config.json").read_text()


def test_shared_and_padded_runs_start_from_the_same_scores(groups: list[PromptGroup]) -> None:
    model = built(CONFIGS["llama"]())
    check = SelfCheck(model, groups[0], 0, torch.float32, nullcontext)
    assert check.padded.logps < 1e-4 and check.padded.gradients < 1e-5
