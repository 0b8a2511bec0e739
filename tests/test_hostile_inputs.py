"""More of what people bring: rows, files and models that look almost right. Each is read as meant, left out with its
reason, or refused with the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from tokenizers import normalizers, processors
from transformers import AutoConfig, AutoModelForCausalLM

from adaptpo.data import PromptExample, iter_examples, iter_prompts, open_rows, problems
from adaptpo.data.rendered import with_words_rendered
from adaptpo.data.tokenization import TokenizedPair, stop_token_ids, tokenize_pair, tokenize_prompt
from adaptpo.errors import DataError, ModelError
from adaptpo.models.dropout import turn_off_dropout
from adaptpo.types import Dropped, PreferenceExample
from tests.tiny import byte_tokenizer

Rows = list[dict[str, Any]]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


ANSWERS = {"chosen": "cat", "rejected": "dog"}
PAIR = ([user("q")], [assistant("cat")], [assistant("dog")])


def read(rows: Rows) -> list[Any]:
    """Prompt and responses of each row, or the reason for leaving it out."""
    found = iter_examples(rows)
    return [one.reason if isinstance(one, Dropped) else (one.prompt, one.chosen, one.rejected) for one in found]


# --- rows ------------------------------------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "f"}}
OPENAI = {
    "input": {"messages": [user("q")], "tools": [TOOL], "parallel_tool_calls": True},
    "preferred_output": [assistant("cat")],
    "non_preferred_output": [assistant("dog")],
}
CONTENT_PARTS = json.dumps([{"type": "text", "text": "q"}])
AS_MEANT: dict[str, tuple[dict[str, Any], Any]] = {
    "openai": (OPENAI, PAIR),
    "openai in csv": ({name: json.dumps(value) for name, value in OPENAI.items()}, PAIR),
    "an object around the messages": ({"prompt": json.dumps({"messages": [user("q")]}), **ANSWERS}, PAIR),
    "sharegpt object around the messages": (
        {"prompt": repr({"conversations": [{"from": "human", "value": "q"}]}), **ANSWERS},
        PAIR,
    ),
    "parts stored as a string": ({"prompt": [user(CONTENT_PARTS)], **ANSWERS}, PAIR),
    "parts with other keys of None": (
        {"prompt": [user([{"type": "text", "text": "q", "image_url": None}])], **ANSWERS},
        PAIR,
    ),
    "NaN beside the prompt": (
        {"prompt": [user("q")], "system": np.nan, "history": np.nan, "tools": np.nan, "chat_template_kwargs": np.nan}
        | ANSWERS,
        PAIR,
    ),
    "NaN as message key": ({"prompt": [{**user("q"), "name": None}], **ANSWERS}, PAIR),
    "NUL and byte order mark": (
        {"prompt": [user("\ufeffq\x00")], **ANSWERS},
        ([user("\ufeffq\x00")], [assistant("cat")], [assistant("dog")]),
    ),
    "UltraFeedback-binarized": (
        {"prompt": "q", "prompt_id": "x", "score_chosen": 8.0, "chosen": [user("q"), assistant("cat")]}
        | {"rejected": [user("q"), assistant("dog")], "messages": [user("q"), assistant("cat")]},
        PAIR,
    ),
    "orca with a name for the system": ({"system_prompt": "", "question": "q", **ANSWERS}, PAIR),
    "alpaca with nulls": ({"instruction": "q", "input": None, "history": None, "system": None, **ANSWERS}, PAIR),
    "sharegpt ranking": (
        {"conversations": [{"from": "human", "value": "q"}]}
        | {name: {"from": "gpt", "value": value} for name, value in ANSWERS.items()},
        PAIR,
    ),
    "a response as one message": (
        {"prompt": [user("q")], "chosen": assistant("cat"), "rejected": assistant("dog")},
        PAIR,
    ),
    "text that begins like parts": (
        {"prompt": [user('[{"type": "widget"}] is my config')], **ANSWERS},
        ([user('[{"type": "widget"}] is my config')], [assistant("cat")], [assistant("dog")]),
    ),
    "a JSON answer that is asked for": (
        {"prompt": "list", "chosen": '["a"]', "rejected": '["b"]'},
        ("list", '["a"]', '["b"]'),
    ),
    "JSON objects as answers": (
        {"prompt": "p", "chosen": '{"messages": "none"}', "rejected": '{"x": 1}'},
        ("p", '{"messages": "none"}', '{"x": 1}'),
    ),
}


@pytest.mark.parametrize("name", AS_MEANT)
def test_rows_are_read_as_meant(name: str) -> None:
    row, expected = AS_MEANT[name]
    assert read([row]) == [expected]


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "None as a response": ({"prompt": "q", "chosen": "a", "rejected": None}, problems.EMPTY_REJECTED),
    "NaN as a response": ({"prompt": "q", "chosen": np.nan, "rejected": "b"}, problems.EMPTY_CHOSEN),
    "NaN as the prompt": ({"prompt": np.nan, **ANSWERS}, problems.EMPTY_PROMPT),
    "responses that differ in space alone": ({"prompt": "q", "chosen": " cat", "rejected": "cat\n"}, problems.EQUAL),
    "half a surrogate pair in a call": (
        {"prompt": [user("q")], "chosen": [{"role": "assistant", "tool_calls": [{"name": "\ud83d"}]}], "rejected": "b"},
        problems.NOT_UNICODE,
    ),
    "half a surrogate pair in tools": (
        {"prompt": [user("q")], **ANSWERS, "tools": [{"name": "\ud83d"}]},
        problems.NOT_UNICODE,
    ),
    "the turns of an arena": (
        {"prompt": '["q", "r"]', "chosen": '["a", "b"]', "rejected": '["c", "d"]'},
        problems.LISTS_OF_TURNS,
    ),
    "an image among the parts": (
        {"prompt": [user(json.dumps([{"type": "image_url", "image_url": {"url": "u"}}]))], **ANSWERS},
        problems.NOT_TEXT_CONTENT,
    ),
    "a list of answers": ({"prompt": "q", "chosen": ["a", "b"], "rejected": ["c"]}, problems.LIST_OF_TEXTS),
    "bytes": ({"prompt": b"q", **ANSWERS}, problems.NOT_TEXT),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_rows_that_are_not_what_they_look_like_are_left_out(name: str) -> None:
    row, expected = LEFT_OUT[name]
    assert read([row]) == [expected]


def test_conventions_may_differ_within_a_file() -> None:
    """The first row decides which columns there must be; each row is read by its own."""
    rows = [
        {"prompt": [user("q")], **ANSWERS},
        {"conversations": [{"from": "human", "value": "q"}], **ANSWERS},
        {"chosen": [user("q"), assistant("cat")], "rejected": [user("q"), assistant("dog")]},
        {"instruction": "q", "input": "", **ANSWERS},
        OPENAI,
        {"question": "q", "chosen": "The cat is here", "rejected": "The cat is gone"},
    ]
    assert read(rows) == [PAIR] * 5 + [problems.EMPTY_PROMPT], "no words that the responses share become the prompt"


REFUSED = {
    "arena": (
        {"prompt": "q", "response_a": "a", "response_b": "b", "winner_model_a": 1},
        "two responses, `response_a` and `response_b`, and which of them is better differs by row",
    ),
    "SafeRLHF": (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1},
        r"`response_0` and `response_1`.* \(`better_response_id`\): write the better one into `chosen`",
    ),
    "HelpSteer3": (
        {"context": [user("q")], "response1": "a", "response2": "b", "overall_preference": -2},
        r"`response1` and `response2`.* \(`overall_preference`\)",
    ),
    "SHP": ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 0}, "`human_ref_A` and `human_ref_B`"),
    "AlpacaFarm": (
        {"instruction": "q", "input": "", "output_1": "a", "output_2": "b", "preference": 1},
        "`output_1` and `output_2`",
    ),
    "UltraFeedback": (
        {"instruction": "q", "completions": [{"response": "a"}, {"response": "b"}]},
        "several responses in `completions`",
    ),
    "LLaMA-Factory's older pairs": (
        {"instruction": "q", "input": "", "output": ["a", "b"]},
        "several responses in `output`",
    ),
    "sampled responses": (
        {"prompt": "q", "responses": ["a", "b"], "scores": [1, 0]},
        "several responses in `responses`",
    ),
    "HelpSteer": ({"prompt": "q", "response": "a", "helpfulness": 4}, "each row has one response only"),
    "pairs by other names": (
        {"instruction": "q", "chosen_response": "a", "rejected_response": "b"},
        "rename `chosen_response`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_of_other_kinds_are_refused_with_what_to_do(name: str) -> None:
    row, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        read([row])


def test_a_data_frame_with_missing_values(tmp_path: Path) -> None:
    frame = pandas.DataFrame([{"prompt": "q", "system": "s", **ANSWERS}, {"prompt": "q", **ANSWERS}])
    frame.to_parquet(tmp_path / "rows.parquet")
    expected = [([{"role": "system", "content": "s"}, *PAIR[0]], *PAIR[1:]), PAIR]
    assert read(list(open_rows(tmp_path / "rows.parquet"))) == read(frame.to_dict("records")) == expected


def test_prompts_of_openais_rows() -> None:
    (found,) = iter_prompts([OPENAI])
    assert isinstance(found, PromptExample)
    assert (found.prompt, found.columns["tools"]) == ([user("q")], [TOOL])


# --- files -----------------------------------------------------------------------------------------------------------

ROW = {"prompt": "q", **ANSWERS}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", b"\xef\xbb\xbf" + json.dumps(ROW).encode()),
        ("bom.csv", b"\xef\xbb\xbfprompt,chosen,rejected\nq,cat,dog\n"),
        ("crlf.jsonl", json.dumps(ROW).encode() + b"\r\n\r\n"),
        ("list.jsonl", json.dumps([ROW]).encode()),
        ("pretty.jsonl", json.dumps([ROW], indent=1).encode()),
        ("wrapped.json", json.dumps({"data": [ROW]}).encode()),
        ("lines.json", json.dumps(ROW).encode() + b"\n"),
        ("quoted.csv", b'"prompt","chosen","rejected"\r\n"q","cat","dog"\r\n'),
    ],
)
def test_files_that_other_programs_write(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(open_rows(tmp_path / name)) == [ROW]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("powershell.jsonl", json.dumps(ROW).encode("utf-16"), "not in UTF-8.*save the file in UTF-8"),
        ("latin.csv", "prompt,chosen,rejected\ncaf\u00e9,a,b\n".encode("latin-1"), "not in UTF-8"),
        ("excel.csv", b"prompt;chosen;rejected\nq;a;b\n", "separated by ';'; save them separated by commas"),
        ("tabs.csv", b"prompt\tchosen\trejected\nq\ta\tb\n", r"separated by '\\t'"),
        ("twice.csv", b"prompt,chosen,chosen\nq,a,b\n", "the column 'chosen' twice"),
        ("commas.csv", b"prompt,chosen,rejected\nq,a, then b,c\n", "number of fields differs"),
        ("cut.jsonl", b'{"prompt": "q", "chosen": "a', "line 1: not valid JSON"),
        ("book.xlsx", b"PK", "cannot tell the format"),
    ],
)
def test_files_that_cannot_be_read_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(open_rows(tmp_path / name))


# --- templates and tokenizers ----------------------------------------------------------------------------------------

LOOP = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def with_template(template: Any) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def pair(prompt: Any, tokenizer: Any, chosen: Any = PAIR[1], rejected: Any = PAIR[2]) -> Any:
    return tokenize_pair(PreferenceExample(0, prompt, chosen, rejected), tokenizer, None, None)


def text_of(tokenizer: Any, found: TokenizedPair) -> str:
    return tokenizer.decode(found.prompt_ids + found.chosen.ids, clean_up_tokenization_spaces=False)


def test_a_template_that_writes_bos_beside_a_tokenizer_that_does() -> None:
    tokenizer = with_template("{{ bos_token }}" + LOOP + OPEN)
    special = [("<bos>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=special
    )
    assert text_of(tokenizer, pair(*PAIR[:1], tokenizer)).count("<bos>") == 1
    assert pair("<bos>q", tokenizer, "cat", "dog").prompt_ids.count(tokenizer.bos_token_id) == 1


def test_a_template_that_writes_bos_twice_is_left_as_the_model_has_it() -> None:
    tokenizer = with_template("{{ bos_token }}{{ bos_token }}" + LOOP + OPEN)
    assert text_of(tokenizer, pair(*PAIR[:1], tokenizer)).count("<bos>") == 2


@pytest.mark.parametrize("pad", [None, "<|end|>", "<bos>"])
def test_padding_tokens_do_not_change_what_is_read(pad: str | None) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = pad
    assert text_of(tokenizer, pair(PAIR[0], tokenizer)) == "<|user|>q<|end|><|assistant|>cat<|end|>"


def test_a_tokenizer_without_bos_or_with_eos_beside_the_end_of_turn() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    tokenizer.eos_token = "<bos>"
    assert stop_token_ids(tokenizer) == {1, tokenizer.convert_tokens_to_ids("<|end|>")}
    assert text_of(tokenizer, pair(PAIR[0], tokenizer)).endswith("cat<|end|>")


def test_several_templates_by_name() -> None:
    """As Cohere's and Hermes' tokenizers have them: that for tools serves rows with tools."""
    tokenizer = with_template({"default": LOOP + OPEN, "tool_use": "{{ tools | tojson }}" + LOOP + OPEN})
    example = PreferenceExample(0, *PAIR, {"tools": [TOOL]})
    assert list(with_words_rendered([example], tokenizer)) == [example]
    found = tokenize_pair(example, tokenizer, None, None)
    assert text_of(tokenizer, found).startswith('[{"type": "function"')  # type: ignore[arg-type]
    assert text_of(tokenizer, pair(PAIR[0], tokenizer)).startswith("<|user|>")


@pytest.mark.parametrize(
    "template",
    [
        LOOP.replace("m['content']", "m['content'][0]['text']") + OPEN,
        LOOP.replace("m['content']", "m['content'] | map(attribute='text') | join") + OPEN,
        "{{ messages[0]['text'] }}" + OPEN,
    ],
)
def test_templates_of_content_parts_are_refused(template: str) -> None:
    with pytest.raises(ModelError, match="renders nothing of the"):
        list(with_words_rendered([PreferenceExample(0, *PAIR)], with_template(template)))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 1 + messages[0]['content'] }}", "unsupported operand"),
        ("{{ messages[7]['content']['x'] }}", "has no element 7"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content.missing() }}", "missing"),
    ],
)
def test_templates_that_fail_leave_the_row_out(template: str, words: str) -> None:
    tokenizer = with_template(template)
    found = pair(PAIR[0], tokenizer)
    assert isinstance(found, str) and "the chat template refuses the messages" in found and words in found
    with pytest.raises(ModelError, match=words):
        tokenize_prompt(tokenizer, PAIR[0])


def test_a_tokenizer_that_puts_a_space_before_everything_continues_words() -> None:
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend(" ")
    found = pair("The sk", tokenizer, "y", "ip")
    assert tokenizer.decode(found.prompt_ids + found.chosen.ids[:-1]).strip() == "The sky"


# --- dropout of other architectures ----------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
OLDER = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
WIDE = SMALL | {"intermediate_size": 32}
GROUPED = WIDE | {"num_key_value_heads": 2}
NOISY: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "opt": (SMALL | {"ffn_dim": 32, "word_embed_proj_dim": 32}, ("dropout", "attention_dropout", "layerdrop")),
    "gpt_neox": (WIDE, ("hidden_dropout", "attention_dropout")),
    "bloom": (SMALL | {"n_layer": 2, "n_head": 4}, ("hidden_dropout", "attention_dropout")),
    "gptj": (OLDER | {"rotary_dim": 4}, ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
    "phi": (WIDE, ("resid_pdrop", "embd_pdrop", "attention_dropout")),
    "starcoder2": (GROUPED, ("residual_dropout", "embedding_dropout", "attention_dropout")),
    "mixtral": (GROUPED, ("attention_dropout", "router_jitter_noise")),
    "gpt_bigcode": (OLDER, ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
}


@pytest.mark.parametrize("kind", NOISY)
def test_training_mode_without_dropout_is_evaluation_mode(kind: str) -> None:
    torch.manual_seed(0)
    sizes, rates = NOISY[kind]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **dict.fromkeys(rates, 0.5)))
    ids = torch.arange(2, 26)[None]
    with torch.no_grad():
        quiet, noisy = model.eval()(ids).logits, model.train()(ids).logits
        assert not torch.equal(quiet, noisy), "the model must have noise"
        turn_off_dropout(model)
        assert torch.allclose(quiet, model(ids).logits, atol=1e-6)
