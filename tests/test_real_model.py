"""The model of `make real-model` is SmolLM2-135M-Instruct as the hub has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from tests.real_model import load_real_model, needs_real_model, real_model, real_tokenizer

pytestmark = needs_real_model
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>"),
    *("<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>"),
    *("<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>"),
)
"""In the order of their ids."""
IDS_OF_TEXTS = {
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "  multiple   spaces": [216, 2701, 256, 5600],
    "Caf\u00e9 d\u00e9j\u00e0 vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "\n": [198],
    "The capital of France is": [504, 3575, 282, 4649, 314],
}
"""As the hub's tokenizer has them."""
RENDERED = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return real_tokenizer()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_real_model()


def asked(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    turns = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def test_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == list(range(17))
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert named == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} == {*range(17)}
    assert (len(tokenizer), tokenizer.model_max_length) == (49152, 8192)


@pytest.mark.parametrize("text", IDS_OF_TEXTS)
def test_texts_have_the_ids_of_the_hubs_tokenizer(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer(text)["input_ids"] == IDS_OF_TEXTS[text]
    assert tokenizer.decode(IDS_OF_TEXTS[text]) == text


def test_a_digit_is_a_token_and_leaves_the_space_before_it_together(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("a  1") == ["a", "\u0120\u0120", "1"]


def test_template_has_a_default_system_message(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.decode(asked(tokenizer, "tea?")) == RENDERED.format(question="tea?")
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "tea?"}]
    assert "SmolLM" not in tokenizer.apply_chat_template(turns, tokenize=False)


def test_configuration_is_that_of_an_ordinary_model() -> None:
    config: Any = AutoConfig.from_pretrained(real_model())
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    assert sizes == (576, 30, 9, 3)
    assert (config.vocab_size, config.max_position_embeddings, config.tie_word_embeddings) == (49152, 8192, True)
    assert (config.rope_parameters["rope_theta"], config.rms_norm_eps) == (100000.0, pytest.approx(1e-5))
    for name in ("config.json", "generation_config.json"):
        stored = json.loads(Path(real_model(), name).read_text())
        assert [stored[f"{token}_token_id"] for token in ("bos", "eos", "pad")] == [1, 2, 2]
        assert "quantization_config" not in stored
    assert not list(Path(real_model()).glob("*.gguf"))


def test_answers_coherently_and_is_the_same_when_read_again(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = torch.tensor([asked(tokenizer, "What is the capital of France?")])
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=12, do_sample=False)
        logits = model(ids).logits
    assert "The capital of France is Paris" in tokenizer.decode(answer[0, ids.shape[1] :])
    assert model.dtype == torch.float32 and model.num_parameters() == 134_515_008
    with torch.no_grad():
        assert torch.equal(load_real_model()(ids).logits, logits)
