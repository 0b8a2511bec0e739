"""Tokenization: parity with TRL, one BOS, one end of turn, and a reason for every example that cannot be used."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from adaptpo.data import limits, tokenization
from adaptpo.data.templates import PROMPT_RENDERED_DIFFERENTLY, TURNS_RENDERED_DIFFERENTLY
from adaptpo.data.tokenization import (
    TokenizedPair,
    decode_response,
    stop_token_ids,
    tokenize_pair,
    tokenize_prompt,
)
from adaptpo.data.vocabulary import check_tokenizer_fits
from adaptpo.errors import DataError, ModelError
from adaptpo.types import PreferenceExample

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BOS_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_STOP = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # noqa: E501
CORPUS = [
    "the sky is blue and green",
    "Human: what is it\n\nAssistant: it is a dog",
    "assistant\nuser\nsystem\n\n  yes no",
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


@cache
def trained_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS * 4, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return tokenizer


def build_tokenizer(
    template: str | None = CHATML, bos: bool = False, trailing_eos: bool = False, eos: str = "</s>"
) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(trained_tokenizer().to_str())
    single = ("<s> " if bos else "") + "$A" + (" </s>" if trailing_eos else "")
    special = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos, pad_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def chat(prompt: list[tuple[str, str]], chosen: str, rejected: str) -> PreferenceExample:
    messages = [{"role": role, "content": content} for role, content in prompt]
    replies = [[{"role": "assistant", "content": reply}] for reply in (chosen, rejected)]
    return PreferenceExample(0, messages, *replies)


def plain(prompt: str = "the sky is", chosen: str = " blue", rejected: str = " green") -> PreferenceExample:
    return PreferenceExample(0, prompt, chosen, rejected)


def pair_of(example: PreferenceExample, tokenizer: Any, limits: tuple[Any, Any] = (None, None)) -> TokenizedPair:
    pair = tokenize_pair(example, tokenizer, *limits)
    assert isinstance(pair, TokenizedPair), pair
    return pair


CHATS = [
    chat([("user", "what is it")], "it is a dog", "no"),
    chat([("system", "yes no"), ("user", "sky"), ("assistant", "blue"), ("user", "green")], "the sky", "a  dog\n"),
]
STRINGS = [
    plain(),
    plain("Human: what is it\n\nAssistant:", " it is a dog", " no"),
    plain("the sky is\n", "blue", "no"),
]


# --- parity with TRL -------------------------------------------------------------------------------------------------


def trl_columns(examples: list[PreferenceExample], tokenizer: Any, folder: Path) -> list[dict[str, list[int]]]:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    rows = [{"prompt": e.prompt, "chosen": e.chosen, "rejected": e.rejected} for e in examples]
    args = DPOConfig(output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, max_length=None)
    trainer = DPOTrainer(
        LlamaForCausalLM(config),
        ref_model=LlamaForCausalLM(config),
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return list(trainer.train_dataset)


@pytest.mark.parametrize("bos", [False, True])
def test_strings_tokenize_as_in_trl(bos: bool, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(template=None, bos=bos)
    for example, theirs in zip(STRINGS, trl_columns(STRINGS, tokenizer, tmp_path), strict=True):
        ours = pair_of(example, tokenizer)
        assert ours.prompt_ids == theirs["prompt_ids"]
        assert (ours.chosen.ids, ours.rejected.ids) == (theirs["chosen_ids"], theirs["rejected_ids"])


def test_chats_tokenize_as_in_trl_when_the_template_ends_with_eos(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(BOS_TEMPLATE, bos=True)
    for example, theirs in zip(CHATS, trl_columns(CHATS, tokenizer, tmp_path), strict=True):
        ours = pair_of(example, tokenizer)
        assert ours.prompt_ids == theirs["prompt_ids"]
        assert (ours.chosen.ids, ours.rejected.ids) == (theirs["chosen_ids"], theirs["rejected_ids"])


def test_chatml_differs_from_trl_only_by_the_line_break_behind_the_turn(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    line_break = tokenizer("\n")["input_ids"]
    for example, theirs in zip(CHATS, trl_columns(CHATS, tokenizer, tmp_path), strict=True):
        ours = pair_of(example, tokenizer)
        assert ours.prompt_ids == theirs["prompt_ids"]
        assert ours.chosen.ids + line_break == theirs["chosen_ids"]
        assert ours.rejected.ids + line_break == theirs["rejected_ids"]


# --- special tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [CHATML, BOS_TEMPLATE])
def test_bos_is_written_at_most_once_for_chats(template: str) -> None:
    tokenizer = build_tokenizer(template, bos=True, trailing_eos=True)
    pair = pair_of(CHATS[1], tokenizer)
    assert pair.prompt_ids.count(tokenizer.bos_token_id) == (template == BOS_TEMPLATE)
    assert tokenizer.bos_token_id not in pair.chosen.ids
    assert pair.prompt_ids == tokenize_prompt(tokenizer, CHATS[1].prompt)


def test_bos_comes_once_and_eos_of_the_tokenizer_does_not_stay_in_the_prompt() -> None:
    tokenizer = build_tokenizer(None, bos=True, trailing_eos=True)
    for prompt in ("the sky", "<s>the sky"):
        pair = pair_of(plain(prompt), tokenizer)
        assert pair.prompt_ids == [tokenizer.bos_token_id, *tokenizer("the sky", add_special_tokens=False)["input_ids"]]
        assert pair.chosen.ids.count(tokenizer.eos_token_id) == 1
        assert pair.chosen.ids[-1] == tokenizer.eos_token_id
        assert tokenize_prompt(tokenizer, prompt) == pair.prompt_ids


def test_eos_written_in_the_data_is_not_doubled() -> None:
    tokenizer = build_tokenizer(None)
    assert pair_of(plain(chosen=" blue</s>\n"), tokenizer).chosen.ids == pair_of(plain(), tokenizer).chosen.ids


def test_template_without_stop_token_gets_eos() -> None:
    tokenizer = build_tokenizer(NO_STOP)
    pair = pair_of(CHATS[0], tokenizer)
    assert pair.chosen.ids[-1] == pair.rejected.ids[-1] == tokenizer.eos_token_id
    assert pair.chosen.ended


def test_stop_tokens_come_from_tokenizer_generation_config_and_template() -> None:
    tokenizer = build_tokenizer(CHATML)
    eos, end_of_turn = tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])
    assert stop_token_ids(build_tokenizer(None)) == {eos}
    assert stop_token_ids(build_tokenizer(NO_STOP)) == {eos}
    assert stop_token_ids(tokenizer) == {eos, end_of_turn}
    assert stop_token_ids(tokenizer, SimpleNamespace(eos_token_id=[7, 8])) == {eos, end_of_turn, 7, 8}
    assert stop_token_ids(tokenizer, SimpleNamespace(eos_token_id=7)) == {eos, end_of_turn, 7}
    assert stop_token_ids(tokenizer, SimpleNamespace(eos_token_id=None)) == {eos, end_of_turn}


def test_base_model_with_chat_template_ends_at_the_template_token() -> None:
    tokenizer = build_tokenizer(CHATML, eos="</s>")
    assert pair_of(CHATS[0], tokenizer).chosen.ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_no_stop_token_at_all_is_an_error() -> None:
    tokenizer = build_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"set tokenizer\.eos_token"):
        stop_token_ids(tokenizer)


# --- the border between prompt and response --------------------------------------------------------------------------


def test_tokens_that_would_merge_across_the_border_leave_the_prompt_whole() -> None:
    tokenizer = build_tokenizer(None)
    example = plain("the sky is ", "blue", "green")
    joined = tokenizer("the sky is blue")["input_ids"]
    pair = pair_of(example, tokenizer)
    assert joined[: len(pair.prompt_ids)] != pair.prompt_ids
    assert pair.prompt_ids == tokenize_prompt(tokenizer, "the sky is ")
    assert tokenizer.decode(pair.prompt_ids + pair.chosen.ids[:-1]) == "the sky is blue"


def test_sentencepiece_adds_no_space_where_a_word_goes_on() -> None:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.train_from_iterator(CORPUS * 4, trainers.BpeTrainer(special_tokens=["<unk>", "</s>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    pair = pair_of(plain("the sk", "y", " no"), tokenizer)
    assert tokenizer.decode(pair.prompt_ids + pair.chosen.ids[:-1]) == "the sky"
    assert tokenizer.decode(pair.prompt_ids + pair.rejected.ids[:-1]) == "the sk no"


TEXTS = st.text("abs \n.é", min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(prompt=TEXTS, chosen=TEXTS, rejected=TEXTS, as_chat=st.booleans())
def test_ids_spell_the_text_and_end_once(prompt: str, chosen: str, rejected: str, as_chat: bool) -> None:
    tokenizer = build_tokenizer(CHATML if as_chat else None, eos="<|im_end|>")
    example = chat([("user", prompt)], chosen, rejected) if as_chat else plain(prompt, chosen, rejected)
    pair = tokenize_pair(example, tokenizer, None, None)
    if isinstance(pair, str):
        assert pair == tokenization.EQUAL_TOKENS and chosen == rejected
        return
    stops = stop_token_ids(tokenizer)
    assert pair.prompt_ids == tokenize_prompt(tokenizer, example.prompt)
    for response, text in ((pair.chosen, chosen), (pair.rejected, rejected)):
        assert decode_response(tokenizer, response.ids) == text
        assert response.ended and [token in stops for token in response.ids].index(True) == len(response.ids) - 1


def test_template_that_renders_the_prompt_differently_gives_a_reason() -> None:
    changing = "{% if add_generation_prompt %}OPEN{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    found = tokenize_pair(CHATS[0], build_tokenizer(changing), None, None)
    assert str(found).startswith(f"{PROMPT_RENDERED_DIFFERENTLY}; set tokenizer.chat_template to one that writes")


THOUGHTFUL = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.revindex > 2 and not preserve_thinking %}"
    "{{ m.content[:1] }}{% else %}{{ m.content }}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt and (enable_thinking is undefined or enable_thinking) %}<think>{% endif %}"
)
"""Opens a block of thoughts that it does not write before a response, and shortens earlier turns."""


@pytest.mark.parametrize("options", [{}, {"enable_thinking": True}])
def test_the_argument_that_keeps_the_prompt_is_named(options: dict[str, Any]) -> None:
    tokenizer = build_tokenizer(THOUGHTFUL)
    remedy = f"{PROMPT_RENDERED_DIFFERENTLY}; set chat_template_kwargs: {{enable_thinking: false}}"
    assert tokenize_pair(CHATS[0], tokenizer, None, None, template_options=options) == remedy
    kept = tokenize_pair(CHATS[0], tokenizer, None, None, template_options={"enable_thinking": False})
    assert isinstance(kept, TokenizedPair)


def test_the_argument_that_keeps_earlier_turns_is_named() -> None:
    tokenizer, without = build_tokenizer(THOUGHTFUL), {"enable_thinking": False}
    example = chat([("user", "a")], "no", "yes")
    turns = [{"role": role, "content": words} for role, words in (("assistant", "one"), ("user", "b"))]
    several = replace(example, chosen=[*turns, *example.chosen])
    found = tokenize_pair(several, tokenizer, None, None, template_options=without, all_turns=True)
    assert found == f"{TURNS_RENDERED_DIFFERENTLY}; set chat_template_kwargs: {{preserve_thinking: true}}"
    kept = tokenize_pair(
        several, tokenizer, None, None, template_options={**without, "preserve_thinking": True}, all_turns=True
    )
    assert isinstance(kept, TokenizedPair)


def test_template_that_refuses_the_messages_gives_a_reason() -> None:
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    )
    tokenizer = build_tokenizer(refusing)
    reason = tokenize_pair(CHATS[1], tokenizer, None, None)
    assert isinstance(reason, str) and "no system turn" in reason
    assert isinstance(tokenize_pair(CHATS[0], tokenizer, None, None), TokenizedPair)
    with pytest.raises(ModelError, match="no system turn"):
        tokenize_prompt(tokenizer, CHATS[1].prompt)


def test_template_options_reach_the_template() -> None:
    template = "{% if shout is defined %}LOUD{% endif %}" + CHATML
    tokenizer = build_tokenizer(template)
    loud = tokenize_pair(CHATS[0], tokenizer, None, None, template_options={"shout": True})
    assert isinstance(loud, TokenizedPair)
    assert tokenizer.decode(loud.prompt_ids).startswith("LOUD")
    assert tokenize_prompt(tokenizer, CHATS[0].prompt, {"shout": True}) == loud.prompt_ids


# --- limits ----------------------------------------------------------------------------------------------------------


def test_long_prompt_gives_a_reason() -> None:
    tokenizer = build_tokenizer(None)
    length = len(pair_of(plain(), tokenizer).prompt_ids)
    assert isinstance(tokenize_pair(plain(), tokenizer, length, None), TokenizedPair)
    assert tokenize_pair(plain(), tokenizer, length - 1, None) == f"{limits.PROMPT_TOO_LONG} ({length - 1})"


def test_long_response_is_cut_and_has_no_stop_token() -> None:
    tokenizer = build_tokenizer(None)
    example = plain(chosen=" blue and green and blue")
    whole = pair_of(example, tokenizer).chosen
    cut = pair_of(example, tokenizer, (None, len(whole.ids) - 1)).chosen
    assert (whole.ended, cut.ended) == (True, False)
    assert cut.ids == whole.ids[:-1] and tokenizer.eos_token_id not in cut.ids
    assert pair_of(example, tokenizer, (None, 1)).chosen.text == tokenizer.decode(whole.ids[:1])


def test_cut_chat_response_keeps_its_form() -> None:
    tokenizer = build_tokenizer(CHATML)
    cut = pair_of(CHATS[0], tokenizer, (None, 2)).chosen
    assert cut.text == [{"role": "assistant", "content": tokenizer.decode(cut.ids)}]


def test_responses_equal_after_the_cut_give_a_reason() -> None:
    example = plain(chosen=" blue and blue", rejected=" blue and green")
    assert tokenize_pair(example, build_tokenizer(None), None, 1) == tokenization.EQUAL_TOKENS


def test_stop_token_inside_and_empty_response_give_reasons() -> None:
    tokenizer = build_tokenizer(None)
    assert tokenize_pair(plain(chosen=" a</s> b"), tokenizer, None, None) == limits.STOP_TOKEN_INSIDE
    assert tokenize_pair(plain(chosen="</s>"), tokenizer, None, None) == tokenization.EMPTY_RESPONSE_TOKENS


# --- models and misuse -----------------------------------------------------------------------------------------------


def test_chats_without_template_are_an_error_with_the_remedy() -> None:
    for call in (lambda t: tokenize_pair(CHATS[0], t, None, None), lambda t: tokenize_prompt(t, CHATS[0].prompt)):
        with pytest.raises(ModelError, match=r"no chat template.*instruction-tuned"):
            call(build_tokenizer(None))


def test_mixed_formats_are_an_error() -> None:
    with pytest.raises(DataError, match="row 0 mixes"):
        tokenize_pair(replace(CHATS[0], prompt="text"), build_tokenizer(), None, None)


def test_tokenizer_larger_than_the_embedding() -> None:
    tokenizer = build_tokenizer()
    check_tokenizer_fits(tokenizer, LlamaConfig(vocab_size=len(tokenizer)))
    with pytest.raises(ModelError, match=rf"size {len(tokenizer)}\).*has 10 rows.*resize_token_embeddings"):
        check_tokenizer_fits(tokenizer, LlamaConfig(vocab_size=10))


def test_decoding_stops_at_the_first_stop_token_and_drops_special_tokens() -> None:
    tokenizer = build_tokenizer(CHATML)
    ids = tokenizer("<s> the sky<|im_end|>\n and</s>", add_special_tokens=False)["input_ids"]
    assert decode_response(tokenizer, ids) == " the sky"
    assert decode_response(tokenizer, ids, frozenset({tokenizer.eos_token_id})) == " the sky\n and"
