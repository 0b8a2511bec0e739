"""Annotators: what a reward function is given and may return, and rewards of a model against its plain forward pass."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
    StableLmConfig,
    StableLmForSequenceClassification,
)
from trl import RewardConfig, RewardTrainer

from adaptpo.annotation.base import Annotator, Request
from adaptpo.annotation.combined import CombinedAnnotator
from adaptpo.annotation.function import FunctionAnnotator, import_function
from adaptpo.annotation.reward_model import (
    RewardModelAnnotator,
    length_batches,
    load_reward_model,
    score_in_float32,
)
from adaptpo.distributed.quiet import turn_off_telemetry
from adaptpo.errors import AnnotationError, ConfigError, ModelError
from adaptpo.sandbox.models import build_reward_model
from adaptpo.types import Prompt, Response
from tests.tiny import byte_tokenizer, save_policy, save_reward_model, tiny_config


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def request(prompt: Any, response: Any, number: int = 0, ended: bool = True, **columns: Any) -> Request:
    return Prompt(number, prompt, [7], columns), Response(response, [8, number + 9], ended)


REQUESTS = [request("say tea", " tea", 4, answer="tea"), request("say sun", " moon", 7, answer="sun", level=3)]


# --- functions: what they are given ----------------------------------------------------------------------------------


class Recorder:
    """Keeps the keywords of its last call."""

    def __init__(self, returned: Any = None) -> None:
        self.returned = returned

    def __call__(self, **keywords: Any) -> Any:
        self.keywords = keywords
        return [0.0] * len(keywords["prompts"]) if self.returned is None else self.returned


def test_function_gets_texts_ids_and_columns() -> None:
    """A column that some rows lack arrives as None for them."""
    recorder = Recorder([0.25, -1])
    assert FunctionAnnotator(recorder).rewards(REQUESTS) == [0.25, -1.0]
    assert recorder.keywords == {
        "prompts": ["say tea", "say sun"],
        "completions": [" tea", " moon"],
        "completion_ids": [[8, 13], [8, 16]],
        "answer": ["tea", "sun"],
        "level": [None, 3],
    }


def test_conversational_completions_are_assistant_messages() -> None:
    """Generated responses are texts, offline ones already messages: the function sees the same form."""
    recorder = Recorder()
    FunctionAnnotator(recorder).rewards([request(user("hi"), "hello"), request(user("hi"), assistant("hey"))])
    assert recorder.keywords["prompts"] == [user("hi")] * 2
    assert recorder.keywords["completions"] == [assistant("hello"), assistant("hey")]


def test_columns_never_take_the_place_of_prompts_and_completions() -> None:
    recorder = Recorder()
    FunctionAnnotator(recorder).rewards([request("hi", "ho", completions="a column", prompts="another")])
    assert (recorder.keywords["prompts"], recorder.keywords["completions"]) == (["hi"], ["ho"])


# --- functions: what they may return ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "returned",
    [[1.5, -2.0], (1.5, -2), torch.tensor([1.5, -2.0]), np.array([1.5, -2.0], dtype=np.float32),
     [torch.tensor(1.5), np.float64(-2.0)]],
    ids=["list", "tuple", "tensor", "array", "scalars"],
)  # fmt: skip
def test_forms_of_rewards(returned: Any) -> None:
    rewards = FunctionAnnotator(Recorder(returned)).rewards(REQUESTS)
    assert rewards == [1.5, -2.0]
    assert all(type(reward) is float for reward in rewards)


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_no_reward_is_none(missing: Any) -> None:
    assert FunctionAnnotator(Recorder([missing, 2.0])).rewards(REQUESTS) == [None, 2.0]


@pytest.mark.parametrize("missing", [math.nan, math.inf])
def test_no_reward_in_a_tensor_is_none(missing: float) -> None:
    assert FunctionAnnotator(Recorder(torch.tensor([3.0, missing]))).rewards(REQUESTS) == [3.0, None]


def test_several_objectives_are_averaged_and_all_must_be_valid() -> None:
    requests = [(Prompt(i, "p", [1]), Response("r", [2])) for i in (4, 7)]
    annotator = FunctionAnnotator(lambda **_: [[1.0, 4.0], [2.0, float("nan")]], num_rewards=2)
    assert annotator.reward_vectors(requests, 2) == [[1.0, 4.0], None]
    assert annotator.rewards(requests) == [2.5, None]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], r"'judge' returned 1 values for 2 completions \(prompts 4 to 7\); it must return one float"),
        ([1.0, 2.0, 3.0], "'judge' returned 3 values for 2 completions"),
        (0.5, "'judge' returned a float; it must return a list of floats"),
        (torch.tensor(0.5), "'judge' returned a Tensor; it must return a list"),
        ({"a": 1.0, "b": 2.0}, "'judge' returned a dict; it must return a list"),
        ((value for value in (1.0, 2.0)), "'judge' returned a generator; it must return a list"),
        ([1.0, "good"], "'judge' returned 'good' for prompt 7; it must be a float"),
        ([[1.0], 2.0], r"'judge' returned \[1.0\] for prompt 4; it must be a float"),
        ([1.0, 10**400], "for prompt 7; it must be a float"),
    ],
    ids=["too few", "too many", "number", "tensor of no dimension", "dict", "generator", "text", "nested", "huge"],
)
def test_unusable_return_values(returned: Any, message: str) -> None:
    def judge(**_: Any) -> Any:
        return returned

    with pytest.raises(AnnotationError, match=message):
        FunctionAnnotator(judge).rewards(REQUESTS)


def test_function_that_raises_is_named_with_its_prompts() -> None:
    def judge(**_: Any) -> Any:
        raise KeyError("score")

    with pytest.raises(AnnotationError, match=r"'judge' raised KeyError: 'score' \(prompts 4 to 7\).*same command"):
        FunctionAnnotator(judge).rewards(REQUESTS)


def test_callable_object_is_named_by_its_class() -> None:
    with pytest.raises(AnnotationError, match="reward function 'Recorder' returned 1 values"):
        FunctionAnnotator(Recorder([1.0])).rewards(REQUESTS)


# --- functions by name -----------------------------------------------------------------------------------------------


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def test_function_is_imported_from_the_working_folder(working_folder: Path) -> None:
    package = working_folder / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rewards.py").write_text("def length(completions, **_):\n    return [len(c) for c in completions]\n")
    function = import_function("python:shop.rewards:length")
    assert FunctionAnnotator(function).rewards(REQUESTS) == [4.0, 5.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("python:rewards", "must have the form python:package.module:name"),
        ("python::length", "must have the form python:package.module:name"),
        ("python:rewards:", "must have the form python:package.module:name"),
        ("python:no_such_module:length", "cannot import 'no_such_module' .*No module named"),
        ("python:rewards:width", "module 'rewards' has no 'width'"),
        ("python:rewards:LIMIT", "'LIMIT' is a int, not a function"),
        ("python:torn:length", r"cannot import 'torn' \(SyntaxError"),
        ("python:failing:length", r"cannot import 'failing' \(AttributeError: .*has no attribute 'no_such_name'"),
    ],
)
def test_bad_function_names(spec: str, message: str, working_folder: Path) -> None:
    (working_folder / "rewards.py").write_text("LIMIT = 3\n")
    (working_folder / "torn.py").write_text("def length(:\n")
    (working_folder / "failing.py").write_text("import math\nmath.no_such_name\n")
    with pytest.raises(ConfigError, match=f"reward '{spec}'.*{message}"):
        import_function(spec)


# --- reward models ---------------------------------------------------------------------------------------------------

TOKENIZER = byte_tokenizer()
CHATS = [
    request(user("say tea"), "tea", 0),
    request([{"role": "system", "content": "be kind"}, *user("a much longer question than that")], "x" * 90, 1),
    request(user("?"), "", 2),
    request([*user("one"), *assistant("two"), *user("three")], "four", 3, ended=False),
]
TEXTS = [
    request("say tea", " tea", 0),
    request("Human: what is it?\n\nAssistant:", " it is a dog " * 8, 1),
    request("a", " b", 2, ended=False),
]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Its rewards differ clearly: fresh weights would give nearly the same to every text."""
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(tiny_config(TOKENIZER, num_labels=1))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval()


@torch.no_grad()
def reward_by_itself(model: nn.Module, ids: list[int]) -> float:
    return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


def chat_ids(prompt: Prompt, response: Response) -> list[int]:
    """What the test tokenizer's template spells, built by hand."""
    messages = [*prompt.text, {"role": "assistant", "content": response.text}]
    text = "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in messages)
    return TOKENIZER(text)["input_ids"]


@pytest.mark.parametrize("max_tokens", [1, 120, 10000])
def test_rewards_are_those_of_single_rows_in_order(max_tokens: int, model: nn.Module) -> None:
    annotator = RewardModelAnnotator(model, TOKENIZER, max_tokens)
    expected = [reward_by_itself(model, chat_ids(prompt, response)) for prompt, response in CHATS]
    assert len({round(reward, 2) for reward in expected}) == len(CHATS)
    assert annotator.rewards(CHATS) == pytest.approx(expected, abs=1e-5)
    assert annotator.rewards(CHATS[::-1]) == pytest.approx(expected[::-1], abs=1e-5)


def test_rewards_of_plain_texts(model: nn.Module) -> None:
    """The end of a response is part of what is judged; a cut response has none."""
    eos = TOKENIZER.eos_token_id
    rows = [TOKENIZER(f"{p.text}{r.text}")["input_ids"] + [eos] * r.ended for p, r in TEXTS]
    expected = [reward_by_itself(model, row) for row in rows]
    assert RewardModelAnnotator(model, TOKENIZER).rewards(TEXTS) == pytest.approx(expected, abs=1e-5)


def sampled(count: int = 6, prompts: int = 3) -> list[Request]:
    """Several responses of different lengths to each of some prompts."""
    return [
        request(user(f"what do you say to {number} of them, and why?"), f"{chr(97 + i)}{'no' * i}", number)
        for number in range(prompts)
        for i in range(count)
    ]


def computed_tokens(model: nn.Module, work: Any) -> int:
    embeddings, sizes = model.get_input_embeddings(), list[int]()
    hook = embeddings.register_forward_pre_hook(lambda _, arguments: sizes.append(arguments[0].numel()))
    work()
    hook.remove()
    return sum(sizes)


@pytest.mark.parametrize("max_tokens", [1, 150, 10000])
def test_responses_share_the_computation_of_their_prompt(max_tokens: int, model: nn.Module) -> None:
    requests = sampled()
    expected = [reward_by_itself(model, chat_ids(*one)) for one in requests]
    annotator = RewardModelAnnotator(model, TOKENIZER, max_tokens)
    assert annotator.rewards(requests) == pytest.approx(expected, abs=1e-5)
    assert annotator.shares
    alone = sum(len(chat_ids(*one)) for one in requests)
    assert computed_tokens(model, lambda: annotator.rewards(requests)) < 0.4 * alone
    assert annotator.rewards(requests[::-1]) == pytest.approx(expected[::-1], abs=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_end_of_sequence_as_padding_is_scored_as_the_library_does() -> None:
    """transformers scores the last token that is not padding: with pad = EOS, the one before EOS."""
    torch.manual_seed(3)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = LlamaForSequenceClassification(tiny_config(tokenizer, num_labels=1)).eval()
    model.config.pad_token_id = tokenizer.eos_token_id
    requests = sampled()
    expected = [reward_by_itself(model, chat_ids(*one)) for one in requests]
    annotator = RewardModelAnnotator(model, tokenizer)
    assert annotator.rewards(requests) == pytest.approx(expected, abs=1e-5)
    assert annotator.shares


@pytest.mark.parametrize("kind", ["bidirectional", "eager", "other attention"])
def test_reward_models_that_cannot_share_are_computed_row_by_row(kind: str) -> None:
    model: Any
    if kind == "bidirectional":
        model = build_reward_model(TOKENIZER, seed=0).eval()
    elif kind == "eager":
        model = LlamaForSequenceClassification(tiny_config(TOKENIZER, num_labels=1)).eval()
        model.set_attn_implementation("eager")
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
        config = StableLmConfig(vocab_size=len(TOKENIZER), pad_token_id=0, num_labels=1, initializer_range=0.3, **sizes)
        model = StableLmForSequenceClassification(config).eval()
    requests = sampled()
    annotator = RewardModelAnnotator(model, TOKENIZER)
    expected = [reward_by_itself(model, chat_ids(*one)) for one in requests]
    assert annotator.rewards(requests) == pytest.approx(expected, abs=1e-4)
    assert annotator.shares is False


def test_no_requests(model: nn.Module) -> None:
    assert RewardModelAnnotator(model, TOKENIZER).rewards([]) == []


def test_batches_keep_within_their_tokens(model: nn.Module) -> None:
    sizes: list[torch.Size] = []
    hook = model.register_forward_pre_hook(
        lambda m, a, kwargs: sizes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    annotator = RewardModelAnnotator(model, TOKENIZER, max_tokens=120)
    annotator.shares = False
    annotator.rewards(CHATS * 3)
    hook.remove()
    assert sum(rows for rows, _ in sizes) == 12 and len(sizes) < 12
    assert all(rows == 1 or rows * width <= 120 for rows, width in sizes)


def test_length_batches_by_hand() -> None:
    """Sorted by length: 3 rows of at most 6 fit into 18 tokens, one of 30 is a batch of its own, 31 are too long."""
    rows = [[0] * length for length in (6, 30, 4, 31, 5)]
    assert length_batches(rows, max_tokens=18, limit=30) == [[2, 4, 0], [1]]
    assert length_batches(rows, max_tokens=17, limit=30) == [[2, 4], [0], [1]]
    assert length_batches([], 18, 30) == []


def test_too_long_for_the_model_is_no_reward(model: nn.Module) -> None:
    limit = model.config.max_position_embeddings
    around = len(chat_ids(*request(user("q"), "")))
    fits, exceeds = (request(user("q"), "x" * (limit - around + more)) for more in (0, 1))
    rewards = RewardModelAnnotator(model, TOKENIZER).rewards([exceeds, CHATS[0], fits])
    assert rewards[0] is None
    assert rewards[1:] == pytest.approx([reward_by_itself(model, chat_ids(*r)) for r in (CHATS[0], fits)], abs=1e-5)


def test_reward_that_is_not_finite_is_none() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.config = SimpleNamespace(max_position_embeddings=512)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            long = attention_mask.sum(dim=1, keepdim=True) > 40
            return SimpleNamespace(logits=torch.where(long, torch.nan, 1.0))

    assert RewardModelAnnotator(Broken(), TOKENIZER).rewards(CHATS[:2]) == [1.0, None]


def test_chats_need_a_chat_template(model: nn.Module) -> None:
    annotator = RewardModelAnnotator(model, byte_tokenizer(chat=False))
    with pytest.raises(ModelError, match=r"reward model's tokenizer has no chat template.*save it beside the model"):
        annotator.rewards(CHATS)
    assert len(annotator.rewards(TEXTS)) == 3


def test_template_that_refuses_a_prompt(model: nn.Module) -> None:
    tokenizer = byte_tokenizer()
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    tokenizer.chat_template = refusal + str(tokenizer.chat_template)
    with pytest.raises(
        ModelError, match="cannot read prompt 1: the chat template refuses the messages: no system turn"
    ):
        RewardModelAnnotator(model, tokenizer).rewards(CHATS)


# --- parity with TRL -------------------------------------------------------------------------------------------------


def trl_ids(tokenizer: Any, requests: list[Request], folder: Path) -> list[list[int]]:
    """What TRL's `RewardTrainer` makes of the same conversations."""
    turn_off_telemetry()
    form: Callable[[str], Any] = assistant if isinstance(requests[0][0].text, list) else str
    rows = [{"prompt": p.text, "chosen": form(r.text), "rejected": form("other")} for p, r in requests]
    args = RewardConfig(output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, max_length=None)
    model = LlamaForSequenceClassification(tiny_config(tokenizer, num_labels=1))
    dataset = datasets.Dataset.from_list(rows)
    trainer = RewardTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
    return [row["chosen_ids"] for row in trainer.train_dataset]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("requests", [CHATS, [TEXTS[0], TEXTS[1]]], ids=["chats", "texts"])
def test_token_ids_are_those_of_trl(requests: list[Request], bos: bool, model: nn.Module, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    if bos:
        special = [("<bos>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=special)
    ours = [RewardModelAnnotator(model, tokenizer).token_ids(prompt, response) for prompt, response in requests]
    assert ours == trl_ids(tokenizer, requests, tmp_path)
    assert [ids.count(tokenizer.bos_token_id) for ids in ours] == [bos and requests is not CHATS] * len(ours)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_loaded_model_gives_the_rewards_of_the_saved_one(tmp_path: Path) -> None:
    path = save_reward_model(tmp_path / "reward")
    loaded, tokenizer = load_reward_model(path, {})
    assert not loaded.training and next(loaded.parameters()).dtype == torch.float32
    torch.manual_seed(1)
    original = LlamaForSequenceClassification(tiny_config(TOKENIZER, num_labels=1)).eval()
    expected = [reward_by_itself(original, chat_ids(prompt, response)) for prompt, response in CHATS]
    assert RewardModelAnnotator(loaded, tokenizer).rewards(CHATS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "bert", "roberta", "modernbert", "deberta-v2"])
def test_scores_of_weights_in_bfloat16_are_in_float32(kind: str) -> None:
    """On a GPU a reward model's weights are in bfloat16, whose 8 bits would make close scores equal."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 40, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, num_hidden_layers=1, num_labels=1, **size)
    model = AutoModelForSequenceClassification.from_config(config).eval().bfloat16()
    ids = torch.tensor([[5, 6, 7, 8]])
    rounded = model(input_ids=ids).logits
    score_in_float32(model)
    score = model(input_ids=ids).logits
    assert (rounded.dtype, score.dtype) == (torch.bfloat16, torch.float32)
    assert score != rounded and score.item() == pytest.approx(rounded.item(), rel=0.01, abs=1e-3)


@pytest.mark.parametrize(("kind", "longest"), [("bert", 34), ("roberta", 32)])
def test_a_model_scores_what_fits_into_its_positions(kind: str, longest: int) -> None:
    """RoBERTa keeps the positions up to its padding id, 1."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "max_position_embeddings": 34}
    config = AutoConfig.for_model(kind, num_hidden_layers=1, num_labels=1, vocab_size=len(TOKENIZER), **size)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    annotator = RewardModelAnnotator(model, TOKENIZER)
    bare = len(annotator.token_ids(Prompt(0, "", []), Response("", [])))
    texts = [Response("x" * (longest - bare + more), []) for more in (0, 1)]
    assert [len(annotator.token_ids(Prompt(0, "", []), text)) for text in texts] == [longest, longest + 1]
    fits, beyond = annotator.rewards([(Prompt(0, "", []), text) for text in texts])
    assert fits is not None and beyond is None


def test_more_than_one_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has 2 labels; a reward model has one.*python:module:function"):
        load_reward_model(save_reward_model(tmp_path / "reward", num_labels=2), {})


def test_language_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    """Its head would be drawn at random, and so would the rewards."""
    path = save_policy(tmp_path / "policy")
    config = tiny_config(TOKENIZER, num_labels=1)
    config.save_pretrained(path)
    with pytest.raises(ModelError, match=r"not a trained reward model: it has no score\.weight.*reward: train"):
        load_reward_model(path, {})


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"cannot load a reward model from '{tmp_path}'"):
        load_reward_model(str(tmp_path), {})


def test_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    path = save_reward_model(tmp_path / "reward")
    larger = byte_tokenizer()
    larger.add_tokens(["<more>"])
    larger.save_pretrained(path)
    with pytest.raises(ModelError, match="resize_token_embeddings"):
        load_reward_model(path, {})


class OneReward(Annotator):
    def rewards(self, requests: Sequence[Request]) -> list[float | None]:
        return [1.0] * len(requests)


def test_each_of_several_annotators_is_an_objective() -> None:
    requests = [(Prompt(i, "p", [1]), Response("r", [2])) for i in (4, 7)]
    helpful, harmless = (FunctionAnnotator(lambda values=values, **_: values) for values in ([1.0, 2.0], [3.0, None]))
    leads = SimpleNamespace(relative=True, advantages=lambda couples: [1.0 for _ in couples])
    assert CombinedAnnotator([(leads, 1.0), (leads, -2.0)]).advantages([None]) == [-1.0]  # type: ignore[list-item]
    combined = CombinedAnnotator([(helpful, 0.5), (harmless, 0.5)])
    assert combined.reward_vectors(requests, 2) == [[1.0, 3.0], None]
    with pytest.raises(AnnotationError, match="lists 2 annotators, but the method has 3 objectives"):
        combined.reward_vectors(requests, 3)
    with pytest.raises(AnnotationError, match="gives one reward, but the method ranks by 2"):
        OneReward().reward_vectors(requests, 2)
