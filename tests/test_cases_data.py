"""What people's rows look like, and what must happen: after public reports on other tools.

Each expected value is what the model's own chat template, or the tool that the rows come from, makes of the row.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from adaptpo.cli import main
from adaptpo.cli.annotate import annotate_file
from adaptpo.config.recipe import load_recipe
from adaptpo.data import iter_examples, iter_prompts, open_rows, problems
from adaptpo.data.rendered import with_words_rendered
from adaptpo.data.stored import DEEPEST, LONGEST, stored_messages
from adaptpo.data.tokenization import tokenize_pair, tokenize_prompt
from adaptpo.errors import ConfigError, DataError, ModelError
from adaptpo.types import Dropped, PreferenceExample
from tests.tiny import byte_tokenizer, save_policy, write_jsonl

Rows = list[dict[str, Any]]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def parts(row: dict[str, Any], text_format: Any = "messages") -> tuple[Any, Any, Any]:
    (example,) = iter_examples([row], text_format)
    assert isinstance(example, PreferenceExample), example
    return example.prompt, example.chosen, example.rejected


def prompt_of(row: dict[str, Any], text_format: Any = "messages") -> Any:
    (example,) = iter_prompts([row], text_format)
    return example.reason if isinstance(example, Dropped) else example.prompt


def reason(row: dict[str, Any]) -> str:
    (result,) = iter_examples([row])
    assert isinstance(result, Dropped), result
    return result.reason


def refusal(row: dict[str, Any], text_format: Any = "messages") -> str:
    with pytest.raises(DataError) as error:
        list(iter_examples([row], text_format))
    return str(error.value)


TEA = ([user("say tea 0")], [assistant("tea")], [assistant("ice")])


# --- messages stored as strings (case 04) ----------------------------------------------------------------------------


def as_array(messages: Rows) -> str:
    return str(np.array(messages, dtype=object))


def with_numpy_texts(messages: Rows) -> str:
    return repr([{key: np.str_(value) for key, value in message.items()} for message in messages])


WRITERS: dict[str, Callable[[Rows], str]] = {
    "json": json.dumps,
    "indented json": lambda messages: json.dumps(messages, indent=2),
    "json twice": lambda messages: json.dumps(json.dumps(messages)),
    "repr": repr,
    "tuple": lambda messages: repr(tuple(messages)),
    "numpy": as_array,
    "numpy repr": lambda messages: repr(np.array(messages, dtype=object)),
    "numpy texts": with_numpy_texts,
    "spaces around": lambda messages: f" \n{messages!r}\n",
    "sharegpt": lambda messages: repr([{"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]} for m in messages]),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_messages_stored_as_strings_are_messages(name: str) -> None:
    write = WRITERS[name]
    row = dict(zip(("prompt", "chosen", "rejected"), map(write, TEA), strict=True))
    assert parts(row) == TEA
    assert prompt_of({"prompt": row["prompt"]}) == TEA[0]
    whole = {"chosen": write([*TEA[0], *TEA[1]]), "rejected": write([*TEA[0], *TEA[2]])}
    assert parts(whole) == TEA
    assert parts({"conversations": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}) == TEA


def test_messages_in_a_csv_file(tmp_path: Path) -> None:
    """The file of the case, as `to_csv` writes it; two turns come apart by a line break, as pandas writes arrays."""
    rows = [[repr(text) for text in TEA], [as_array([system("s"), user("it's\nso")]), *map(repr, TEA[1:])]]
    file = io.StringIO()
    csv.writer(file).writerows([["prompt", "chosen", "rejected"], *rows])
    (tmp_path / "pairs.csv").write_text(file.getvalue())
    examples = list(iter_examples(open_rows(tmp_path / "pairs.csv")))
    assert [example.prompt for example in examples if isinstance(example, PreferenceExample)] == [
        TEA[0],
        [system("s"), user("it's\nso")],
    ]


# numpy's own texts end before trailing NULs, so that a writer by numpy cannot store them.
CONTENT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda t: t.strip() and t[-1] != "\0")


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(CONTENT, min_size=1, max_size=4), name=st.sampled_from(sorted(WRITERS)))
def test_stored_messages_are_what_was_stored(texts: list[str], name: str) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    found = stored_messages(WRITERS[name](messages)) or []
    assert [message.get("content", message.get("value")) for message in found] == texts


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'say tea",
        '[{"role": "user", "content": "say tea"}',
        "[{'role': 'user', 'content': datetime(2024, 1, 1)}]",
        "[{'role': 'user', 'content': 'a'} ... {'role': 'user', 'content': 'b'}]",
        "[{'from': 'human', 'value': open('x')}]",
        "[{'role': 'user', 'content': " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1) + "}]",
        "[{'role': 'user', 'content': " + "[" * 200_000,
        "[{'role': 'user', 'content': " + "-" * 200_000,
        "[{'role': 'user', 'content': '" + "x" * LONGEST + "'}]",
        "[{'role': 'user', 'content': " + "9" * 10_000 + "}]",
    ],
    ids=lambda text: text[:40],
)
def test_stored_messages_that_cannot_be_parsed_leave_the_row_out(text: str) -> None:
    assert reason({"prompt": text, "chosen": "a", "rejected": "b"}) == problems.UNREADABLE_MESSAGES
    assert prompt_of({"prompt": text}) == problems.UNREADABLE_MESSAGES


@pytest.mark.parametrize(
    "text",
    [
        "[a list]",
        "[{'name': 'x'}]",
        '[{"from": "Rome", "to": "Paris", "value": 3}]',
        "{'answer': 1}",
        "[{",
        '[{"key": "value"',
        '{"role": "user"}',
        "[1, 2]",
        '"quoted"',
        '[{"role": "user", "content": "q"}]\nSummarize this conversation. ',
    ],
)
def test_text_that_only_looks_like_a_list_stays_text(text: str) -> None:
    assert parts({"prompt": text, "chosen": text + "a", "rejected": text + "b"})[0] == text


def test_an_empty_list_beside_stored_messages_is_empty() -> None:
    row = dict(zip(("prompt", "chosen", "rejected"), map(repr, TEA), strict=True))
    assert reason(row | {"chosen": "[]"}) == problems.EMPTY_CHOSEN
    assert parts({"prompt": "a list", "chosen": "[]", "rejected": "[1]"}) == ("a list", "[]", "[1]")


# --- half surrogates (case 13) ---------------------------------------------------------------------------------------

HALF = "half \ud83d"
CATS = [
    {"prompt": [user(f"say cat {n}")], "chosen": [assistant("cat")], "rejected": [assistant("dog")]} for n in range(8)
]


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_half_a_surrogate_pair_leaves_the_row_out(column: str) -> None:
    for text in (HALF, "\udc00", "\ud83d\u00e9"):
        row = {"prompt": "a", "chosen": "b", "rejected": "c"} | {column: text}
        assert reason(row) == problems.NOT_UNICODE == "text that is not valid Unicode"
        role = user if column == "prompt" else assistant
        assert reason(CATS[0] | {column: [role(text)]}) == problems.NOT_UNICODE
        assert reason(CATS[0] | {column: repr([role(text)])}) == problems.NOT_UNICODE
        assert reason(CATS[0] | {column: [role([{"type": "text", "text": text}])]}) == problems.NOT_UNICODE
    assert reason(CATS[0] | {"system": HALF}) == problems.NOT_UNICODE
    assert reason(CATS[0] | {"history": [[HALF, "a"]]}) == problems.NOT_UNICODE
    assert prompt_of({"prompt": HALF}) == prompt_of({"prompt": [user(HALF)]}) == problems.NOT_UNICODE
    assert parts(CATS[0] | {"prompt": [user("\U0001f600")]})[0] == [user("\U0001f600")]


def test_half_a_surrogate_pair_in_bytes_leaves_one_row_out(tmp_path: Path) -> None:
    """Some programs write the half itself, which is not UTF-8."""
    lines = [json.dumps(row).encode() for row in CATS[:2]]
    (tmp_path / "pairs.jsonl").write_bytes(lines[0].replace(b"cat 0", b"cat \xed\xa0\xbd") + b"\n" + lines[1])
    found = list(iter_examples(open_rows(tmp_path / "pairs.jsonl")))
    assert [isinstance(example, Dropped) for example in found] == [True, False]
    (tmp_path / "pairs.csv").write_bytes(b"prompt,chosen,rejected\na \xed\xa0\xbd,b,c\na,b,c\n")
    assert [isinstance(example, Dropped) for example in iter_examples(open_rows(tmp_path / "pairs.csv"))] == [True, False]  # fmt: skip # noqa: E501


# --- rows of other tools (cases 05 and 18) ---------------------------------------------------------------------------

BRIEF = system("be brief")
CAT = ([assistant("cat")], [assistant("dog")])
RESPONSES = {"chosen": "cat", "rejected": "dog"}
PAST = [user("u1"), assistant("a1"), user("u2"), assistant("a2")]


def sent(sender: str, words: str) -> dict[str, Any]:
    return {"from": sender, "value": words}


SHAREGPT = {"conversations": [sent("human", "q")], "chosen": sent("gpt", "cat"), "rejected": sent("gpt", "dog")}


CONVERSATIONS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "orca": ({"system": "be brief", "question": "say cat 0", **RESPONSES}, [BRIEF, user("say cat 0")]),
    "orca without this row's system": ({"system": "", "question": "say cat 0", **RESPONSES}, [user("say cat 0")]),
    "orca null": ({"system": None, "question": "say cat 0", **RESPONSES}, [user("say cat 0")]),
    "orca with messages": (
        {"system": "be brief", "question": "q", "chosen": CAT[0], "rejected": CAT[1]},
        [BRIEF, user("q")],
    ),
    "open orca": ({"system_prompt": "be brief", "question": "q", **RESPONSES}, [BRIEF, user("q")]),
    "system beside a string": ({"system": "be brief", "prompt": "say cat 0", **RESPONSES}, [BRIEF, user("say cat 0")]),
    "system beside messages": ({**CATS[0], "system": "be brief"}, [BRIEF, user("say cat 0")]),
    "system beside conversations": (
        {"chosen": [user("q"), *CAT[0]], "rejected": [user("q"), *CAT[1]], "system": "be brief"},
        [BRIEF, user("q")],
    ),
    "system beside transcripts": (
        {
            "system": "be brief",
            "chosen": "\n\nHuman: q\n\nAssistant: cat",
            "rejected": "\n\nHuman: q\n\nAssistant: dog",
        },
        [BRIEF, user("q")],
    ),
    "system twice": ({**CATS[0], "prompt": [BRIEF, user("q")], "system": "be brief "}, [BRIEF, user("q")]),
    "alpaca": (
        {"system": "be brief", "instruction": "translate", "input": "chat", **RESPONSES},
        [BRIEF, user("translate\nchat")],
    ),
    "alpaca with history": (
        {"instruction": "i", "input": "", "history": [["u1", "a1"], ["u2", "a2"]], **RESPONSES},
        [*PAST, user("i")],
    ),
    "alpaca in csv": (
        {"system": "be brief", "instruction": "i", "input": "", "history": "[['u1', 'a1'], ['u2', 'a2']]", **RESPONSES},
        [BRIEF, *PAST, user("i")],
    ),
    "alpaca alone": ({"instruction": "i", **RESPONSES}, [user("i")]),
    "history as messages": ({"prompt": [user("i")], "history": PAST, **RESPONSES}, [*PAST, user("i")]),
    "history in the prompt": (
        {"prompt": [BRIEF, *PAST, user("i")], "history": PAST, **RESPONSES},
        [BRIEF, *PAST, user("i")],
    ),
    "input in the prompt": (
        {"prompt": [user("translate: chat")], "input": "chat", **RESPONSES},
        [user("translate: chat")],
    ),
    "sharegpt": (SHAREGPT, [user("q")]),
    "sharegpt with system": ({**SHAREGPT, "system": "be brief"}, [BRIEF, user("q")]),
    "sharegpt as lists": (
        {**SHAREGPT, "chosen": [SHAREGPT["chosen"]], "rejected": [SHAREGPT["rejected"]]},
        [user("q")],
    ),
    "sharegpt as json": ({name: json.dumps(value) for name, value in SHAREGPT.items()}, [user("q")]),
    "sharegpt with strings": ({**SHAREGPT, **RESPONSES}, [user("q")]),
    "sharegpt, roles": (
        {"conversations": [BRIEF, user("q")], "chosen": CAT[0][0], "rejected": CAT[1][0]},
        [BRIEF, user("q")],
    ),
    "sharegpt, turns": (
        {
            **SHAREGPT,
            "conversations": [sent("system", "be brief"), sent("human", "u1"), sent("gpt", "a1"), sent("human", "q")],
        },
        [BRIEF, *PAST[:2], user("q")],
    ),
    "sharegpt that holds the chosen reply": (
        {**SHAREGPT, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "cat"}]},
        [user("q")],
    ),
    "sharegpt conversations": (
        {name: [sent("human", "q"), sent("gpt", reply)] for name, reply in RESPONSES.items()},
        [user("q")],
    ),
    "columnar file": (
        {
            "prompt": [{"from": "human", "value": "q", "role": None, "content": None}],
            "chosen": CAT[0],
            "rejected": CAT[1],
        },
        [user("q")],
    ),
    "axolotl": ({"messages": [user("q")], "chosen": CAT[0][0], "rejected": CAT[1][0]}, [user("q")]),
    "swift": ({"messages": [BRIEF, user("q"), *CAT[0]], "rejected_response": "dog"}, [BRIEF, user("q")]),
    "swift messages": ({"messages": [user("q"), *CAT[0]], "rejected_messages": [user("q"), *CAT[1]]}, [user("q")]),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_rows_of_other_tools_become_conversations(name: str) -> None:
    row, prompt = CONVERSATIONS[name]
    assert parts(row) == (prompt, *CAT)


def test_system_turn_in_the_rendered_prompt() -> None:
    (example,) = iter_examples([{**CATS[0], "system": "be brief"}])
    tokenizer = byte_tokenizer()
    pair = tokenize_pair(example, tokenizer, None, None)  # type: ignore[arg-type]
    expected = "<|system|>be brief<|end|><|user|>say cat 0<|end|><|assistant|>"
    assert tokenizer.decode(pair.prompt_ids) == expected  # type: ignore[union-attr]


def test_rows_without_responses_are_prompts_of_other_tools() -> None:
    assert prompt_of({"system": "be brief", "prompt": "q"}) == [BRIEF, user("q")]
    assert prompt_of({"system": "be brief", "question": "q"}) == [BRIEF, user("q")]
    assert prompt_of({"instruction": "translate", "input": "chat", "output": "cat"}) == [user("translate\nchat")]
    assert prompt_of({"instruction": "square", "input": 5, "output": "25"}) == [user("square\n5")]
    assert prompt_of({"instruction": "who?", "context": "Bob is king.", "output": "Bob"}) == [
        user("who?\nBob is king.")
    ]
    assert prompt_of({"conversations": SHAREGPT["conversations"]}) == [user("q")]
    assert prompt_of({"messages": [user("q")]}) == [user("q")]
    assert prompt_of({"prompt": [user("q")], "history": [["u1", "a1"]]}) == [*PAST[:2], user("q")]


def test_json_lines_that_leave_out_an_empty_system_text_are_conversations_too() -> None:
    rows = [{"system": "be brief", "prompt": "a", **RESPONSES}, {"prompt": "b", **RESPONSES}]
    assert [example.prompt for example in iter_examples(rows)] == [[BRIEF, user("a")], [user("b")]]  # type: ignore[union-attr]


def test_a_messages_column_that_is_plain_text_is_not_the_prompt() -> None:
    row = {"messages": "notes", "chosen": "The sky is blue", "rejected": "The sky is green"}
    assert parts(row) == ("The sky is", " blue", " green")


def test_other_columns_stay_for_reward_functions() -> None:
    (example,) = iter_examples([{"system": "be brief", "question": "q", "answer": 3, **RESPONSES}])
    assert example.columns == {"system": "be brief", "question": "q", "answer": 3}  # type: ignore[union-attr]


def test_plain_text_keeps_what_needs_no_chat_template() -> None:
    alpaca = {"instruction": "translate", "input": "chat", **RESPONSES}
    assert parts(alpaca, "text") == ("translate\nchat", "cat", "dog")
    assert parts({"system": " ", "prompt": "q", **RESPONSES}, "text") == ("q", "cat", "dog")


@pytest.mark.parametrize(
    "row",
    [
        {"system": "be brief", "question": "q", **RESPONSES},
        {"system": "be brief", "prompt": "q", **RESPONSES},
        {"instruction": "i", "history": [["u1", "a1"]], **RESPONSES},
        {"system": "s", "chosen": "\n\nHuman: q\n\nAssistant: cat", "rejected": "\n\nHuman: q\n\nAssistant: dog"},
    ],
)
def test_system_text_without_chat_template_is_refused_with_the_remedy(row: dict[str, Any]) -> None:
    message = refusal(row, "text")
    assert "has no chat template" in message and "set tokenizer.chat_template" in message and "`prompt`" in message


def test_system_text_beside_a_prompt_that_is_only_implied_is_refused() -> None:
    message = refusal({"system": "s", "chosen": "The sky is blue", "rejected": "The sky is green"})
    assert "into a column `prompt`" in message


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("input", {"prompt": "translate", "input": "chat", **RESPONSES}),
        ("input", {**CATS[0], "input": "chat"}),
        ("input", {"chosen": [user("q"), *CAT[0]], "rejected": [user("q"), *CAT[1]], "input": "chat"}),
        ("input", {"prompt": "which concatenation?", "input": "cat", **RESPONSES}),
        ("input", {"prompt": "square it", "input": 5, **RESPONSES}),
        ("context", {"prompt": "who is king?", "context": "Bob is king.", **RESPONSES}),
        ("history", {"prompt": "translate", "history": "they spoke French", **RESPONSES}),
    ],
)
def test_text_beside_the_prompt_is_never_left_out_silently(name: str, row: dict[str, Any]) -> None:
    message = refusal(row)
    assert f"the column `{name}` holds text that is not in the prompt" in message
    assert "data.columns: {instruction: prompt}" in message and f"{{other_{name}: {name}}}" in message
    assert parts(row | {name: None})


@pytest.mark.parametrize("name", ["messages", "conversations"])
@pytest.mark.parametrize("earlier", [[user("who is king?"), *CAT[0]], [{"role": "system", "content": "be brief"}]])
def test_turns_before_the_prompt_are_never_left_out_silently(name: str, earlier: list[dict[str, str]]) -> None:
    row = {"prompt": "and now?", name: [*earlier, user("and now?"), *CAT[0]], **RESPONSES}
    said = refusal(row)
    assert f"the column `{name}` holds turns that come before the prompt" in said
    assert f"{{other_{name}: {name}}}" in said and "{last_turn: prompt}" in said
    assert parts(row | {"prompt": [*earlier, user("and now?")]})[0] == [*earlier, user("and now?")]
    rest = {key: value for key, value in row.items() if key != "prompt"} | {"last_turn": "and now?"}
    assert parts(rest | {name: [*earlier, user("and now?")]})[0] == [*earlier, user("and now?")]


def test_a_prompt_that_is_said_twice_is_the_last_turn() -> None:
    dialogue = [user("go on"), *CAT[0], user("more?"), *CAT[1], user("go  on")]
    for turns in (dialogue, [*dialogue, *CAT[0]]):
        assert "turns that come before" in refusal({"prompt": "go on", "messages": turns, **RESPONSES})


def test_a_conversation_that_goes_on_after_the_prompt_is_no_part_of_it() -> None:
    """UltraChat's rows have the first turn as prompt beside the whole dialogue."""
    dialogue = [user("who is king?"), *CAT[0], user("and now?"), *CAT[1]]
    plain = {"prompt": "who is king?", **RESPONSES}
    assert parts(plain | {"messages": dialogue}) == parts(plain)
    assert parts(plain | {"messages": [{"neither": 1}]}) == parts(plain)
    whole = {"prompt": dialogue[:3], **RESPONSES}
    assert parts(whole | {"messages": dialogue}) == parts(whole)


def test_two_system_texts_and_a_malformed_history_leave_the_row_out() -> None:
    assert reason({**CATS[0], "prompt": [system("a"), user("q")], "system": "b"}) == problems.TWO_SYSTEM_TEXTS
    for history in ([["one"]], [["u", "a", "b"]], {"u": "a"}, [[1, 2]]):
        assert reason({**CATS[0], "history": history}) == problems.UNREADABLE_HISTORY


def test_rows_without_a_second_response_are_refused() -> None:
    for row in ({"prompt": "p", "completion": "c"}, {"instruction": "i", "output": "o"}, {"messages": [user("q")]}):
        message = refusal(row)
        assert "supervised fine-tuning" in message and "second, worse response" in message
    assert "As `eval_data`, the prompts alone are enough" in refusal({"prompt": "p"})


WRAPPED = {"data": CATS[:2], "version": "1"}


@pytest.mark.parametrize("indent", [None, 1])
def test_json_object_around_a_list_of_rows(indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(WRAPPED, indent=indent))
    assert list(open_rows(tmp_path / "d.json")) == CATS[:2]


@pytest.mark.parametrize("row", [CATS[0], {"prompt": [user("q")]}, SHAREGPT, {"prompt": "p", **RESPONSES, "scores": [{"a": 1}]}])  # fmt: skip # noqa: E501
@pytest.mark.parametrize("indent", [None, 1])
def test_json_object_that_is_a_row(row: dict[str, Any], indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(row, indent=indent))
    assert list(open_rows(tmp_path / "d.json")) == [row]


def test_json_objects_that_are_no_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    for content, message in (
        ({"train": CATS[:2], "test": CATS[2:4]}, r"several lists of rows \(train, test\)"),
        ({"prompt": {"0": "a", "1": "b"}, "chosen": {"0": "c", "1": "d"}}, "orient='records', lines=True"),
        ({"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}, "orient='records', lines=True"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            list(open_rows(path))
    path.write_text('{\n "data": [\n  {"prompt": 1,}\n ]\n}')
    with pytest.raises(DataError, match="line 3: not valid JSON"):
        list(open_rows(path))


# --- data.columns ----------------------------------------------------------------------------------------------------

QUESTIONS = [{"question": f"q{n}", "better": "cat", "worse": "dog", "prompt": "unused"} for n in range(2)]


def test_columns_are_read_under_other_names() -> None:
    names = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    rows = open_rows(QUESTIONS, columns=names)
    assert list(rows) == list(rows) == [{"prompt": f"q{n}", "chosen": "cat", "rejected": "dog"} for n in range(2)]
    swapped = {"chosen": "worse", "worse": "better"}
    assert next(iter(open_rows(QUESTIONS[:1], columns=swapped))) == {
        "question": "q0", "prompt": "unused", "chosen": "dog", "worse": "cat"
    }  # fmt: skip


def test_the_advice_names_every_missing_column() -> None:
    with pytest.raises(DataError, match=r"columns `chosen`, `rejected`.*`preferred` to `chosen`.*that is `rejected`"):
        list(iter_examples([{"foo": "q", "preferred": "a", "bar": "b"}]))


def test_columns_that_no_row_has_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"reads `prompt` from 'qestion', which no row has: did you mean 'question'\?"):
        list(open_rows(QUESTIONS, columns={"prompt": "qestion"}))
    with pytest.raises(DataError, match="found question, better, worse, prompt"):
        list(open_rows(QUESTIONS, columns={"prompt": "zzz"}))
    with pytest.raises(DataError, match=r"'qestion'.*'bettr', which no row has: did you mean 'better'\?; .*'wors'"):
        list(open_rows(QUESTIONS, columns={"prompt": "qestion", "chosen": "bettr", "rejected": "wors"}))
    late = [QUESTIONS[0], QUESTIONS[1] | {"system": "s"}]
    assert [row.get("system_text") for row in open_rows(late, columns={"system_text": "system"})] == [None, "s"]


# --- templates that leave words out ----------------------------------------------------------------------------------

ALL = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
SPEAKS = "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == ROLE %}{{ m['content'] }}{% endif %}<|end|>{% endfor %}"  # noqa: E501


def example(prompt: Any, chosen: Any = CAT[0], rejected: Any = CAT[1]) -> PreferenceExample:
    return PreferenceExample(0, prompt, chosen, rejected)


def with_template(template: str) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template + OPEN
    return tokenizer


@pytest.mark.parametrize(
    ("template", "role"),
    [
        ("<|user|><|end|>", "user's|assistant's"),
        (SPEAKS.replace("ROLE", "'assistant'"), "user's"),
        (SPEAKS.replace("ROLE", "'user'"), "assistant's"),
        (ALL.replace("m['content']", "m['text']|default('')"), "user's|assistant's"),
        (ALL.replace("m['content']", "m['content'][0]['text']|default('')"), "user's|assistant's"),
    ],
)
def test_templates_that_render_nothing_of_the_words_are_refused(template: str, role: str) -> None:
    tokenizer = with_template(template)
    with pytest.raises(ModelError, match=rf"renders nothing of the ({role}) words.* Set tokenizer\.chat_template"):
        list(with_words_rendered([example([user("q")])], tokenizer))
    plain = example("q", "a", "b")
    assert list(with_words_rendered([plain], tokenizer)) == [plain]


def test_templates_that_leave_out_the_system_turn_leave_out_its_rows() -> None:
    examples = [example([user("q")]), example([BRIEF, user("q")])]
    without_system = ALL.replace("messages %}", "messages if m['role'] != 'system' %}")
    kept, left_out = with_words_rendered(examples, with_template(without_system))
    assert kept == examples[0] and left_out == Dropped(0, "the chat template renders nothing of the system's words")
    assert list(with_words_rendered(examples, with_template(ALL))) == examples


def test_words_are_probed_with_the_arguments_of_the_row() -> None:
    switched = (
        "{% for m in messages if m.role != 'system' or show_system %}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    prompt = [{"role": "system", "content": "be brief"}, user("q")]
    shown, hidden = ({"chat_template_kwargs": {"show_system": value}} for value in (True, False))
    examples = [replace(example(prompt), columns=columns) for columns in (hidden, shown, {})]
    left_out = [isinstance(found, Dropped) for found in with_words_rendered(examples, with_template(switched))]
    assert left_out == [True, False, True]
    options = {"show_system": True}
    left_out = [isinstance(found, Dropped) for found in with_words_rendered(examples, with_template(switched), options)]
    assert left_out == [True, False, False]


@pytest.mark.parametrize("filter_", ["|trim", "|upper", ".split('</think>')[-1]"])
def test_templates_that_change_words_are_not_refused(filter_: str) -> None:
    tokenizer = with_template(ALL.replace("m['content']", f"m['content']{filter_}"))
    assert list(with_words_rendered([example([user("q")])], tokenizer)) == [example([user("q")])]


# --- tokenizers that put a space before every text -------------------------------------------------------------------


def llama_2_like(merges: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers converts Llama 2's: the normalizer puts a space before every text, even a space."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    corpus = ["A: blue", "the sky  is   blue and green", "A:  no\n\nB: yes", "blue", "a.b a\nb"]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    size = 400 if merges else 0
    backend.train_from_iterator(corpus * 4, trainers.BpeTrainer(vocab_size=size, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


LLAMA_2 = llama_2_like()


def spelled(prompt: str, response: str) -> str:
    pair = tokenize_pair(PreferenceExample(0, prompt, response, response + "!"), LLAMA_2, None, None)
    assert not isinstance(pair, str), pair
    assert pair.prompt_ids == tokenize_prompt(LLAMA_2, prompt)
    return LLAMA_2.decode(pair.prompt_ids + pair.chosen.ids[:-1], clean_up_tokenization_spaces=False)


def test_no_space_is_added_where_prompt_and_response_meet_with_spaces() -> None:
    together = LLAMA_2("A:  blue")["input_ids"]
    assert together[: len(ids := LLAMA_2("A: ")["input_ids"])] != ids, "the tokenizer must merge across the border"
    assert spelled("A: ", " blue") == "A:  blue"


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.text("Ablue. \n\u00e9", min_size=1, max_size=10).filter(str.strip),
    response=st.text("Ablue. \n\u00e9", min_size=1, max_size=10).filter(str.strip),
)
def test_prompt_and_response_spell_the_text(prompt: str, response: str) -> None:
    assert spelled(prompt, response) == prompt + response


# --- through the commands --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("policies")
    silent = with_template(SPEAKS.replace("ROLE", "'user'"))
    names = {name: save_policy(folder / name, chat=name != "plain") for name in ("chat", "plain", "silent")}
    silent.save_pretrained(folder / "silent")
    return names


def write_recipe(folder: Path, policy: str, **changes: Any) -> str:
    values = {
        "model": policy,
        "data": str(folder / "pairs.jsonl"),
        "output_dir": str(folder / "run"),
        "method": "dpo",
        "num_iterations": 1,
        "warmup_epochs": 0,
        "max_prompt_length": 96,
        "generation": {"max_new_tokens": 10},
        "training": {"learning_rate": 1e-3, "per_device_train_batch_size": 4},
        "show_progress": False,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values | changes))
    return str(folder / "recipe.yaml")


def status_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code  # type: ignore[return-value]


def offline(folder: Path) -> Rows:
    return pq.read_table(folder / "run/data/offline.parquet").to_pylist()


def left_out(folder: Path) -> Rows:
    path = folder / "run/dropped.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_train_and_plan_leave_one_row_out(policies: dict[str, str], tmp_path: Path) -> None:
    rows = [*CATS[:3], {**CATS[3], "chosen": [assistant(HALF)]}, *CATS[4:]]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    recipe = write_recipe(tmp_path, policies["chat"])
    assert status_of("plan", recipe) == 0
    assert status_of("train", recipe) == 0
    assert len(offline(tmp_path)) == 7
    assert left_out(tmp_path) == [{"phase": "data", "row": 3, "reason": problems.NOT_UNICODE}]


NOTES: list[list[Any]] = []


def note_reward(prompts: Any, completions: Any, note: Any, **_: Any) -> list[float]:
    NOTES.append(note)
    return [float(number) for number in range(len(completions))]


def test_half_surrogates_in_other_columns_reach_the_reward_function(policies: dict[str, str], tmp_path: Path) -> None:
    """Held-out rows too: one with half an emoji in its prompt is left out of the evaluation."""
    write_jsonl(tmp_path / "pairs.jsonl", [{**row, "note": HALF} for row in CATS])
    held_out = [{"prompt": [user(HALF)], "note": ""}, {"prompt": [user("q")], "note": HALF}]
    write_jsonl(tmp_path / "held.jsonl", held_out)
    NOTES.clear()
    recipe = write_recipe(
        tmp_path,
        policies["chat"],
        method="online_dpo",
        reward="python:tests.test_cases_data:note_reward",
        eval_data=str(tmp_path / "held.jsonl"),
        generation={"max_new_tokens": 4, "num_generations": 2},
    )
    assert status_of("train", recipe) == 0
    assert len(offline(tmp_path)) == 8 and left_out(tmp_path) == [
        {"phase": "eval_data", "row": 0, "reason": problems.NOT_UNICODE}
    ]
    assert {note for notes in NOTES for note in notes} == {HALF}


def test_annotate_reads_the_same_rows(tmp_path: Path) -> None:
    samples = [
        {"prompt": repr([user("q")]), "response": "a", "note": HALF},
        {"prompt": "q", "response": HALF, "note": ""},
        {"prompt": "[{'role': 'user', 'content': 'q", "responses": ["a", "b"], "note": ""},
    ]
    write_jsonl(tmp_path / "in.jsonl", samples)
    asked: list[Any] = []

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        asked.extend(prompts)
        return [1.0] * len(completions)

    counts = annotate_file(str(tmp_path / "in.jsonl"), reward, tmp_path / "out.jsonl")
    assert counts["rewards"] == 1 and counts["without a reward"] == 3
    assert counts[f"rows left out: {problems.NOT_UNICODE}"] == 1
    assert counts[f"rows left out: {problems.UNREADABLE_MESSAGES}"] == 1
    assert asked == [[user("q")]]
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    rewards: Rows = [{"reward": 1.0}, {"reward": None}, {"rewards": [None, None]}]
    assert found == [sample | reward for sample, reward in zip(samples, rewards, strict=True)]
    with pytest.raises(DataError, match=r"Parquet cannot hold; let --out end with \.jsonl"):
        annotate_file(str(tmp_path / "in.jsonl"), reward, tmp_path / "out.parquet")


def test_column_map_of_a_recipe(policies: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"asked": f"say {n}", "guide": "be brief", **RESPONSES} for n in range(4)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    data = {"path": str(tmp_path / "pairs.jsonl"), "columns": {"prompt": "asked", "system": "guide"}}
    recipe = write_recipe(tmp_path, policies["chat"], data=data)
    assert load_recipe(Path(recipe)).data.columns == data["columns"]
    assert status_of("train", recipe) == 0
    assert json.loads(offline(tmp_path)[0]["prompt"]) == [BRIEF, user("say 0")]
    capsys.readouterr()
    assert status_of("train", recipe, "--set", "data.columns.system=asked") == 2
    assert "inputs.data" in capsys.readouterr().err, "another column map is another data set"
    assert status_of("train", recipe, "--set", "data.columns.system=gide", "--set", f"output_dir={tmp_path}/b") == 2
    assert "from 'gide', which no row has: did you mean 'guide'?" in capsys.readouterr().err


def test_column_map_must_name_columns(policies: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.columns\.prompt"):
        load_recipe(Path(write_recipe(tmp_path, policies["chat"], data={"path": "d", "columns": {"prompt": ["a"]}})))


def test_refusals_of_the_commands(policies: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [{"system": "be brief", "question": "q", **RESPONSES}])
    for command in ("train", "plan"):
        assert status_of(command, write_recipe(tmp_path, policies["plain"])) == 2
        assert "set tokenizer.chat_template" in capsys.readouterr().err
    write_jsonl(tmp_path / "pairs.jsonl", CATS)
    for command in ("train", "plan"):
        recipe = write_recipe(tmp_path, policies["silent"], output_dir=str(tmp_path / "other"))
        assert status_of(command, recipe) == 2
        assert "chat template renders nothing of the assistant's words" in capsys.readouterr().err
