"""Generation against transformers' own `generate`: greedy token for token, sampled in distribution."""

from __future__ import annotations

from collections import Counter
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
)

from adaptpo.generation.base import Sampling
from adaptpo.generation.transformers_engine import (
    COMPACT_BELOW,
    TransformersGenerator,
    UncachedRows,
    draw_tokens,
    prompt_batches,
    row_bytes,
    uniform_draws,
    where_sums_work,
)
from adaptpo.types import Prompt, Response
from tests.tiny import FAMILIES, SIZES, byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer()
PROMPTS = [Prompt(n, "", list(range(20 + n, 20 + n + length))) for n, length in enumerate([9, 2, 6, 3, 14])]
SEEDS = [11, 22, 33, 44, 55]
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def sampling(**settings: Any) -> Sampling:
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 8, "stop_ids": frozenset()}
    return Sampling(**(defaults | settings))


def greedy(**settings: Any) -> Sampling:
    return sampling(temperature=0.0, **settings)


def decisive(model: nn.Module) -> nn.Module:
    """Larger weights, for outputs that depend on every token, and double precision, in which no rounding of another
    batch can turn one token into another."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.double().eval()


def built(config: PreTrainedConfig) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return decisive(tiny_model(TOKENIZER))


def ids_of(responses: list[list[Response]]) -> list[list[list[int]]]:
    return [[response.ids for response in several] for several in responses]


def generated(
    model: nn.Module,
    settings: Sampling,
    count: int = 1,
    prompts: list[Prompt] = PROMPTS,
    seeds: list[int] = SEEDS,
    **options: Any,
) -> list[list[list[int]]]:
    return ids_of(TransformersGenerator(model, TOKENIZER, settings, **options).generate(prompts, count, seeds))


def theirs(model: nn.Module, prompt: Prompt, stop_ids: frozenset[int] = frozenset(), tokens: int = 8) -> list[int]:
    """Greedy `generate` of one prompt by itself."""
    ids = torch.tensor([prompt.ids])
    options = {
        "do_sample": False,
        "max_new_tokens": tokens,
        "pad_token_id": 0,
        "eos_token_id": sorted(stop_ids) or None,
    }
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return output[0, len(prompt.ids) :].tolist()


# --- greedy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(family: str) -> None:
    """Ragged prompts, three to a batch, and stop tokens that end some responses midway and others never."""
    model = decisive(tiny_model(TOKENIZER, family))
    free = [theirs(model, prompt) for prompt in PROMPTS]
    assert len(set(map(tuple, free))) == len(PROMPTS)
    assert [several[0] for several in generated(model, greedy(), batch_size=3)] == free
    stops = frozenset({free[0][3], free[3][1]})
    stopped = [theirs(model, prompt, stops) for prompt in PROMPTS]
    lengths = {len(ids) for ids in stopped}
    assert len(lengths) > 1 and max(lengths) == 8 and min(lengths) < 4
    assert [several[0] for several in generated(model, greedy(stop_ids=stops), batch_size=3)] == stopped


def test_greedy_gives_the_same_response_every_time(model: nn.Module) -> None:
    for several in generated(model, greedy(), count=3):
        assert several == [several[0]] * 3


def test_top_k_of_one_is_greedy(model: nn.Module) -> None:
    assert generated(model, sampling(top_k=1, temperature=2.0)) == generated(model, greedy())


@pytest.mark.parametrize("settings", [greedy(max_new_tokens=1), sampling(max_new_tokens=1)])
def test_one_new_token(settings: Sampling, model: nn.Module) -> None:
    responses = generated(model, settings, count=2)
    assert {len(ids) for several in responses for ids in several} == {1}
    if settings.temperature == 0:
        assert [several[0] for several in responses] == [theirs(model, prompt, tokens=1) for prompt in PROMPTS]


def test_adapter_takes_part_in_generation() -> None:
    base = decisive(tiny_model(TOKENIZER))
    without = generated(base, greedy())
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config).double().eval()
    responses = generated(adapted, greedy(), batch_size=3)
    assert [several[0] for several in responses] == [theirs(adapted, prompt) for prompt in PROMPTS]
    assert responses != without


def mistral(window: int | None) -> nn.Module:
    return decisive(built(MistralConfig(vocab_size=len(TOKENIZER), sliding_window=window, **SIZES, **TOKENS)))


def test_sliding_window_shorter_than_the_prompts() -> None:
    """A window of 4 against prompts of up to 14 tokens; without the window the responses are others."""
    responses = generated(mistral(4), greedy(), batch_size=3)
    assert [several[0] for several in responses] == [theirs(mistral(4), prompt) for prompt in PROMPTS]
    assert responses != generated(mistral(None), greedy(), batch_size=3)


def test_absolute_positions_count_from_the_first_token_and_not_from_the_padding() -> None:
    model = decisive(built(GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=4, **TOKENS)))
    responses = generated(model, greedy(), batch_size=3)
    assert [several[0] for several in responses] == [theirs(model, prompt) for prompt in PROMPTS]


def hybrid(name: str) -> nn.Module:
    vocabulary = TOKENS | {"vocab_size": len(TOKENIZER)}
    layers = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "mamba_d_state": 4, "mamba_dt_rank": 4}
    sizes = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}
    configs = {
        "mamba": lambda: MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **vocabulary),
        "jamba": lambda: JambaConfig(**layers, **sizes, **vocabulary),
        "lfm2": lambda: Lfm2Config(layer_types=["conv", "full_attention"], **SIZES, **vocabulary),
    }
    return decisive(built(configs[name]()))


@pytest.mark.parametrize("name", ["mamba", "jamba", "lfm2"])
def test_models_whose_cache_cannot_be_expanded(name: str) -> None:
    """State-space and hybrid models; LFM2 is one that transformers does not call stateful."""
    model = hybrid(name)
    generator = TransformersGenerator(model, TOKENIZER, greedy())
    assert isinstance(generator._rows(PROMPTS[:1], 1), UncachedRows)
    free = [theirs(model, prompt) for prompt in PROMPTS]
    assert len(set(map(tuple, free))) > 1
    assert [several[0] for several in ids_of(generator.generate(PROMPTS, 1, SEEDS))] == free
    stops = frozenset({free[0][2]})
    stopped = generated(model, greedy(stop_ids=stops), count=2)
    assert stopped == [[theirs(model, prompt, stops)] * 2 for prompt in PROMPTS]


# --- sampled ---------------------------------------------------------------------------------------------------------

VOCABULARY = 12
DRAWS = 4000
SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 4},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 7, "top_p": 0.7},
]


@pytest.fixture(scope="module")
def small_model() -> nn.Module:
    """Few tokens, so that every pair of them is drawn often enough to be counted."""
    model = decisive(built(LlamaConfig(vocab_size=VOCABULARY, **SIZES, **TOKENS)))
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    return model


def next_probabilities(model: nn.Module, ids: list[int], settings: dict[str, Any]) -> Tensor:
    """The distribution from which `generate` draws: the softmax of the scores that it reports."""
    options = {"top_k": 0, "top_p": 1.0} | settings
    output = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=True, max_new_tokens=1,
        eos_token_id=None, pad_token_id=0, output_scores=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    return output.scores[0][0].double().softmax(dim=-1)


def two_token_probabilities(model: nn.Module, ids: list[int], settings: dict[str, Any]) -> Tensor:
    """[VOCABULARY, VOCABULARY]: p(first, second)."""
    first = next_probabilities(model, ids, settings)
    return torch.stack([first[t] * next_probabilities(model, [*ids, t], settings) for t in range(VOCABULARY)])


def counted(pairs: list[list[int]]) -> Tensor:
    counts = Counter(map(tuple, pairs))
    cells = product(range(VOCABULARY), repeat=2)
    return torch.tensor([counts[cell] for cell in cells], dtype=torch.float64).view(VOCABULARY, VOCABULARY)


def p_value(counts: Tensor, probabilities: Tensor) -> float:
    """Of Pearson's chi-square test; cells with fewer than 5 expected draws are counted as one."""
    counts, expected = counts.flatten(), probabilities.flatten() * counts.sum()
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    statistic = ((counts - expected) ** 2 / expected.clamp(min=1e-9)).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), statistic / 2).item()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seeds", [range(1), range(400)], ids=len)
def test_sampled_distribution_is_that_of_generate(
    seeds: range, settings: dict[str, Any], small_model: nn.Module
) -> None:
    """4000 draws of two tokens: as many responses to one prompt, or ten to each of 400 equal ones."""
    ids = [3, 7, 5]
    prompts, two_tokens = [Prompt(n, "", ids) for n in seeds], sampling(max_new_tokens=2, **settings)
    drawn = generated(small_model, two_tokens, DRAWS // len(seeds), prompts, list(seeds), batch_size=100)
    counts = counted([pair for several in drawn for pair in several])
    exact = two_token_probabilities(small_model, ids, settings)
    assert counts.sum() == DRAWS
    assert counts[exact == 0].sum() == 0
    assert p_value(counts, exact) > 1e-4
    other = two_token_probabilities(small_model, ids, {"temperature": settings["temperature"] * 1.3})
    assert p_value(counts, other) < 1e-6


@pytest.mark.parametrize(
    ("kind", "deterministic", "moves"),
    [("cuda", True, True), ("cuda", False, False), ("mps", False, True), ("cpu", True, False)],
)
def test_probabilities_are_added_up_where_that_works(
    kind: str, deterministic: bool, moves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's sums have no fixed order, also those of top-p, and MPS has no float64."""
    monkeypatch.setattr("torch.are_deterministic_algorithms_enabled", lambda: deterministic)
    logits: Any = SimpleNamespace(device=torch.device(kind), cpu=lambda: "on the CPU")
    assert where_sums_work(logits) == ("on the CPU" if moves else logits)


def test_a_model_on_the_cpu_has_the_memory_of_a_cpu(small_model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert TransformersGenerator(small_model, byte_tokenizer(), sampling()).memory == 2**30


def test_draw_by_hand() -> None:
    """p = [0, 1/4, 0, 3/4, 0]: token 1 below 1/4, token 3 from there on, and never one of probability 0."""
    logits = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0]).log()
    uniforms = torch.tensor([0.0, 0.2499, 0.2501, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw_tokens(logits.expand(5, 5), uniforms).tolist() == [1, 1, 3, 3, 3]


def test_responses_of_a_prompt_differ_among_themselves(model: nn.Module) -> None:
    for several in generated(model, sampling(), count=6):
        assert len(set(map(tuple, several))) == 6


@pytest.mark.parametrize("stop_ids", [frozenset(), frozenset(range(6, 60))])
def test_responses_depend_on_their_seed_and_on_no_neighbour(stop_ids: frozenset[int], model: nn.Module) -> None:
    """Batches of other sizes, another order of prompts, and each prompt by itself."""
    settings = sampling(stop_ids=stop_ids)
    responses = generated(model, settings, count=4)
    for size in (1, 2, 3):
        assert generated(model, settings, count=4, batch_size=size) == responses
    backwards = generated(model, settings, 4, PROMPTS[::-1], SEEDS[::-1], batch_size=2)
    assert backwards[::-1] == responses
    for prompt, seed, mine in zip(PROMPTS, SEEDS, responses, strict=True):
        assert generated(model, settings, 4, [prompt], [seed]) == [mine]
        assert generated(model, settings, 4, [prompt], [seed + 1]) != [mine]


def test_uniform_numbers_come_from_the_seed_of_their_prompt() -> None:
    draws = uniform_draws([1, 2, 1], 3, 5)
    assert draws.shape == (9, 5)
    assert torch.equal(draws[:3], draws[6:]) and not torch.equal(draws[:3], draws[3:6])
    assert torch.equal(uniform_draws([2], 3, 5), draws[3:6])
    assert (draws >= 0).all() and (draws < 1).all() and len(draws[:6].unique()) == 30


# --- rows that end ---------------------------------------------------------------------------------------------------


def forward_rows(model: nn.Module, calls: list[int]) -> Any:
    """Append the number of rows of every forward pass to `calls`."""
    return model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True
    )


def test_finished_rows_are_dropped(model: nn.Module) -> None:
    """At every step less than a quarter of the rows is finished; before, all rows of the batch would run to the end."""
    settings = sampling(max_new_tokens=16, stop_ids=frozenset(range(6, 40)))
    calls: list[int] = []
    hook = forward_rows(model, calls)
    responses = generated(model, settings, count=8, prompts=PROMPTS[:3], seeds=SEEDS[:3])
    hook.remove()
    lengths = [len(ids) for several in responses for ids in several]
    prefill, *steps = calls
    assert prefill == 3 and len(steps) == max(lengths) - 1
    unfinished = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert all(COMPACT_BELOW * rows <= alive <= rows for rows, alive in zip(steps, unfinished, strict=True))
    assert sum(steps) < 0.7 * 24 * len(steps)


@pytest.mark.parametrize("settings", [greedy(max_new_tokens=16), sampling(max_new_tokens=16)])
def test_dropping_rows_changes_no_response(settings: Sampling, model: nn.Module) -> None:
    """The same tokens as without any cache, where each prompt runs by itself."""
    stopping = sampling(**vars(settings) | {"stop_ids": frozenset(range(6, 40))})
    uncached = TransformersGenerator(model, TOKENIZER, stopping)
    uncached.expands_cache = False
    expected = ids_of(uncached.generate(PROMPTS, 8, SEEDS))
    assert generated(model, stopping, count=8) == expected
    assert len({len(ids) for several in expected for ids in several}) > 1


def test_ended_and_cut_responses(model: nn.Module) -> None:
    """An ended response has its stop token last and nowhere else, and not in its text; a cut one has none."""
    stops = frozenset(range(100, 130))
    generator = TransformersGenerator(model, TOKENIZER, sampling(stop_ids=stops))
    responses = [response for several in generator.generate(PROMPTS, 8, SEEDS) for response in several]
    assert {response.ended for response in responses} == {True, False}
    for response in responses:
        assert stops.isdisjoint(response.ids[:-1])
        assert response.ended == (response.ids[-1] in stops)
        assert response.ended or len(response.ids) == 8
        words = response.ids[: len(response.ids) - response.ended]
        assert response.text == TOKENIZER.decode(words, skip_special_tokens=True)


def test_stop_token_as_the_last_allowed_one_ends_the_response(model: nn.Module) -> None:
    prompt = PROMPTS[0]
    ids = theirs(model, prompt)
    last = next(n for n in range(1, 8) if ids[n] not in ids[:n])
    settings = greedy(max_new_tokens=last + 1, stop_ids=frozenset({ids[last]}))
    response = TransformersGenerator(model, TOKENIZER, settings).generate([prompt], 1, [0])[0][0]
    assert response.ended and response.ids == ids[: last + 1]


def test_no_prompts(model: nn.Module) -> None:
    assert TransformersGenerator(model, TOKENIZER, greedy()).generate([], 4, []) == []


def test_generation_is_without_dropout_and_leaves_the_model_in_training() -> None:
    model = decisive(tiny_model(TOKENIZER, attention_dropout=0.9))
    expected = generated(model, greedy())
    assert generated(model.train(), greedy()) == expected
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


# --- batch sizes from memory -----------------------------------------------------------------------------------------


def test_row_bytes_by_hand() -> None:
    """2 (key, value) x 2 layers x 2 heads x 8 numbers x 4 bytes, doubled, a token; 32 bytes a vocabulary entry."""
    model = tiny_model(TOKENIZER)
    per_token = 2 * 2 * 2 * 2 * 8 * 4
    assert row_bytes(model, 100) == 100 * per_token + 32 * len(TOKENIZER)
    assert row_bytes(model.bfloat16(), 100) == 50 * per_token + 32 * len(TOKENIZER)


def test_prompt_batches_by_hand() -> None:
    assert prompt_batches([5, 1, 3, 9], limit=9) == [[1, 2], [0], [3]]
    assert prompt_batches([20, 20], limit=9) == [[0], [1]]
    assert prompt_batches([], limit=9) == []


def test_the_memory_decides_how_many_prompts_are_sampled_together(model: nn.Module) -> None:
    prompts = [Prompt(i, "", [7] * length) for i, length in enumerate((4, 30, 5, 29))]
    one = 3 * row_bytes(model, 5 + 10)
    settings = greedy(max_new_tokens=10)
    small = TransformersGenerator(model, TOKENIZER, settings, memory=2 * one)
    assert small.batches(prompts, 3) == [[0, 2], [3], [1]]
    large = TransformersGenerator(model, TOKENIZER, settings)
    assert large.batches(prompts, 3) == [[0, 2, 3, 1]]
    fixed = TransformersGenerator(model, TOKENIZER, settings, batch_size=3)
    assert fixed.batches(prompts, 3) == [[0, 2, 3], [1]]
    assert ids_of(small.generate(prompts, 3, range(4))) == ids_of(large.generate(prompts, 3, range(4)))
