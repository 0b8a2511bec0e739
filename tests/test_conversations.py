"""Conversations beyond one answer to a user: tools, prompts that begin the response, responses of several turns.

The oracles are transformers' `apply_chat_template` and TRL's DPOTrainer, over the chat templates that TRL ships.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import jinja2
import pyarrow.parquet as pq
import pytest
import torch
import trl
import yaml
from transformers import PreTrainedTokenizerFast
from trl import DPOTrainer

from adaptpo.annotation.build import Workplace, build_annotator
from adaptpo.annotation.function import FunctionAnnotator
from adaptpo.annotation.reward_model import RewardModelAnnotator, scored_ids
from adaptpo.annotation.server import VllmRewardServer, item_of
from adaptpo.annotation.tournament import Match
from adaptpo.cli import main
from adaptpo.config.reward import reward_parts
from adaptpo.data import iter_examples, iter_prompts, open_rows, problems, turns
from adaptpo.data.limits import SEVERAL_TURNS_CUT
from adaptpo.data.rendered import with_words_rendered
from adaptpo.data.templates import PROMPT_RENDERED_DIFFERENTLY, TURNS_RENDERED_DIFFERENTLY, options_of
from adaptpo.data.tokenization import (
    SEVERAL_TURNS,
    TokenizedPair,
    stop_token_ids,
    tokenize_pair,
    tokenize_prompt,
)
from adaptpo.errors import ConfigError, ModelError
from adaptpo.models.collate import GroupCollator
from adaptpo.models.logps import pair_logps
from adaptpo.models.packing import RowPacking
from adaptpo.models.shared_prompt.attention import sharing_prompts
from adaptpo.pipeline.phases.grpo import READ_OTHERWISE
from adaptpo.pipeline.reward_reading import RewardReading
from adaptpo.remote.endpoint import Access
from adaptpo.remote.store import AnswerStore
from adaptpo.types import Dropped, PreferenceExample, PreferencePair, Prompt, PromptGroup, Response
from tests.tiny import byte_tokenizer, save_policy, save_reward_model, tiny_model, write_jsonl

Rows = list[dict[str, Any]]
REFUSALS = (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError)
TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def calling(name: str = "weather", **arguments: Any) -> dict[str, Any]:
    function = {"type": "function", "id": "abcdefghi", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [function]}


def answer(content: str) -> dict[str, Any]:
    return {"role": "tool", "name": "weather", "content": content, "tool_call_id": "abcdefghi"}


PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where"}},
    "required": ["city"],
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells.", "parameters": PARAMETERS}}
ASKED = [user("Warm in Rome?")]
LOOKED = [*ASKED, calling(city="Rome"), answer("31")]


def row(prompt: Any, chosen: Any, rejected: Any, **more: Any) -> dict[str, Any]:
    as_turns = [[assistant(text)] if isinstance(text, str) else text for text in (chosen, rejected)]
    return {"prompt": prompt, "chosen": as_turns[0], "rejected": as_turns[1], **more}


def example(given: dict[str, Any]) -> PreferenceExample:
    (found,) = iter_examples([given])
    assert isinstance(found, PreferenceExample), found
    return found


def parts(given: dict[str, Any]) -> tuple[Any, Any, Any]:
    found = example(given)
    return found.prompt, found.chosen, found.rejected


def reason(given: dict[str, Any]) -> str:
    (found,) = iter_examples([given])
    assert isinstance(found, Dropped), found
    return found.reason


def prompt_of(given: dict[str, Any]) -> Any:
    (found,) = iter_prompts([given])
    return found.reason if isinstance(found, Dropped) else found.prompt


# --- tokens: TRL and transformers are the oracles --------------------------------------------------------------------

SPECIAL = re.compile(
    r"<\|[\w ]+\|>|<｜[^｜]+｜>|</?s>|<(?:bos|eos|end_of_turn|start_of_turn|turn)\|?>|<\|?turn\|?>|\[/?[A-Z_]+\]"
)


@cache
def tokenizer_of(template: Path) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with a shipped template, whose markers are special tokens."""
    tokenizer = byte_tokenizer()
    text = template.read_text()
    markers = sorted(set(SPECIAL.findall(text)))
    tokenizer.add_special_tokens({"additional_special_tokens": [*markers, "<|end|>"]})
    tokenizer.chat_template = text
    try:
        ends = SPECIAL.findall(tokenizer.apply_chat_template([user("q"), assistant("a")], tokenize=False))
    except REFUSALS:
        ends = []
    tokenizer.eos_token = ends[-1] if ends else "<|end|>"
    return tokenizer


class EachRow(list[Any]):
    """Rows that TRL may map; one that the chat template refuses becomes None."""

    def map(self, function: Any, fn_kwargs: dict[str, Any], **_: Any) -> EachRow:
        return EachRow(attempted(function, row, fn_kwargs) for row in self)


def attempted(function: Any, given: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return function(given, **arguments)
    except REFUSALS:
        return None


def by_trl(tokenizer: Any, rows: Rows) -> list[dict[str, list[int]] | None]:
    """What TRL's DPOTrainer makes of the rows; None if the template refuses the messages."""
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    own = SimpleNamespace(_tokenizer=tokenizer)
    return list(DPOTrainer._prepare_dataset(own, EachRow(rows), tokenizer, args, "train"))


def agrees(ours: list[int], theirs: list[int], eos: int) -> bool:
    """Equal up to the two rules by which responses end here: at the stop token, and with one."""
    return theirs[: len(ours)] == ours or ours == [*theirs, eos]


def compared(tokenizer: Any, given: dict[str, Any], theirs: dict[str, list[int]] | None) -> str:
    """The class of a comparison; `different` if no rule explains it."""
    try:
        (read,) = with_words_rendered([example(given)], tokenizer)
    except ModelError:
        return "refused: the template renders nothing of the words"
    if isinstance(read, Dropped):
        return f"left out: {read.reason}"
    ours = tokenize_pair(read, tokenizer, None, None, stop_token_ids(tokenizer), all_turns=True)
    if isinstance(ours, str):
        return f"left out: {ours}" if explains(ours, tokenizer, given, theirs) else "different"
    if theirs is None:
        return "different"
    sides = ((ours.chosen.ids, theirs["chosen_ids"]), (ours.rejected.ids, theirs["rejected_ids"]))
    same = ours.prompt_ids == theirs["prompt_ids"] and all(agrees(*s, tokenizer.eos_token_id) for s in sides)
    return "equal" if same else "different"


def explains(reason: str, tokenizer: Any, given: dict[str, Any], theirs: dict[str, list[int]] | None) -> bool:
    if theirs is None or "refuses the messages" in reason:
        return theirs is None and "refuses the messages" in reason
    if reason.startswith(PROMPT_RENDERED_DIFFERENTLY):
        return len(theirs["prompt_ids"]) < len(tokenize_prompt(tokenizer, given["prompt"], options_of(given)))
    return reason.startswith(SEVERAL_TURNS_LEFT_OUT)


SEVERAL_TURNS_LEFT_OUT = (TURNS_RENDERED_DIFFERENTLY, turns.NO_END)
WORDS = ["Warm in Rome?", "31 degrees.", "Cold", "no, \n\nreally: {}", "caf\u00e9", "  two  spaces "]


def conversation(draw: random.Random) -> dict[str, Any]:
    """A row as TRL takes it, perhaps with a system turn, tools, and calls before or in the responses."""

    def say() -> str:
        return draw.choice(WORDS) + str(draw.randrange(9))

    def exchange() -> Rows:
        return [calling(city=say()), answer(say())] if with_tools else [assistant(say()), user(say())]

    with_tools = draw.random() < 0.6
    prompt = [*([{"role": "system", "content": say()}] if draw.random() < 0.3 else []), user(say())]
    prompt += exchange() if draw.random() < 0.4 else []
    several = draw.random() < 0.3
    chosen = [
        *(exchange() if several else []),
        calling(city=say()) if with_tools and draw.random() < 0.2 else assistant(say()),
    ]
    given = row(prompt, chosen, [assistant("No.")])
    if with_tools:
        given["tools"] = [WEATHER] if draw.random() < 0.5 else json.dumps([WEATHER])
    if draw.random() < 0.2:
        given["chat_template_kwargs"] = {"enable_thinking": draw.random() < 0.5}
    return given


def test_tokens_are_those_of_trl_over_its_templates() -> None:
    counts: Counter[str] = Counter()
    draw = random.Random(0)
    for template in TEMPLATES:
        rows = [conversation(draw) for _ in range(12)]
        tokenizer = tokenizer_of(template)
        for given, theirs in zip(rows, by_trl(tokenizer, rows), strict=True):
            found = compared(tokenizer, given, theirs)
            counts[found] += 1
            assert found != "different", (template.name, given)
    print("\n" + "\n".join(f"{count:5} {name}" for name, count in counts.most_common()))
    assert counts["equal"] > 500


PREFIX = [*ASKED, assistant("It is ")]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_a_response_continues_the_turn_that_its_prompt_begins(template: Path) -> None:
    """Tokens and text are those of transformers for the open and for the whole conversation."""
    tokenizer = tokenizer_of(template)
    try:
        opened = tokenizer.apply_chat_template(PREFIX, continue_final_message=True, return_dict=False)
    except REFUSALS as error:
        found = tokenize_pair(example(row(PREFIX, "warm", "cold")), tokenizer, None, None)
        assert isinstance(found, str) and str(error).splitlines()[0] in found
        return
    found = tokenize_pair(example(row(PREFIX, "warm", "cold")), tokenizer, None, None)
    assert isinstance(found, TokenizedPair), found
    assert found.prompt_ids == opened == tokenize_prompt(tokenizer, PREFIX)
    whole = tokenizer.apply_chat_template([*ASKED, assistant("It is warm")], tokenize=False)
    ours = tokenizer.decode(found.prompt_ids + found.chosen.ids, clean_up_tokenization_spaces=False)
    assert whole.startswith(ours) or ours == whole + tokenizer.eos_token
    assert found.chosen.text == [assistant("warm")]


MARKED = [path for path in TEMPLATES if "{% generation" in path.read_text() or "{%- generation" in path.read_text()]
TALK = row(
    ASKED, [assistant("Yes."), user("How warm?"), assistant("31")], [assistant("No."), user("Sure?"), assistant("Ok")]
)


@pytest.mark.parametrize("template", MARKED, ids=lambda path: path.stem)
def test_masks_are_those_of_the_templates_generation_marks(template: Path) -> None:
    """Up to what is not trained here: the generation prompt, and what follows a turn's stop token."""
    tokenizer = tokenizer_of(template)
    pair = tokenize_pair(example(TALK), tokenizer, None, None, all_turns=True)
    if isinstance(pair, str):
        assert pair.startswith(SEVERAL_TURNS_LEFT_OUT) or "refuses the messages" in pair
        return
    whole = tokenizer.apply_chat_template([*ASKED, *TALK["chosen"]], return_assistant_tokens_mask=True)
    marks, mask = whole["assistant_masks"][len(pair.prompt_ids) :], pair.chosen.mask or []
    assert whole["input_ids"][len(pair.prompt_ids) :][: len(mask)] == pair.chosen.ids
    assert all(mark >= counts for mark, counts in zip(marks, mask, strict=False))
    more = [token for token, mark, counts in zip(pair.chosen.ids, marks, mask, strict=False) if mark > counts]
    opened = tokenizer.decode(pair.prompt_ids)
    left = re.split(r"\S*How warm\?", tokenizer.decode(more))[-1]
    assert not left.strip() or left.strip() in opened or set(more) <= stop_token_ids(tokenizer)


def test_of_several_turns_only_the_assistants_are_trained() -> None:
    tokenizer = byte_tokenizer()
    assert tokenize_pair(example(TALK), tokenizer, None, None) == SEVERAL_TURNS
    pair = tokenize_pair(example(TALK), tokenizer, None, None, all_turns=True)
    assert isinstance(pair, TokenizedPair) and pair.chosen.mask is not None
    assert tokenizer.decode(pair.prompt_ids) == "<|user|>Warm in Rome?<|end|><|assistant|>"
    assert tokenizer.decode(pair.chosen.ids) == "Yes.<|end|><|user|>How warm?<|end|><|assistant|>31<|end|>"
    trained = [token for token, counts in zip(pair.chosen.ids, pair.chosen.mask, strict=True) if counts]
    assert tokenizer.decode(trained) == "Yes.<|end|>31<|end|>"
    assert pair.chosen.text == TALK["chosen"]
    assert tokenize_pair(example(TALK), tokenizer, None, 10, all_turns=True) == SEVERAL_TURNS_CUT


# --- log-probs of several turns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_log_probs_count_the_trained_tokens_alone(shared: bool) -> None:
    """Also beside a response of one turn, and with a longer prompt in the same batch."""
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer).eval()
    rows = [TALK, row([user("Say a rather long something")], "tea", "ice")]
    pairs = [tokenize_pair(example(given), tokenizer, None, None, all_turns=True) for given in rows]
    groups = [
        PromptGroup(Prompt(i, "", p.prompt_ids), (PreferencePair(i, "offline", p.chosen, p.rejected),))  # type: ignore[union-attr]
        for i, p in enumerate(pairs)
    ]
    with sharing_prompts(model) if shared else nullcontext():
        found = pair_logps(model, GroupCollator(0, RowPacking(shared_prompts=shared))(groups))
    for side in ("chosen", "rejected"):
        responses = [getattr(group.pairs[0], side) for group in groups]
        expected = [trained_sum(model, g.prompt.ids, r) for g, r in zip(groups, responses, strict=True)]
        assert getattr(found, side).tolist() == pytest.approx(expected, abs=1e-4)
        counts = [sum(r.mask) if r.mask else len(r.ids) for r in responses]
        assert getattr(found, f"{side}_tokens").tolist() == counts


def trained_sum(model: Any, prompt: list[int], response: Response) -> float:
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([prompt + response.ids])).logits[0].log_softmax(dim=-1)
    places = range(len(prompt) - 1, len(prompt) + len(response.ids) - 1)
    mask = response.mask or [True] * len(response.ids)
    return sum(
        logps[place, token].item() for place, token, counts in zip(places, response.ids, mask, strict=True) if counts
    )


# --- reading rows ----------------------------------------------------------------------------------------------------

CALL_TEXT = json.dumps({"name": "weather", "arguments": {"city": "Rome"}})
ROME = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
SHAREGPT = [
    {"from": "human", "value": "Warm in Rome?"},
    {"from": "function_call", "value": CALL_TEXT},
    {"from": "observation", "value": "31"},
]
SWIFT = [
    user("Warm?"),
    {"role": "tool_call", "content": CALL_TEXT},
    {"role": "tool_call", "content": json.dumps({"name": "time", "arguments": {}})},
    {"role": "tool_response", "content": "31"},
    {"role": "tool_response", "content": "noon"},
]
BEGUN = [*ASKED, assistant("It is ")]
READ: dict[str, tuple[dict[str, Any], tuple[Any, Any, Any]]] = {
    "tools beside a string": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "tools": [WEATHER]},
        ([user("q")], [assistant("a")], [assistant("b")]),
    ),
    "tool turns": (row(LOOKED, "31", "no"), (LOOKED, [assistant("31")], [assistant("no")])),
    "tool turns in whole conversations": (
        {"chosen": [*LOOKED, assistant("31")], "rejected": [*LOOKED, assistant("no")]},
        (LOOKED, [assistant("31")], [assistant("no")]),
    ),
    "calls as JSON": (
        row([*ASKED, assistant(None, tool_calls=json.dumps([ROME])), answer("31")], "31", "no"),
        ([*ASKED, {"role": "assistant", "tool_calls": [ROME]}, answer("31")], [assistant("31")], [assistant("no")]),
    ),
    "calls as responses": (
        row(ASKED, [calling(city="Rome")], [calling(city="Oslo")]),
        (ASKED, [calling(city="Rome")], [calling(city="Oslo")]),
    ),
    "no calls": (
        row([user("q"), assistant("a", tool_calls=[], function_call=None), user("r")], "a", "b"),
        ([user("q"), assistant("a"), user("r")], [assistant("a")], [assistant("b")]),
    ),
    "the tool answers differently": (
        {"chosen": [*LOOKED, assistant("31")], "rejected": [*LOOKED[:2], answer("no"), assistant("?")]},
        (ASKED, [*LOOKED[1:], assistant("31")], [LOOKED[1], answer("no"), assistant("?")]),
    ),
    "the user answers differently": (
        {
            "chosen": [*ASKED, assistant("a"), user("x"), assistant("b")],
            "rejected": [*ASKED, assistant("a"), user("y"), assistant("b")],
        },
        (ASKED, [assistant("a"), user("x"), assistant("b")], [assistant("a"), user("y"), assistant("b")]),
    ),
    "sharegpt": (
        {
            "conversations": SHAREGPT,
            "chosen": {"from": "gpt", "value": "31"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        (
            [*ASKED, {"role": "assistant", "tool_calls": [ROME]}, {"role": "tool", "content": "31"}],
            [assistant("31")],
            [assistant("no")],
        ),
    ),
    "a begun response": (row(BEGUN, "warm", "cold"), (BEGUN, [assistant("warm")], [assistant("cold")])),
    "a begun response and strings": (
        {"prompt": BEGUN, "chosen": "warm", "rejected": "cold"},
        (BEGUN, [assistant("warm")], [assistant("cold")]),
    ),
    "a begun response whose prompt is repeated": (
        row(BEGUN, [*BEGUN, assistant("warm")], [*BEGUN, assistant("cold")]),
        (BEGUN, [assistant("warm")], [assistant("cold")]),
    ),
    "a begun response of several turns": (
        row(BEGUN, [assistant("warm"), user("x"), assistant("a")], [assistant("warm"), user("x"), assistant("b")]),
        ([*ASKED, assistant("It is warm"), user("x")], [assistant("a")], [assistant("b")]),
    ),
    "an empty turn that opens the response": (
        row([*ASKED, assistant("")], "warm", "cold"),
        (ASKED, [assistant("warm")], [assistant("cold")]),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_rows(name: str) -> None:
    given, expected = READ[name]
    assert parts(given) == expected
    stored = {key: json.dumps(value) if isinstance(value, list) else value for key, value in given.items()}
    assert parts(stored) == expected


def test_calls_in_turns_of_their_own_are_one_turn_of_the_assistant() -> None:
    time = {"type": "function", "function": {"name": "time", "arguments": {}}}
    answers = [{"role": "tool", "content": "31"}, {"role": "tool", "content": "noon"}]
    assert prompt_of({"prompt": SWIFT}) == [user("Warm?"), {"role": "assistant", "tool_calls": [ROME, time]}, *answers]


LEFT_OUT = {
    "tools that are none": (row(ASKED, "a", "b", tools="hammer"), problems.BAD_TOOLS),
    "tools that are numbers": (row(ASKED, "a", "b", tools=[1]), problems.BAD_TOOLS),
    "calls without names": (row([*ASKED, assistant("", tool_calls=[{"x": 1}])], "a", "b"), problems.BAD_CALLS),
    "a call of no function": (
        {
            "conversations": [SHAREGPT[0], {"from": "function_call", "value": "{}"}, SHAREGPT[2]],
            "chosen": "a",
            "rejected": "b",
        },
        problems.BAD_CALLS,
    ),
    "the older form of calls": (
        row([*ASKED, {"role": "assistant", "content": "", "function_call": {"name": "f"}}, answer("1")], "a", "b"),
        problems.FUNCTION_CALL,
    ),
    "a prompt that ends with a call": (row([*ASKED, calling()], "a", "b"), problems.PROMPT_END),
    "a conversation that holds an answer": (
        {"messages": [*ASKED, assistant("x")], "chosen": "a", "rejected": "b"},
        problems.PROMPT_END,
    ),
    "a response that repeats the beginning": (row(BEGUN, "It is warm", "It is cold"), problems.REPEATED_BEGINNING),
    "a response that is the beginning": (row(BEGUN, "It is", "cold"), problems.REPEATED_BEGINNING),
    "equal calls": (row(ASKED, [calling(city="Rome")], [calling(city="Rome")]), problems.EQUAL),
    "two prompts": (
        {"chosen": [user("a"), assistant("x")], "rejected": [user("b"), assistant("x")]},
        problems.NO_SHARED_PROMPT,
    ),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_rows_left_out(name: str) -> None:
    given, expected = LEFT_OUT[name]
    assert reason(given) == expected


def test_a_beginning_is_part_of_the_column_prompt_alone() -> None:
    assert prompt_of({"prompt": BEGUN}) == BEGUN
    assert prompt_of({"messages": BEGUN}) == problems.PROMPT_END
    assert prompt_of({"prompt": [*ASKED, assistant(" ")]}) == ASKED


# --- columnar data ---------------------------------------------------------------------------------------------------


def columnar_rows() -> Rows:
    time = {
        "type": "function",
        "function": {"name": "time", "parameters": {"type": "object", "properties": {"zone": {}}}},
    }
    time["function"]["parameters"]["properties"] = {"zone": {"type": "string"}}  # type: ignore[index]
    asked = [user("When?"), calling("time", zone="CET"), answer("noon")]
    return [row(LOOKED, "31", "no", tools=[WEATHER]), row(asked, "noon", "no", tools=[time], note={"a": None})]


def test_nulls_that_a_columnar_file_fills_in_are_not_rendered(tmp_path: Path) -> None:
    """Each schema and call would get the parameters of all others, with null."""
    rows = columnar_rows()
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    assert data[1]["prompt"][1]["tool_calls"][0]["function"]["arguments"] == {"city": None, "zone": "CET"}
    for source in (data, tmp_path / "rows.parquet", tmp_path / "saved"):
        for number, found in enumerate(iter_examples(open_rows(source))):
            assert isinstance(found, PreferenceExample)
            assert (found.prompt, found.columns["tools"]) == (rows[number]["prompt"], rows[number]["tools"])
    assert next(iter(open_rows([row(ASKED, [calling(city=None)], "b")])))["chosen"] == [calling(city=None)]


def test_nulls_that_a_columnar_file_fills_into_rows_of_openai_are_not_rendered(tmp_path: Path) -> None:
    rows = [
        {
            "input": {"messages": [user("q")], "tools": each["tools"]},
            "preferred_output": each["prompt"][1:2],
            "non_preferred_output": [assistant("no")],
        }
        for each in columnar_rows()
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    expected, found = (list(iter_examples(open_rows(source))) for source in (rows, tmp_path / "rows.parquet"))
    assert all(isinstance(each, PreferenceExample) for each in found)
    for one, other in zip(expected, found, strict=True):
        assert (one.chosen, one.columns["tools"]) == (other.chosen, other.columns["tools"])  # type: ignore[union-attr]


# --- templates -------------------------------------------------------------------------------------------------------

TOOLED = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tooled() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TOOLED
    return tokenizer


def toolless() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = re.sub("{% (if tools|for c in).*?{% end(if|for) %}", "", TOOLED)
    return tokenizer


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        (row(ASKED, "a", "b", tools=[WEATHER]), "the chat template leaves out the tools"),
        (row(ASKED, [calling()], "b"), "the chat template leaves out the tool calls"),
        (row([*ASKED, calling(), answer("1")], "a", "b"), "the chat template leaves out the tool calls"),
        (row(ASKED, "a", "b", tools="[]"), None),
    ],
)
def test_templates_that_leave_out_tools_leave_out_the_row(given: dict[str, Any], left_out: str | None) -> None:
    examples = [example(given)]
    assert list(with_words_rendered(examples, tooled())) == examples
    (found,) = with_words_rendered(examples, toolless())
    assert (found.reason if isinstance(found, Dropped) else None) == left_out


def test_arguments_that_are_not_the_templates_are_refused() -> None:
    for name in ("tokenize", "add_generation_prompt", "chat_template", "return_dict"):
        with pytest.raises(ConfigError, match=rf"chat_template_kwargs\.{name} is no argument of the template"):
            options_of({}, {name: True})
        given = row(ASKED, "a", "b", chat_template_kwargs={name: True})
        assert f"chat_template_kwargs.{name} is no argument" in str(tokenize_pair(example(given), tooled(), None, None))
    assert options_of({"chat_template_kwargs": '{"enable_thinking": false}', "tools": json.dumps([WEATHER])}) == {
        "enable_thinking": False,
        "tools": [WEATHER],
    }


# --- annotators ------------------------------------------------------------------------------------------------------

THINKING = "{% if enable_thinking is defined and not enable_thinking %}<quiet>{% endif %}" + TOOLED
WITH_TOOLS = {"tools": json.dumps([WEATHER])}
OPEN_PROMPT = Prompt(0, BEGUN, [], WITH_TOOLS)
CALLED = Prompt(1, LOOKED, [], WITH_TOOLS)
FRESH = Response("warm", [], True)


def thinking() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = THINKING
    return tokenizer


def test_a_reward_model_reads_tools_and_the_whole_answer() -> None:
    tokenizer = thinking()
    for prompt, said in ((OPEN_PROMPT, [*ASKED, assistant("It is warm")]), (CALLED, [*LOOKED, assistant("warm")])):
        expected = tokenizer.apply_chat_template(said, tools=[WEATHER], return_dict=False)
        assert scored_ids(tokenizer, prompt, FRESH, {}) == expected
        quiet = tokenizer.apply_chat_template(said, tools=[WEATHER], enable_thinking=False, return_dict=False)
        assert scored_ids(tokenizer, prompt, FRESH, {"enable_thinking": False}) == quiet != expected
        own = replace(prompt, columns=WITH_TOOLS | {"chat_template_kwargs": {"enable_thinking": False}})
        assert scored_ids(tokenizer, own, FRESH, {"enable_thinking": True}) == quiet


def test_a_reward_model_without_end_of_sequence_reads_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    assert scored_ids(tokenizer, Prompt(0, "a", []), Response("b", []), {}) == tokenizer("ab")["input_ids"]


def test_template_arguments_of_a_reward_model_come_from_the_recipe(tmp_path: Path) -> None:
    path = save_reward_model(tmp_path / "rm")
    thinking().save_pretrained(path)
    place = Workplace(torch.device("cpu"), 1024, None)
    settings = {"reward_model": path, "chat_template_kwargs": {"enable_thinking": False}}
    annotator = build_annotator(reward_parts(settings), place)
    assert isinstance(annotator, RewardModelAnnotator)
    quiet = thinking().apply_chat_template([*LOOKED, assistant("warm")], tools=[WEATHER], enable_thinking=False)
    assert annotator.token_ids(CALLED, FRESH) == quiet["input_ids"]
    with pytest.raises(ConfigError, match=r"chat_template_kwargs\.tokenize is no argument of the template"):
        build_annotator(reward_parts(settings | {"chat_template_kwargs": {"tokenize": True}}), place)


def test_judges_read_tools_calls_and_the_whole_answer() -> None:
    request, first, second = Match(OPEN_PROMPT, FRESH, Response([assistant("cold")], [])).in_words
    assert request == f"TOOLS: {json.dumps([WEATHER])}\n\nUSER: Warm in Rome?"
    assert (first, second) == ("It is warm", "It is cold")
    request, first, _ = Match(CALLED, Response([calling(city="Oslo")], []), FRESH).in_words
    assert request.endswith(f"USER: Warm in Rome?\n\nASSISTANT: {CALL_TEXT}\n\nTOOL: 31")
    assert first == CALL_TEXT.replace("Rome", "Oslo")


def test_servers_and_functions_get_tools_and_the_whole_answer() -> None:
    whole = [assistant("It is warm")]
    assert item_of(OPEN_PROMPT, FRESH) == {"prompt": ASKED, "response": whole, "tools": [WEATHER]}
    assert item_of(Prompt(0, "q", []), FRESH) == {"prompt": "q", "response": "warm"}
    body = VllmRewardServer(Access("http://h", None), AnswerStore(None), {"model": "m"})._body(
        [item_of(OPEN_PROMPT, FRESH)]
    )
    assert body == {"messages": [*ASKED, *whole], "model": "m", "chat_template_kwargs": {"tools": [WEATHER]}}
    asked: dict[str, Any] = {}

    def reward(**columns: Any) -> list[float]:
        asked.update(columns)
        return [1.0]

    FunctionAnnotator(reward).rewards([(OPEN_PROMPT, FRESH)])
    assert (asked["prompts"], asked["completions"], asked["tools"]) == ([ASKED], [whole], [WITH_TOOLS["tools"]])


# --- runs ------------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {
    "num_iterations": 1,
    "warmup_epochs": 0,
    "max_prompt_length": 300,
    "generation": {"max_new_tokens": 4, "num_generations": 2},
    "training": {"learning_rate": 1e-3, "per_device_train_batch_size": 4},
    "show_progress": False,
}
SMALL = {"type": "function", "function": {"name": "f"}}


def mixed_rows() -> Rows:
    return [
        row([user("q")], "tea", "ice", tools=[SMALL]),
        row([user("q"), calling("f"), answer("1")], "tea", "ice", tools=json.dumps([SMALL])),
        row([user("q"), assistant("It is ")], "tea", "ice"),
        row([user("q")], [assistant("tea"), user("r"), assistant("sea")], "ice"),
        row([user("q")], "tea", "ice"),
    ]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = save_policy(tmp_path_factory.mktemp("policy") / "tooled")
    tooled().save_pretrained(path)
    return path


def run_with(folder: Path, policy: str, **changes: Any) -> tuple[Rows, list[str]]:
    """Runs a recipe on the mixed rows; the offline rows, and the reasons for leaving out others."""
    write_jsonl(folder / "rows.jsonl", mixed_rows())
    given = QUICK | {"model": policy, "data": str(folder / "rows.jsonl"), "output_dir": str(folder / "run")} | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(SystemExit) as caught:
        main(["train", str(folder / "recipe.yaml")])
    assert caught.value.code == 0
    dropped = folder / "run/dropped.jsonl"
    reasons = [json.loads(line)["reason"] for line in dropped.read_text().splitlines()] if dropped.exists() else []
    return pq.read_table(folder / "run/data/offline.parquet").to_pylist(), reasons


SEEN: list[tuple[Any, Any]] = []


def seen_reward(prompts: Rows, completions: Rows, **_: Any) -> list[float]:
    SEEN.extend(zip(prompts, completions, strict=True))
    return [float(number) for number in range(len(completions))]


def test_a_run_generates_for_tools_and_begun_responses(policy: str, tmp_path: Path) -> None:
    SEEN.clear()
    changes = {"method": "online_dpo", "reward": "python:tests.test_conversations:seen_reward"}
    rows, reasons = run_with(tmp_path, policy, **changes)
    texts = [tooled().decode(found["prompt_ids"]) for found in rows]
    small, opened = f"<|system|>{json.dumps([SMALL])}<|end|>", "<|user|>q<|end|><|assistant|>"
    called = '<call>{"name": "f", "arguments": {}}</call><|end|><|tool|>1<|end|><|assistant|>'
    assert texts == [small + opened, small + opened + called, f"{opened}It is ", opened]
    assert reasons == [SEVERAL_TURNS]
    begun = [completion[0]["content"] for prompt, completion in SEEN if prompt == [user("q")]]
    assert sum(text.startswith("It is ") for text in begun) == 2


def test_a_run_trains_on_all_turns_with_a_reward_model_of_its_own(policy: str, tmp_path: Path) -> None:
    """The offline pair of several turns is annotated, scored, selected and trained like the others."""
    rows, reasons = run_with(tmp_path, policy, method="metaapo", reward="train", trained_turns="all")
    assert len(rows) == 5 and not reasons
    assert [found["chosen_mask"] is None for found in rows] == [True, True, True, False, True]
    assert tooled().decode(rows[3]["chosen_ids"]) == "tea<|end|><|user|>r<|end|><|assistant|>sea<|end|>"
    assert (tmp_path / "run/final/model.safetensors").exists()


def test_prompts_that_the_reward_model_cannot_read_are_left_out_at_first(policy: str, tmp_path: Path) -> None:
    """And TRL's trainers get only the prompts that they read as the run does."""
    reward = save_reward_model(tmp_path / "rm")
    tokenizer = byte_tokenizer()
    refusal = "{% if messages | selectattr('role', 'eq', 'tool') | list %}{{ raise_exception('no tools') }}{% endif %}"
    tokenizer.chat_template = refusal + TOOLED
    tokenizer.save_pretrained(reward)
    training = {"learning_rate": 1e-3, "per_device_train_batch_size": 1}
    rows, reasons = run_with(tmp_path, policy, method="grpo", reward=reward, training=training)
    assert len(rows) == 3
    refused = "the reward model cannot read it: the chat template refuses the messages: no tools"
    assert Counter(reasons) == {SEVERAL_TURNS: 1, refused: 1, READ_OTHERWISE: 2}


def test_what_a_reward_model_does_not_see_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    reading = RewardReading([(toolless(), {})])
    assert [reading.problem(prompt) for prompt in (CALLED, OPEN_PROMPT, Prompt(2, "q", []))] == [None] * 3
    reading.announce(shows=True)
    told = capsys.readouterr()
    assert "judges 2 prompts in part: the chat template leaves out the tools" in told.out + told.err
    with pytest.raises(ModelError, match="reward model's tokenizer has no chat template"):
        RewardReading([(byte_tokenizer(chat=False), {})]).problem(OPEN_PROMPT)
