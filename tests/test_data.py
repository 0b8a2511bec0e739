"""The data reader: every accepted format, every bad input, every kind of source."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptpo.data import (
    PromptExample,
    fingerprint,
    iter_examples,
    iter_prompts,
    open_rows,
    problems,
    read_examples,
    read_prompts,
    require_rows,
)
from adaptpo.data import fingerprint as fingerprint_function
from adaptpo.errors import DataError
from adaptpo.types import Dropped, PreferenceExample

ROWS = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(5)]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def read_one(row: dict[str, Any], text_format: Any = "messages") -> PreferenceExample | Dropped:
    (result,) = iter_examples([row], text_format)
    return result


def parts(row: dict[str, Any], text_format: Any = "messages") -> tuple[Any, Any, Any]:
    example = read_one(row, text_format)
    assert isinstance(example, PreferenceExample), example
    return example.prompt, example.chosen, example.rejected


def reason(row: dict[str, Any], text_format: Any = "messages") -> str:
    result = read_one(row, text_format)
    assert isinstance(result, Dropped), result
    return result.reason


# --- formats ---------------------------------------------------------------------------------------------------------


def test_explicit_strings_are_taken_as_they_are() -> None:
    row = {"prompt": "Q: ", "chosen": "yes ", "rejected": " no", "score": 3}
    assert read_one(row) == PreferenceExample(0, "Q: ", "yes ", " no", {"score": 3})


def test_explicit_messages_with_replies_alone() -> None:
    prompt = [system("be brief"), user("hi"), assistant("hello"), user("again")]
    row = {"prompt": prompt, "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert parts(row) == (prompt, [assistant("a")], [assistant("b")])


def test_explicit_messages_repeated_in_the_conversations() -> None:
    prompt = [system("be brief"), user("hi")]
    row = {"prompt": prompt, "chosen": [*prompt, assistant("a")], "rejected": [*prompt, assistant("b")]}
    assert parts(row) == (prompt, [assistant("a")], [assistant("b")])


def test_implicit_messages_share_their_longest_beginning() -> None:
    shared = [system("s"), user("u1"), assistant("a1"), user("u2")]
    row = {"chosen": [*shared, assistant("a")], "rejected": [*shared, assistant("b")]}
    assert parts(row) == (shared, [assistant("a")], [assistant("b")])


def test_prompt_string_that_copies_the_first_user_message_is_not_repeated() -> None:
    row = {
        "prompt": "hi",
        "chosen": [system("s"), user("hi"), assistant("a")],
        "rejected": [system("s"), user("hi"), assistant("b")],
        "messages": [user("hi"), assistant("a")],
        "score_chosen": 8.0,
    }
    example = read_one(row)
    assert isinstance(example, PreferenceExample)
    assert example.prompt == [system("s"), user("hi")]
    assert example.columns == {"messages": row["messages"], "score_chosen": 8.0}


def test_prompt_string_beside_bare_replies_becomes_the_user_turn() -> None:
    row = {"prompt": "hi", "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert parts(row) == ([user("hi")], [assistant("a")], [assistant("b")])


def test_prompt_messages_beside_reply_strings() -> None:
    row = {"prompt": [user("hi")], "chosen": "a", "rejected": "b"}
    assert parts(row) == ([user("hi")], [assistant("a")], [assistant("b")])


def test_text_parts_are_joined_and_none_keys_go() -> None:
    said = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {
        "prompt": [{**user(said), "tool_calls": None}],
        "chosen": [{**assistant("x"), "weight": 2}],
        "rejected": [assistant("y")],
    }
    assert parts(row) == ([user("ab")], [{**assistant("x"), "weight": 2}], [assistant("y")])


def test_message_ids_do_not_hide_the_shared_prompt() -> None:
    row = {"chosen": [{**user("u"), "id": 1}, assistant("a")], "rejected": [{**user("u"), "id": 2}, assistant("b")]}
    assert parts(row)[1:] == ([assistant("a")], [assistant("b")])


TRANSCRIPT = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: what?\n\nAssistant:"


def test_transcripts_become_messages() -> None:
    row = {"chosen": TRANSCRIPT + " I said hello. ", "rejected": TRANSCRIPT + " I said nothing."}
    expected = [user("hi"), assistant("hello"), user("what?")]
    assert parts(row) == (expected, [assistant("I said hello.")], [assistant("I said nothing.")])


def test_transcripts_stay_text_where_asked() -> None:
    row = {"chosen": TRANSCRIPT + " I said hello. ", "rejected": TRANSCRIPT + " I said nothing."}
    assert parts(row, "text") == (TRANSCRIPT, " I said hello. ", " I said nothing.")


def test_shared_opening_words_of_transcript_replies_stay_in_the_reply() -> None:
    row = {"chosen": TRANSCRIPT + " I am sure.", "rejected": TRANSCRIPT + " I am not."}
    assert parts(row, "text")[1:] == (" I am sure.", " I am not.")


def test_explicit_transcript_prompt_with_plain_replies() -> None:
    row = {"prompt": TRANSCRIPT, "chosen": " yes", "rejected": " no"}
    assert parts(row) == ([user("hi"), assistant("hello"), user("what?")], [assistant("yes")], [assistant("no")])
    assert parts(row, "text") == (TRANSCRIPT, " yes", " no")


def test_a_reply_that_quotes_a_dialogue_stays_a_reply() -> None:
    row = {"prompt": "Write a dialogue.", "chosen": TRANSCRIPT + " a", "rejected": TRANSCRIPT + " b"}
    assert parts(row) == (row["prompt"], row["chosen"], row["rejected"])


def test_prompt_column_that_the_transcripts_repeat() -> None:
    row = {"prompt": "hi", "chosen": TRANSCRIPT + " a", "rejected": TRANSCRIPT + " b"}
    assert parts(row)[1:] == ([assistant("a")], [assistant("b")])


def test_plain_strings_without_prompt_follow_trl_but_keep_words_whole() -> None:
    assert parts({"chosen": "The sky is blue.", "rejected": "The sky is green."}) == ("The sky is", " blue.", " green.")
    assert parts({"chosen": "The sky is blue.", "rejected": "The sky is black."}) == ("The sky is", " blue.", " black.")


@given(prompt=st.text("ab \n"), chosen=st.text("ab \n"), rejected=st.text("ab \n"))
def test_shared_words_are_cut_without_loss(prompt: str, chosen: str, rejected: str) -> None:
    row = {"chosen": prompt + chosen, "rejected": prompt + rejected}
    result = read_one(row)
    if isinstance(result, PreferenceExample):
        assert isinstance(result.prompt, str) and isinstance(result.chosen, str) and isinstance(result.rejected, str)
        assert (result.prompt + result.chosen, result.prompt + result.rejected) == (row["chosen"], row["rejected"])


LINE = st.text("abc :HumanAssistant\n", min_size=1).map(lambda text: " ".join(text.split())).filter(bool)


@given(turns=st.lists(st.tuples(LINE, LINE), max_size=3), question=LINE, chosen=LINE, rejected=LINE)
def test_transcript_round_trip(turns: list[tuple[str, str]], question: str, chosen: str, rejected: str) -> None:
    shared = "".join(f"\n\nHuman: {asked}\n\nAssistant: {said}" for asked, said in turns)
    shared += f"\n\nHuman: {question}\n\nAssistant:"
    result = read_one({"chosen": f"{shared} {chosen}", "rejected": f"{shared} {rejected}"})
    if chosen == rejected:
        assert result == Dropped(0, problems.EQUAL)
        return
    expected = [message for asked, said in turns for message in (user(asked), assistant(said))]
    assert result == PreferenceExample(0, [*expected, user(question)], [assistant(chosen)], [assistant(rejected)])


# --- rows left out ---------------------------------------------------------------------------------------------------

U, A, B = user("u"), assistant("a"), assistant("b")
BAD_ROWS = {
    "null chosen": ({"prompt": "p", "chosen": None, "rejected": "b"}, problems.EMPTY_CHOSEN),
    "blank rejected": ({"prompt": "p", "chosen": "a", "rejected": " \n"}, problems.EMPTY_REJECTED),
    "empty message list": ({"prompt": [U], "chosen": [], "rejected": [B]}, problems.EMPTY_CHOSEN),
    "blank reply": ({"chosen": [U, assistant(" ")], "rejected": [U, B]}, problems.EMPTY_CHOSEN),
    "no reply": ({"chosen": [U, A], "rejected": [U]}, problems.EMPTY_REJECTED),
    "number": ({"prompt": "p", "chosen": 1, "rejected": "b"}, problems.NOT_TEXT),
    "number as prompt": ({"prompt": 7, "chosen": "a", "rejected": "b"}, problems.NOT_TEXT),
    "mixed": ({"prompt": "p", "chosen": [A], "rejected": "b"}, problems.MIXED_FORMATS),
    "equal strings": ({"prompt": "p", "chosen": "a", "rejected": "a"}, problems.EQUAL),
    "equal messages": ({"chosen": [U, A], "rejected": [U, A]}, problems.EQUAL),
    "equal implicit strings": ({"chosen": "same", "rejected": "same"}, problems.EQUAL),
    "equal transcripts": ({"chosen": TRANSCRIPT + " a", "rejected": TRANSCRIPT + " a "}, problems.EQUAL),
    "nothing shared": ({"chosen": [U, A], "rejected": [user("v"), B]}, problems.NO_SHARED_PROMPT),
    "other prompt": ({"prompt": [user("v")], "chosen": [U, A], "rejected": [U, B]}, problems.NO_SHARED_PROMPT),
    "no shared words": ({"chosen": "yes", "rejected": "no"}, problems.NO_SHARED_WORDS),
    "one transcript": ({"chosen": TRANSCRIPT + " a", "rejected": "hi"}, problems.NO_SHARED_PROMPT),
    "no reply in one transcript": (
        {"chosen": TRANSCRIPT + " a", "rejected": "\n\nHuman: hi"},
        problems.NO_FINAL_REPLY,
    ),
    "two system texts": (
        {"prompt": "p", "system": "s", "system_prompt": "t", "chosen": "a", "rejected": "b"},
        problems.TWO_SYSTEM_TEXTS,
    ),
    "a system text in a list": (
        {"prompt": "p", "system": ["s"], "chosen": "a", "rejected": "b"},
        problems.NOT_A_PART.format("system"),
    ),
    "an input that is no text": (
        {"instruction": "p", "input": {"a": 1}, "chosen": "a", "rejected": "b"},
        problems.NOT_A_PART.format("input"),
    ),
    "transcripts part early": (
        {"chosen": TRANSCRIPT + " a", "rejected": TRANSCRIPT.replace("hello", "hey") + " b"},
        problems.PARTED,
    ),
    "empty last reply": ({"chosen": TRANSCRIPT + " ", "rejected": TRANSCRIPT + " b"}, problems.EMPTY_CHOSEN),
    "ends with Human": (
        {"chosen": TRANSCRIPT + " a\n\nHuman: x", "rejected": TRANSCRIPT + " b"},
        problems.NO_FINAL_REPLY,
    ),
    "two replies in a row": (
        {"chosen": TRANSCRIPT + " a\n\nAssistant: b", "rejected": TRANSCRIPT + " a\n\nAssistant: c"},
        problems.PROMPT_END,
    ),
    "empty prompt": ({"prompt": " ", "chosen": "a", "rejected": "b"}, problems.EMPTY_PROMPT),
    "null prompt": ({"prompt": None, "chosen": "a", "rejected": "b"}, problems.EMPTY_PROMPT),
    "empty prompt list": ({"prompt": [], "chosen": [A], "rejected": [B]}, problems.EMPTY_PROMPT),
    "blank question": ({"prompt": [user(" ")], "chosen": [A], "rejected": [B]}, problems.EMPTY_PROMPT),
    "prompt ends with the response": ({"prompt": [U, A], "chosen": [A], "rejected": [B]}, problems.REPEATED_BEGINNING),
    "system alone": ({"prompt": [system("s")], "chosen": [A], "rejected": [B]}, problems.PROMPT_END),
    "reply by the user": ({"chosen": [U, user("x")], "rejected": [U, B]}, problems.NO_FINAL_REPLY),
    "tool call": ({"chosen": [U, {**A, "tool_calls": [{"x": "f"}]}], "rejected": [U, B]}, problems.BAD_CALLS),
    "tools column": ({"prompt": "p", "chosen": "a", "rejected": "b", "tools": "hammer"}, problems.BAD_TOOLS),
    "image part": ({"prompt": [user([{"type": "image"}])], "chosen": [A], "rejected": [B]}, problems.NOT_TEXT_CONTENT),
    "image column": ({"prompt": "p", "chosen": "a", "rejected": "b", "images": ["x"]}, problems.NOT_TEXT_CONTENT),
    "share-gpt keys": ({"prompt": [{"from": "human"}], "chosen": [A], "rejected": [B]}, problems.BAD_MESSAGE),
    "null content": ({"prompt": [user(None)], "chosen": [A], "rejected": [B]}, problems.BAD_MESSAGE),
    "odd role": ({"prompt": [{"role": "x", "content": "x"}], "chosen": [A], "rejected": [B]}, problems.UNKNOWN_ROLE),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row_is_left_out_with_its_reason(name: str) -> None:
    row, expected = BAD_ROWS[name]
    assert reason(row) == expected
    assert reason(row, "text") == expected


@pytest.mark.parametrize("blank", ["\r\n\r\n", "\n \n", "\n\t\r\n"])
def test_a_transcript_of_any_line_ends_is_read_alike(blank: str) -> None:
    """As a CSV file has them that was saved on Windows."""
    row = {"chosen": TRANSCRIPT + " I will", "rejected": TRANSCRIPT + " I will not"}
    written = {name: text.replace("\n\n", blank) for name, text in row.items()}
    expected, found = (next(iter(iter_examples([each]))) for each in (row, written))
    assert isinstance(found, PreferenceExample) and found == expected


def test_a_single_turn_of_a_transcript_is_a_prompt_as_several_are() -> None:
    one, several = (
        {"prompt": prompt, "chosen": "a", "rejected": "b"}
        for prompt in ("\n\nHuman: hi", "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: hi")
    )
    assert next(iter(iter_examples([one]))).prompt == [user("hi")]
    assert next(iter(iter_examples([several]))).prompt == [user("hi"), assistant("yes"), user("hi")]


TEXTS = {"prompt": "p", "chosen": "a", "rejected": "b"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(("name", "value"), [("system", "s"), ("history", [["u", "a"]]), ("tools", [TOOL])])
def test_strings_are_turns_in_all_rows_or_in_none(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON lines may leave the column out where it is empty, also in the first row."""
    first, second = iter_examples([TEXTS, TEXTS | {name: value}])
    assert first.prompt == [user("p")] and second.prompt[-1] == user("p")  # type: ignore[union-attr]
    monkeypatch.setattr("adaptpo.data.examples.LOOK_AHEAD", 1)
    with pytest.raises(DataError, match=f"row 1 is the first with a column `{name}`.* the first 1 were read as text"):
        list(iter_examples([TEXTS, TEXTS | {name: value}]))
    assert len(list(iter_examples([TEXTS | {name: None}, TEXTS | {name: value}]))) == 2


def test_row_numbers_count_dropped_rows_too() -> None:
    rows = [ROWS[0], {"prompt": "p", "chosen": "a", "rejected": "a"}, {"prompt": "p"}, ROWS[1]]
    results = list(iter_examples(rows))
    assert [result.row for result in results] == [0, 1, 2, 3]
    assert [isinstance(result, Dropped) for result in results] == [False, True, True, False]


# --- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "renames"),
    [
        (
            {"question": "q", "response_j": "a", "response_k": "b"},
            ["`question` to `prompt`", "`response_j` to `chosen`"],
        ),
        ({"prompt": "q", "Chosen": "a", "rejectd": "b"}, ["`Chosen` to `chosen`", "`rejectd` to `rejected`"]),
        ({"question": "q", "chosen": "a b", "rejected": "a c"}, ["`question` to `prompt`"]),
        ({"text": "q"}, ["found text", "accepted: `chosen` and `rejected`"]),
    ],
)
def test_misnamed_columns_are_an_error_that_names_the_remedy(row: dict[str, Any], renames: list[str]) -> None:
    with pytest.raises(DataError) as error:
        read_one(row)
    assert all(rename in str(error.value) for rename in renames)
    assert all(column in str(error.value) for column in row)


def test_question_column_beside_conversations_is_a_further_column() -> None:
    example = read_one({"question": "q", "chosen": [U, A], "rejected": [U, B]})
    assert isinstance(example, PreferenceExample) and example.columns == {"question": "q"}


def test_nothing_kept_is_an_error_with_the_reasons_counted() -> None:
    require_rows(1, {}, "data.jsonl")
    with pytest.raises(DataError, match=r"data.jsonl.*none of 5 rows.*3 x empty prompt; 2 x chosen equals rejected"):
        require_rows(0, Counter({problems.EQUAL: 2, problems.EMPTY_PROMPT: 3}), "data.jsonl")
    with pytest.raises(DataError, match="holds no rows"):
        require_rows(0, Counter(), [])
    assert list(iter_examples([])) == []


# --- sources ---------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".csv"):
        datasets.Dataset.from_list(rows).to_csv(str(path))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress((lines if ".jsonl" in path.name else json.dumps(rows)).encode()))
    else:
        path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows, indent=1), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.jsonl.gz", "d.json.gz", "d.csv", "d.parquet"])
def test_every_file_format_gives_the_same_examples(name: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / name)
    assert list(read_examples(path)) == list(iter_examples(ROWS))
    assert list(read_examples(str(path))) == list(iter_examples(ROWS))


def test_json_ending_with_json_lines_inside(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    assert list(open_rows(path)) == ROWS


def test_rows_can_be_read_twice(tmp_path: Path) -> None:
    rows = open_rows(write_rows(tmp_path / "d.jsonl"))
    assert list(rows) == list(rows) == ROWS


def test_csv_keeps_words_that_look_like_nothing(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('prompt,chosen,rejected\np,NA,"1,5"\n', encoding="utf-8")
    assert list(open_rows(path)) == [{"prompt": "p", "chosen": "NA", "rejected": "1,5"}]


def test_saved_and_in_memory_datasets(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    both = datasets.DatasetDict(train=data, test=data.select([1]))
    data.save_to_disk(str(tmp_path / "one"))
    assert list(open_rows(data.with_format(None, columns=["prompt"]))) == [{"prompt": row["prompt"]} for row in ROWS]
    everything = data.with_format("numpy", columns=["prompt"], output_all_columns=True)
    assert list(open_rows(everything)) == ROWS
    with pytest.raises(DataError, match="apply the function with map"):
        open_rows(data.with_transform(lambda rows: rows))
    both.save_to_disk(str(tmp_path / "two"))
    assert list(open_rows(data)) == list(open_rows(data.with_format("numpy"))) == ROWS
    assert list(open_rows(data.to_iterable_dataset())) == ROWS
    assert list(open_rows(tmp_path / "one")) == list(open_rows(tmp_path / "two")) == list(open_rows(both)) == ROWS
    assert list(open_rows(tmp_path / "two", "test")) == list(open_rows(both, "test")) == ROWS[1:2]


@pytest.mark.parametrize("names", [("a.jsonl", "b.jsonl", "c.csv"), ("train.csv", "extra.csv")])
def test_a_file_of_rows_that_would_not_be_read_is_named(names: tuple[str, ...], tmp_path: Path) -> None:
    """`datasets` takes the most common format, and files with the name of a split alone."""
    for name in names:
        (tmp_path / name).write_text('{"a": 1}\n' if name.endswith("jsonl") else "a\n1\n")
    with pytest.raises(DataError, match=rf"1 of its files would not be read \({names[-1]}\).* as a list in `data`"):
        open_rows(str(tmp_path))


def test_names_that_occur_twice_are_refused(tmp_path: Path) -> None:
    """Python keeps the last value of a name, and pyarrow the last column."""
    row = '{"prompt": "p", "chosen": "good", "rejected": "bad", "chosen": "other"}'
    (tmp_path / "a.jsonl").write_text(row + "\n")
    (tmp_path / "a.json").write_text(f"[{row}]")
    columns = [pa.array(["p"]), pa.array(["good"]), pa.array(["other"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["prompt", "chosen", "chosen"]), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.parquet"):
        with pytest.raises(DataError, match=r"'chosen'.* twice"):
            list(open_rows(str(tmp_path / name)))


def test_folder_of_files_with_splits(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl")
    write_rows(tmp_path / "test.jsonl", ROWS[:2])
    assert list(open_rows(tmp_path)) == ROWS
    assert list(open_rows(tmp_path, "test")) == ROWS[:2]
    with pytest.raises(DataError, match=r"no split 'dev'; available: train, test"):
        open_rows(tmp_path, "dev")


def test_missing_splits_name_the_available_ones(tmp_path: Path) -> None:
    both = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), eval=datasets.Dataset.from_list(ROWS))
    both.save_to_disk(str(tmp_path / "saved"))
    for source in (both, tmp_path / "saved"):
        with pytest.raises(DataError, match="available: train, eval"):
            open_rows(source, "test")
    with pytest.raises(DataError, match="available: train"):
        open_rows(write_rows(tmp_path / "d.jsonl"), "test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", '{"a": 1}\n\n{"a": \n', "line 3: not valid JSON.*fix or delete"),
        ("d.jsonl", '{"a": 1}\n[1]\n', "line 2: found a JSON list"),
        ("d.json", '[{"a": 1},\n 2,,]', "line 2: not valid JSON"),
        ("d.json", "[1]", "item 0: found a JSON int"),
        ("d.csv", "a,b\n1,2\n1,2,3\n", "line 3: the number of fields"),
        ("d.csv", "a,b\n1\n", "line 2: the number of fields"),
        (
            "d.csv",
            'a,b\n1,"2\n3,4\n',
            r"after line 1: a quoted field does not end .*\(unexpected end of data\)",
        ),
        ("d.csv", 'a,b\n1,"2', "close each quote"),
        ("d.csv", 'a,b\n1,2\n1,"2" x\n', "after line 2: a quoted field"),
        ("d.parquet", "no parquet", "not a readable .parquet file"),
        ("d.jsonl.gz", "no gzip", "not a readable .jsonl.gz file"),
        ("d.txt", "x", "accepted endings: .jsonl"),
    ],
)
def test_malformed_files_say_where_and_what(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        list(open_rows(path))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(DataError, match="not in UTF-8"):
        list(open_rows(path))


def test_missing_path_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such file\. A path is looked up"):
        open_rows(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such file\. A path is looked up"):
        open_rows("nothing.jsonl")
    with pytest.raises(DataError, match="no such file or folder, and not a hub id"):
        open_rows(tmp_path / "nothing")
    with pytest.raises(DataError, match="cannot be read as a data set"):
        open_rows(tmp_path)


def test_hub_out_of_reach_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"some/data.*split 'train'.*offline.*local copy"):
        open_rows("some/data")


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_of_prompt_only_and_preference_data() -> None:
    assert list(read_prompts([{"prompt": "p", "level": 1}])) == [PromptExample(0, "p", {"level": 1})]
    assert list(read_prompts([{"prompt": [U]}])) == [PromptExample(0, [U])]
    assert list(read_prompts([{"chosen": [U, A], "rejected": [U, B], "level": 1}])) == [
        PromptExample(0, [U], {"level": 1})
    ]


def test_transcript_prompts() -> None:
    messages = [user("hi"), assistant("hello"), user("what?")]
    open_ended = TRANSCRIPT.removesuffix("\n\nAssistant:")
    assert [p.prompt for p in iter_prompts([{"prompt": TRANSCRIPT}, {"prompt": open_ended}])] == [messages, messages]  # type: ignore[union-attr]
    assert list(iter_prompts([{"prompt": TRANSCRIPT}], "text")) == [PromptExample(0, TRANSCRIPT)]


def test_bad_prompts_are_left_out() -> None:
    rows = [{"prompt": None}, {"prompt": "  "}, {"messages": [U, A]}, {"prompt": TRANSCRIPT + " said"}]
    expected = [problems.EMPTY_PROMPT, problems.EMPTY_PROMPT, problems.PROMPT_END, problems.PROMPT_END]
    assert [result.reason for result in iter_prompts(rows) if isinstance(result, Dropped)] == expected
    with pytest.raises(DataError, match="rename `instruction` to `prompt`"):
        list(iter_prompts([{"instruction": "p"}]))


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl")
    before, folder_before = fingerprint(path), fingerprint(tmp_path)
    assert before == fingerprint(path) and list(before) == [str(path)]
    assert list(folder_before) == [f"{tmp_path}/train.jsonl"]
    write_rows(path, ROWS[1:])
    assert fingerprint(path) != before and fingerprint(tmp_path) != folder_before


def test_fingerprint_of_rows_in_memory() -> None:
    data = datasets.Dataset.from_list(ROWS)
    assert fingerprint(data) == fingerprint(datasets.Dataset.from_list(ROWS)) == fingerprint(ROWS)
    assert fingerprint(data) != fingerprint(data.select([1, 0, 2, 3, 4]))


def test_fingerprint_ignores_what_mapping_leaves_behind(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path))
    before = fingerprint(tmp_path)
    datasets.load_from_disk(str(tmp_path)).map(lambda row: {"extra": 1})
    assert fingerprint(tmp_path) == before


def test_fingerprint_samples_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("sys").modules[fingerprint_function.__module__]
    monkeypatch.setattr(module, "WHOLE_FILE_LIMIT", 10)
    monkeypatch.setattr(module, "MIB", 4)
    path = tmp_path / "large.jsonl"
    path.write_bytes(bytes(200))
    before = fingerprint(path)[str(path)]
    path.write_bytes(bytes(199) + b"x")
    assert before.startswith("sampled-sha256:") and fingerprint(path)[str(path)] != before
    path.write_bytes(bytes(201))
    assert fingerprint(path)[str(path)] != before


def test_fingerprint_of_a_hub_id_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    assert fingerprint("some/data") == {"some/data (default, train)": "revision:unknown"}
