"""The blind vote without a browser: sides, blindness, durability, statistics."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from adaptpo.cli import main
from adaptpo.cli.vote import Options, open_ballots
from adaptpo.errors import ConfigError, DataError, RunError
from adaptpo.run.database import Database
from adaptpo.run.schemas import EVALUATION_SCHEMA, dump_text
from adaptpo.vote.ballots import Ballots, standing
from adaptpo.vote.masking import masked
from adaptpo.vote.questions import Plan, Question, in_order, left_is_a, pool, questions_for
from adaptpo.vote.responses import dialogue, read_side
from adaptpo.vote.results import Vote, counted, results, summarize
from adaptpo.vote.server import VotePage, is_this_machine
from adaptpo.vote.statistics import agreement, clustered, wilson
from tests.tiny import write_jsonl
from tests.votes import CHAT, SCRIPT, Server, voting, write_sides

Json = dict[str, Any]


@pytest.fixture
def options(tmp_path: Path) -> Options:
    first, second = write_sides(tmp_path)
    return Options((first, second), Plan(prompts=10), out=tmp_path / "votes")


@pytest.fixture
def ballots(options: Options) -> Iterator[Ballots]:
    opened = open_ballots(options)
    yield opened
    opened.close()


def client_of(ballots: Ballots, token: str | None = None, **settings: Any) -> TestClient:
    return TestClient(VotePage(ballots, token).app(), base_url="http://127.0.0.1", **settings)


@pytest.fixture
def client(ballots: Ballots) -> TestClient:
    return client_of(ballots)


def ask(client: TestClient, voter: str) -> Json:
    return client.get("/question", params={"voter": voter}).json()


def press(client: TestClient, voter: str, turn: int, choice: str, seconds: Any = 2.5) -> Json:
    return client.post("/vote", json={"voter": voter, "turn": turn, "choice": choice, "seconds": seconds}).json()


def side_of(parts: list[str | None]) -> str:
    """A or B, by the word that the tests put into each response."""
    return "A" if str(parts[0]).startswith("zebra") else "B"


# --- what is asked ---------------------------------------------------------------------------------------------------


def some_questions(count: int) -> list[Question]:
    return [Question((("user", f"prompt {n}"),), f"a {n}", f"b {n}") for n in range(count)]


@pytest.mark.parametrize("count", [1, 2, 9, 50])
def test_sides_are_balanced_within_one(count: int) -> None:
    for voter in map(str, range(50)):
        lefts = sum(left_is_a(some_questions(count), voter, seed=0).values())
        assert abs(2 * lefts - count) <= 1


def test_odd_question_favours_neither_run() -> None:
    lefts = [sum(left_is_a(some_questions(9), str(voter), 0).values()) for voter in range(400)]
    assert set(lefts) == {4, 5} and 160 < lefts.count(5) < 240


def test_sides_depend_on_seed_voter_and_prompt_alone() -> None:
    questions = some_questions(40)
    first = left_is_a(questions, "ana", 0)
    assert left_is_a(questions[::-1], "ana", 0) == first
    for other in (left_is_a(questions, "ben", 0), left_is_a(questions, "ana", 1)):
        assert 8 < sum(other[key] != first[key] for key in first) < 32


def test_sides_tell_nothing_about_the_next_side() -> None:
    """Along a voter's order, a change of sides is as frequent as chance says: m / (2 m - 1) for m prompts a side."""
    changes = Counter()
    for voter in map(str, range(200)):
        questions = in_order(some_questions(20), voter, 0)
        sides = [left_is_a(questions, voter, 0)[question.key] for question in questions]
        changes.update(one != other for one, other in pairwise(sides))
    assert changes[True] / changes.total() == pytest.approx(10 / 19, abs=0.025)


def test_order_is_each_voters_own() -> None:
    questions = some_questions(20)
    assert in_order(questions, "ana", 0) == in_order(questions[::-1], "ana", 0)
    assert in_order(questions, "ana", 0) != in_order(questions, "ben", 0)


def test_overlap() -> None:
    """4 of 10 prompts for all; 6 more for each voter, nobody's twice until all 26 are in use."""
    plan = Plan(prompts=10, overlap=0.4)
    own = [set(questions_for(number, 30, plan)) for number in range(5)]
    assert all(len(numbers) == 10 and set(range(4)) <= numbers for numbers in own)
    assert set.intersection(*own[:4]) == set(range(4)) and len(set.union(*own[:4])) == 4 + 24
    assert set.union(*own) == set(range(30))


def test_no_overlap_and_few_prompts() -> None:
    assert not set(questions_for(0, 30, Plan(10, overlap=0))) & set(questions_for(1, 30, Plan(10, overlap=0)))
    assert sorted(questions_for(3, 4, Plan(10, overlap=0.5))) == [0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [{"prompts": 0}, {"overlap": 1.5}, {"overlap": -0.1}])
def test_impossible_plan(wrong: Json) -> None:
    with pytest.raises(ConfigError, match="--"):
        Plan(**wrong)


def test_what_one_side_alone_has_is_counted(tmp_path: Path) -> None:
    same = {"prompt": "equal", "response": " same\n"}
    first = [{"prompt": n, "response": "a"} for n in ("both", "a1", "a2")] + [same, {"prompt": "x", "response": ""}]
    second = [{"prompt": n, "response": "b"} for n in ("both", "b1", "both")] + [
        same,
        {"prompt": None, "response": "r"},
    ]
    a, b = (
        read_side(Path(write_jsonl(tmp_path / name, rows))) for name, rows in (("a.jsonl", first), ("b.jsonl", second))
    )
    questions, left_out = pool(a, b, Plan())
    assert [question.prompt for question in questions] == [(("user", "both"),)]
    assert left_out == {
        "prompts that only A answered": 2,
        "prompts that only B answered": 1,
        "rows of A: no response": 1,
        "rows of B: a prompt that stood in an earlier row": 1,
        "rows of B: empty prompt": 1,
        "prompts with the same response on both sides: each would be a tie": 1,
    }


def test_prompts_beyond_the_plan_are_counted(ballots: Ballots) -> None:
    assert ballots.settings["left_out"] == {"prompts beyond --prompts": 2}


def test_prompts_in_any_form_are_one_prompt() -> None:
    assert dialogue("Hi there ") == dialogue([{"role": "user", "content": "Hi there"}]) == (("user", "Hi there"),)
    turns = dialogue("\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:")
    assert turns == (("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"))


# --- runs and files --------------------------------------------------------------------------------------------------


def make_run(folder: Path, stages: tuple[str, ...], model: str = "org/Tiny-7B") -> Path:
    (folder / "evaluation").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model: {model}\n")
    for stage in stages:
        rows = [
            {"prompt_id": n, "prompt": dump_text(text), "response": f"{stage} {folder.name} {n}", "length": 3}
            for n, text in enumerate(["one", CHAT])
        ]
        rows.append({"prompt_id": 2, "prompt": dump_text("never answered"), "response": "", "length": None})
        path = folder / "evaluation" / f"{stage}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=EVALUATION_SCHEMA), path)
    return folder


def test_run_folder_gives_its_last_evaluation(tmp_path: Path) -> None:
    side = read_side(make_run(tmp_path / "run", ("initial", "warmup", "iteration-9", "iteration-10")))
    assert side.responses[(("user", "one"),)] == "iteration-10 run 0"
    assert side.responses[dialogue(CHAT)] == "iteration-10 run 1"
    assert side.left_out == {"no response": 1} and side.models == {"Tiny-7B"}


def test_evaluation_of_a_run_as_a_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ("initial", "iteration-0"))
    side = read_side(run / "evaluation" / "initial.parquet")
    assert side.responses[(("user", "one"),)] == "initial run 0"


@pytest.mark.parametrize("form", ["json", "jsonl", "parquet"])
def test_files_of_responses(tmp_path: Path, form: str) -> None:
    rows = [{"prompt": "one", "response": "1"}, {"prompt": "two", "response": " 2 "}]
    path = tmp_path / f"responses.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows)))
    assert list(read_side(path).responses.values()) == ["1", "2"]


def test_alpaca_eval_outputs_and_messages(tmp_path: Path) -> None:
    answers = [{"role": "assistant", "content": "yes"}]
    rows = [{"instruction": "one", "output": "1", "generator": "m-1"}, {"instruction": "two", "output": answers}]
    side = read_side(Path(write_jsonl(tmp_path / "outputs.jsonl", rows)))
    assert list(side.responses.values()) == ["1", "yes"] and side.models == {"m-1"}


def test_all_that_belongs_to_a_prompt_is_shown(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {}}}]}
    asked = [{"role": "user", "content": "Where?"}, call, {"role": "tool", "content": "here"}]
    rows = [
        {"prompt": "hi", "system": "Be brief.", "response": "1"},
        {"prompt": "hi", "system": "Be long.", "response": "2"},
        {"prompt": "hi", "history": [["q", "a"]], "response": "3"},
        {"prompt": asked, "response": "4"},
    ]
    side = read_side(Path(write_jsonl(tmp_path / "d.jsonl", rows)))
    assert list(side.responses.items()) == [
        ((("system", "Be brief."), ("user", "hi")), "1"),
        ((("system", "Be long."), ("user", "hi")), "2"),
        ((("user", "q"), ("assistant", "a"), ("user", "hi")), "3"),
        ((("user", "Where?"), ("assistant", '{"name": "look", "arguments": {}}'), ("tool", "here")), "4"),
    ]
    pq.write_table(pa.Table.from_pylist([rows[3], {"prompt": [*asked[:1], other_call(), asked[2]], "response": "5"}]),
                   tmp_path / "d.parquet")  # fmt: skip
    assert next(iter(read_side(tmp_path / "d.parquet").responses)) == list(side.responses)[3]
    alpaca = [{"instruction": "Translate", "input": "No", "output": "Ne"}]
    assert list(read_side(Path(write_jsonl(tmp_path / "e.jsonl", alpaca))).responses) == [(("user", "Translate\nNo"),)]
    with pytest.raises(DataError, match=r"f.jsonl, row 0: .*context.*rename the column in the file"):
        read_side(Path(write_jsonl(tmp_path / "f.jsonl", [{"prompt": "hi", "context": "ask", "response": "1"}])))


def other_call() -> Json:
    """A call with an argument that no other has: in Parquet, all get it, with null."""
    function = {"name": "look", "arguments": {"far": True}}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


def test_unusable_sources(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "none", "neither a run folder nor a file"),
        (tmp_path, "is not a run folder"),
        (make_run(tmp_path / "run", ()), "keeps no held-out responses"),
        (Path(write_jsonl(tmp_path / "q.jsonl", [{"question": "x", "response": "y"}])), "lacks the column `prompt`"),
        (Path(write_jsonl(tmp_path / "e.jsonl", [{"prompt": "x", "response": " "}])), "1 x no response"),
    ):
        with pytest.raises((DataError, RunError), match=message):
            read_side(source)


def test_runs_without_a_common_prompt(tmp_path: Path) -> None:
    sides = [
        read_side(Path(write_jsonl(tmp_path / f"{n}.jsonl", [{"prompt": f"p{n}", "response": "r"}]))) for n in range(2)
    ]
    with pytest.raises(DataError, match="share 0 prompts"):
        pool(*sides, Plan())


# --- masking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("I am ChatGPT, trained by OpenAI.", "I am #, trained by #."),
        ("As GPT-4-0314 I say", "As # I say"),
        ("I'm Claude, made by Anthropic.", "I'm #, made by #."),
        ("I am Qwen2.5-7B-Instruct, created by Alibaba Cloud.", "I am #, created by #."),
        ("Llama 3 and Llama-2-7b-chat. Gemini 1.5 Pro!", "# and #. #!"),
        (
            "my name is Gemini, a Google AI assistant, developed by Google.",
            "my name is #, a # AI assistant, developed by #.",
        ),
        ("It was run on mistral-7b.", "It was run on #."),
        (
            "A llama eats. Claude Monet painted. Gemini is a sign.",
            "A llama eats. Claude Monet painted. Gemini is a sign.",
        ),
        ("Google it; the phi of 1.6; Meta data", "Google it; the phi of 1.6; Meta data"),
        ("my-run-7b wins, my policy too", "# wins, my policy too"),
        ("", ""),
    ],
)
def test_masking(text: str, shown: str) -> None:
    parts = masked(text, ["my-run-7B", "policy"])
    assert "".join("#" if part is None else part for part in parts) == shown


# --- the page --------------------------------------------------------------------------------------------------------


def test_first_page_asks_for_a_name(client: TestClient) -> None:
    page = client.get("/").text
    assert 'name="voter"' in page and "vote.js" not in page


def test_nothing_names_a_run(client: TestClient, ballots: Ballots) -> None:
    """Neither the files' names, nor A and B, nor anything that differs between the sides but the response itself."""
    sent = [client.get(path).text for path in ("/", "/?voter=ana", "/style.css", "/vote.js")]
    for turn in range(10):
        reply = client.get("/question", params={"voter": "ana"})
        assert set(reply.json()) == {"turn", "done", "total", "counted", "question"}
        assert set(reply.json()["question"]) == {"prompt", "left", "right"}
        sent += [reply.text, str(reply.headers), client.post("/vote", json=body("ana", turn, "left")).text]
    for text in sent:
        assert "first-run" not in text and "second-run" not in text and str(ballots.path.parent) not in text
    assert "left_side" not in "".join(sent)


def body(voter: str, turn: int, choice: str) -> Json:
    return {"voter": voter, "turn": turn, "choice": choice, "seconds": 1}


def test_both_runs_are_shown_on_both_sides(client: TestClient) -> None:
    lefts = []
    for turn in range(10):
        question = ask(client, "ana")["question"]
        assert {side_of(question["left"]), side_of(question["right"])} == {"A", "B"}
        lefts.append(side_of(question["left"]))
        press(client, "ana", turn, "tie")
    assert Counter(lefts) == {"A": 5, "B": 5}


def test_no_outside_address(client: TestClient) -> None:
    for path in ("/", "/?voter=ana", "/style.css", "/vote.js"):
        reply = client.get(path)
        assert "http://" not in reply.text and "https://" not in reply.text and "//" not in reply.text.split("// ")[0]
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]


def test_voters_name_is_escaped(client: TestClient) -> None:
    page = client.get("/", params={"voter": '"><script>x</script>'}).text
    assert "<script>x" not in page and "&lt;script&gt;x" in page


def test_answers_are_data_and_not_html(client: TestClient) -> None:
    """Responses reach the page as JSON, which no browser takes for HTML, and `vote.js` makes text nodes of them."""
    seen = []
    for turn in range(10):
        reply = client.get("/question", params={"voter": "ana"})
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-content-type-options"] == "nosniff"
        seen += [str(part) for side in ("left", "right") for part in reply.json()["question"][side]]
        press(client, "ana", turn, "skip")
    assert any(SCRIPT in text for text in seen)
    script = client.get("/vote.js").text
    assert not any(
        word in script for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
    )


def test_model_names_are_hidden_and_flagged(client: TestClient) -> None:
    texts = [client.get("/question", params={"voter": "ana"}).json()]
    texts += [press(client, "ana", turn, "tie") for turn in range(10)]
    questions = [text["question"] for text in texts if text["question"]]
    assert "ChatGPT" not in json.dumps(questions) and "OpenAI" not in json.dumps(questions)
    assert any(None in question["left"] for question in questions)


def test_multi_turn_prompt_is_a_dialogue(client: TestClient) -> None:
    prompts = [ask(client, "ana")["question"]["prompt"]]
    prompts += [(press(client, "ana", turn, "tie")["question"] or {}).get("prompt") for turn in range(10)]
    assert [{"role": m["role"], "text": m["content"]} for m in CHAT] in prompts


# --- voting ----------------------------------------------------------------------------------------------------------


def test_choices_are_kept_by_run(client: TestClient, ballots: Ballots) -> None:
    for turn, choice in enumerate(["left", "right", "tie", "bad", "skip"]):
        question = ask(client, "ana")["question"]
        assert press(client, "ana", turn, choice)["counted"]
        assert ballots.events("ana")[-1].left_side == side_of(question["left"])
    events = ballots.events("ana")
    assert [event.choice for event in events] == ["left", "right", "tie", "bad", "skip"]
    votes = counted(events)
    assert [vote.outcome for vote in votes] == [
        float(events[0].left_side == "A"),
        float(events[1].left_side == "B"),
        0.5,
        0.5,
    ]
    assert [vote.left for vote in votes] == [1, 0, None, None] and [vote.both_bad for vote in votes][-1]
    assert {event.seconds for event in events} == {2.5}


def test_double_click_is_one_vote(client: TestClient, ballots: Ballots) -> None:
    """The same choice again is the retry of a reply that got lost; another one is too late."""
    first = press(client, "ana", 0, "left")
    assert press(client, "ana", 0, "left") == first
    assert press(client, "ana", 0, "right") == first | {"counted": False}
    assert [event.choice for event in ballots.events()] == ["left"]


def test_many_clicks_at_once_are_one_vote(ballots: Ballots) -> None:
    """From several connections, as of two servers on one folder."""
    others = [Ballots(ballots.path.parent) for _ in range(4)]
    questions, start = ballots.questions(), threading.Barrier(8)

    def click(number: int) -> bool:
        start.wait()
        return others[number % 4].record("ana", 0, ("left", "right")[number % 2], None, questions)

    with ThreadPoolExecutor(8) as threads:
        counted_clicks = list(threads.map(click, range(8)))
    [event] = ballots.events("ana")
    assert counted_clicks == [choice == event.choice for choice in ("left", "right") * 4]
    for other in others:
        other.close()


def test_undo_asks_again_with_the_same_sides(client: TestClient, ballots: Ballots) -> None:
    first = ask(client, "ana")
    second = press(client, "ana", 0, "left")
    back = press(client, "ana", 1, "undo")
    assert back["question"] == first["question"] and (back["turn"], back["done"]) == (2, 0)
    assert press(client, "ana", 2, "right")["question"] == second["question"]
    [vote] = counted(ballots.events())
    assert vote.left == 0
    assert [event.choice for event in ballots.events()] == ["left", "undo", "right"]


def test_double_undo_is_one_undo(client: TestClient, ballots: Ballots) -> None:
    for turn in range(2):
        press(client, "ana", turn, "tie")
    assert press(client, "ana", 2, "undo") == press(client, "ana", 2, "undo")
    assert len(standing(ballots.events("ana"))) == 1


def test_undo_of_nothing(client: TestClient, ballots: Ballots) -> None:
    assert press(client, "ana", 0, "undo") == ask(client, "ana") | {"counted": False}
    assert ballots.events() == []


def test_undo_after_the_last_question(client: TestClient) -> None:
    for turn in range(10):
        last = press(client, "ana", turn, "left")
    assert last["question"] is None and last["done"] == last["total"] == 10
    assert press(client, "ana", 10, "left")["counted"] is False
    assert press(client, "ana", 10, "undo")["question"] is not None


def test_reload_resumes(client: TestClient) -> None:
    after = press(client, "ana", 0, "left")
    assert ask(client, " Ana ") == after | {"counted": None}


def test_voters_are_independent(client: TestClient) -> None:
    press(client, "ana", 0, "left")
    assert ask(client, "ben")["done"] == 0 and ask(client, "ana")["done"] == 1


@pytest.mark.parametrize("seconds", [None, -1, "3", True, float("nan"), 1e9, [1]])
def test_impossible_times_are_unknown(client: TestClient, ballots: Ballots, seconds: Any) -> None:
    text = json.dumps({"voter": "ana", "turn": 0, "choice": "left", "seconds": seconds})
    assert client.post("/vote", content=text, headers={"content-type": "application/json"}).status_code == 200
    assert ballots.events()[0].seconds is None


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"voter": "", "turn": 0, "choice": "left"}', "application/json", 400),
        (b'{"voter": "ana", "turn": "0", "choice": "left"}', "application/json", 400),
        (b'{"voter": "ana", "turn": 0, "choice": "A"}', "application/json", 400),
        (b'{"voter": "ana", "turn": 0, "choice": "left"}', "text/plain", 415),
        (b" " * 5000, "application/json", 413),
    ],
)
def test_wrong_requests(client: TestClient, ballots: Ballots, content: bytes, kind: str, status: int) -> None:
    assert client.post("/vote", content=content, headers={"content-type": kind}).status_code == status
    assert ballots.events() == []


# --- who may vote ----------------------------------------------------------------------------------------------------


def test_other_machines_need_the_token(ballots: Ballots) -> None:
    client = client_of(ballots, token="secret", follow_redirects=False)
    for path in ("/", "/?voter=ana", "/question?voter=ana", "/?token=wrong", "/?token="):
        assert client.get(path).status_code == 403
    assert client.post("/vote", json=body("ana", 0, "left")).status_code == 403
    moved = client.get("/?token=secret&voter=ana")
    assert moved.status_code == 303 and moved.headers["location"] == "/?voter=ana"
    assert client.get("/?voter=ana").status_code == 200  # The cookie has the token now.
    assert press(client, "ana", 0, "left")["counted"]
    assert "HttpOnly" in moved.headers["set-cookie"] and "SameSite=strict" in moved.headers["set-cookie"]


def test_other_host_names_are_refused_without_a_token(ballots: Ballots) -> None:
    assert client_of(ballots).get("/", headers={"host": "elsewhere.example"}).status_code == 400
    assert client_of(ballots).get("/", headers={"host": "localhost:8000"}).status_code == 200


def test_loopback() -> None:
    assert all(map(is_this_machine, ("127.0.0.1", "127.0.0.2", "::1", "localhost")))
    assert not any(map(is_this_machine, ("0.0.0.0", "::", "192.168.0.7", "voting.example")))


def test_token_stays_after_a_restart(options: Options) -> None:
    links = []
    for _ in range(2):
        with voting(options.runs, options.out, "--prompts", "10", "--host", "0.0.0.0") as server:
            links.append(server.url.split("?")[1])
            with pytest.raises(HTTPError, match="403"):
                urlopen(f"http://127.0.0.1:{server.port}/")
            with urlopen(f"http://127.0.0.1:{server.port}/question?voter=ana&{links[0]}") as reply:
                assert json.load(reply)["done"] == 0
    assert links[0] == links[1] and len(links[0]) > len("token=") + 20


# --- kept on disk ----------------------------------------------------------------------------------------------------


def send(server: Server, path: str, content: Json | None = None) -> Json:
    data = None if content is None else json.dumps(content).encode()
    with urlopen(Request(f"{server.url}{path}", data, {"Content-Type": "application/json"})) as reply:
        return json.load(reply)


def test_kill_loses_no_vote(options: Options) -> None:
    """kill -9 right after each reply; the vote that was answered is there, and the voter goes on behind it."""
    for turn in range(3):
        with voting(options.runs, options.out, "--prompts", "10") as server:
            assert send(server, "question?voter=ana")["done"] == turn
            after = send(server, "vote", body("ana", turn, "left"))
            os.kill(server.process.pid, signal.SIGKILL)
            server.process.wait()
    ballots = Ballots(options.out)
    assert [event.choice for event in ballots.events("ana")] == ["left"] * 3
    assert ballots.place("ana", ballots.questions()).turn == after["turn"] == 3
    ballots.close()


def test_commits_are_flushed(ballots: Ballots) -> None:
    [mode] = ballots.database.rows("PRAGMA journal_mode")
    [level] = ballots.database.rows("PRAGMA synchronous")
    assert mode["journal_mode"] == "wal" and level["synchronous"] == 2


def test_transaction_is_whole_or_nothing(tmp_path: Path) -> None:
    with Database(tmp_path / "x.sqlite", "CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY)") as database:
        with pytest.raises(sqlite3.IntegrityError), database.transaction() as connection:
            connection.executemany("INSERT INTO t VALUES (?)", [(1,), (2,), (1,)])
        assert database.rows("SELECT * FROM t") == []
        assert database.write("INSERT INTO t VALUES (?)", 7) == 1
    with Database(tmp_path / "x.sqlite", "") as database:
        assert database.rows("SELECT * FROM t") == [{"n": 7}]


def test_unusable_database(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_text("no database at all, but a text long enough to be taken for one" * 20)
    with pytest.raises(RunError, match="damaged or no database"):
        Database(tmp_path / "x.sqlite", "CREATE TABLE t (n)")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="choose a folder you may write to"):
        Database(tmp_path / "folder", "")


@pytest.mark.parametrize(
    "change", [{"plan": Plan(prompts=11)}, {"plan": Plan(10, seed=1)}, {"plan": Plan(10, overlap=0.5)}]
)
def test_another_vote_in_the_same_folder(options: Options, ballots: Ballots, change: Json) -> None:
    with pytest.raises(RunError, match="holds another vote"):
        open_ballots(Options(options.runs, out=options.out, **change))


def test_swapped_runs_are_another_vote(options: Options, ballots: Ballots) -> None:
    with pytest.raises(RunError, match="same order"):
        open_ballots(Options(options.runs[::-1], options.plan, out=options.out))
    with pytest.raises(RunError, match="same order"):
        Ballots.existing(options.out, [str(run) for run in options.runs[::-1]])


def test_changed_responses_are_another_vote(options: Options, ballots: Ballots) -> None:
    text = options.runs[0].read_text()
    options.runs[0].write_text(text.replace("zebra", "horse"))
    with pytest.raises(RunError, match="which have changed since"):
        open_ballots(options)


def test_one_run_twice(options: Options) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        open_ballots(Options((options.runs[0], options.runs[0])))


# --- results ---------------------------------------------------------------------------------------------------------


def vote(voter: str, prompt: int, outcome: float, left: float | None = None, seconds: float | None = None) -> Vote:
    return Vote(voter, json.dumps([["user", f"prompt {prompt}"]]), outcome, left, False, seconds)


def test_wilson_of_textbooks() -> None:
    """Of 15 in 20: 0.5313 to 0.8881 (Newcombe 1998, method 3, by hand: (0.75 + z^2/40 +- ...) / (1 + z^2/20))."""
    found = wilson(15, 20)
    assert (found.mean, found.low, found.high) == pytest.approx((0.75, 0.5313, 0.8881), abs=5e-5)
    assert wilson(0, 10).low == pytest.approx(0) and wilson(10, 10).high == pytest.approx(1)


def test_bootstrap_of_one_vote_a_prompt_is_about_the_normal_interval() -> None:
    values = np.tile([1.0, 0.0], 200)
    found = clustered(values, range(400))
    assert found.mean == 0.5 and found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.05)


def test_bootstrap_keeps_votes_on_one_prompt_together() -> None:
    """Four voters who always agree say no more than one."""
    values, prompts = np.tile([1.0, 0.0], 50), np.arange(100)
    alone, together = clustered(values, prompts), clustered(np.repeat(values, 4), np.repeat(prompts, 4))
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))


def test_unanimous_votes_have_an_interval() -> None:
    found = clustered(np.ones(10), range(10))
    assert found.mean == 1 and found.low < 0.9


def simulate(seed: int, voters: int, prompts: int = 50) -> tuple[list[Vote], dict[str, float]]:
    """Votes of people with known preferences: each prompt has chances of win, tie and loss of its own, drawn around
    (0.5, 0.2, 0.3); the left side draws some votes. Returns the true shares too."""
    rng = np.random.default_rng(seed)
    mean = np.array([0.5, 0.2, 0.3])
    chances = rng.dirichlet(3 * mean, size=prompts)
    votes = []
    for prompt in range(prompts):
        for voter in range(voters):
            outcome = (1.0, 0.5, 0.0)[rng.choice(3, p=chances[prompt])]
            left = None if outcome == 0.5 else float(rng.random() < 0.55)
            votes.append(vote(str(voter), prompt, outcome, left))
    return votes, {"win": 0.5, "tie": 0.2, "loss": 0.3, "score": 0.6, "left": 0.55}


@pytest.mark.parametrize("voters", [1, 3])
def test_intervals_cover_known_preferences(voters: int) -> None:
    """In 93 to 97 % of 500 simulated votes."""
    covered = Counter()
    for seed in range(500):
        votes, truth = simulate(seed, voters)
        summary = summarize(votes)
        for name, value in truth.items():
            share = getattr(summary, name)
            covered[name] += share.low <= value <= share.high
    rates = {name: count / 500 for name, count in covered.items()}
    print(f"{voters} voters: {rates}")
    assert all(0.93 <= rate <= 0.97 for rate in rates.values()), rates


def test_interval_says_how_it_was_made() -> None:
    assert summarize([vote("ana", 0, 1)]).interval == "Wilson"
    assert "clustered by prompt" in summarize([vote("ana", 0, 1), vote("ben", 0, 1)]).interval


def test_agreement_by_hand() -> None:
    """Three prompts, two voters, A/A, B/B, A/B: nominal and ordinal agree on two categories.

    Coincidences: AA 2, BB 2, AB and BA 1 each, n = 6, n_A = n_B = 3. Alpha = 1 - 5 * 2 / (2 * 3 * 3) = 4/9.
    """
    ratings = np.array([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert agreement(ratings) == pytest.approx(4 / 9)
    assert agreement(np.append(ratings, [[np.nan], [1.0]], axis=1)) == pytest.approx(4 / 9)


def test_agreement_that_is_undefined() -> None:
    assert agreement(np.array([[1.0, 0.0]])) is None
    assert agreement(np.array([[1.0, np.nan], [np.nan, 0.0]])) is None
    assert agreement(np.ones((2, 3))) is None


def test_summary_by_hand() -> None:
    votes = [vote("ana", 0, 1, 1, 2), vote("ben", 0, 0, 1, 4), vote("ana", 1, 0.5, None, 9), vote("ben", 1, 1, 0)]
    summary = summarize(votes)
    assert (summary.win.mean, summary.tie.mean, summary.loss.mean, summary.score.mean) == (0.5, 0.25, 0.25, 0.625)
    assert summary.left is not None and summary.left.mean == pytest.approx(2 / 3)
    assert (summary.votes, summary.voters, summary.prompts, summary.median_seconds) == (4, 2, 2, 4)
    [found] = summary.disagreements
    assert found.votes == {"ana": "A", "ben": "B"}


def test_ties_alone() -> None:
    summary = summarize([vote("ana", n, 0.5) for n in range(3)])
    assert summary.left is None and summary.tie.mean == 1


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["vote", *arguments])
    output = capsys.readouterr()
    assert not caught.value.code, output.err
    return output.out


Printed = Callable[..., str]


def test_results_on_the_terminal_and_as_json(
    options: Options, client: TestClient, ballots: Ballots, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ana always prefers A, Ben the left side; Ana skips one and takes one back."""
    command = [*map(str, options.runs), "--out", str(options.out), "--results"]
    assert "No votes yet" in printed(capsys, *command)
    for turn in range(10):
        choice = "left" if side_of(ask(client, "ana")["question"]["left"]) == "A" else "right"
        press(client, "ana", turn, choice, seconds=3)
        press(client, "ben", turn, "left", seconds=5)
    press(client, "ana", 10, "undo")
    press(client, "ana", 11, "skip")
    found = json.loads(printed(capsys, *command, "--json"))
    summary = found["summary"]
    assert found["runs"] == {"A": str(options.runs[0]), "B": str(options.runs[1])}
    assert (summary["votes"], found["skipped"], found["undone"]) == (19, 1, 1)
    assert summary["win"]["mean"] == pytest.approx(14 / 19) and summary["loss"]["mean"] == pytest.approx(5 / 19)
    assert found["left_out"] == {"prompts beyond --prompts": 2}
    assert all(item["votes"] == {"ana": "A", "ben": "B"} for item in summary["disagreements"])
    text = printed(capsys, *command)
    for words in ("A wins", "73.7%", "19 by 2 voters on 10 prompts", "1 skipped, 1 undone", "Krippendorff's alpha"):
        assert words in " ".join(text.split())
    assert results(ballots) == found


def test_results_without_votes_folder(options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["vote", *map(str, options.runs), "--out", str(options.out), "--results"])
    assert caught.value.code == 2 and "holds no votes" in capsys.readouterr().err
    assert not options.out.exists()


def test_taken_port(options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    with voting(options.runs, options.out, "--prompts", "10") as server, pytest.raises(SystemExit):
        main(
            ["vote", *map(str, options.runs), "--out", str(options.out), "--prompts", "10", "--port", str(server.port)]
        )
    assert "choose another --host or --port" in capsys.readouterr().err


def test_interruption_ends_the_server_and_says_what_to_do(options: Options) -> None:
    with voting(options.runs, options.out, "--prompts", "10") as server:
        send(server, "vote", body("ana", 0, "left"))
        server.process.send_signal(signal.SIGINT)
        assert server.process.stdout is not None
        assert "--results" in server.process.stdout.read() and server.process.wait() == 0
    assert not list(options.out.glob("*-wal"))  # Closed in order: everything is in the one file.


def test_two_servers_that_begin_at_once_keep_one_vote(options: Options) -> None:
    """The second is told that its questions are others; nothing is mixed."""
    first, second = Ballots(options.out), Ballots(options.out)
    first.begin({"runs": ["a", "b"], "prompts": 2}, some_questions(2))
    with pytest.raises(RunError, match="holds another vote"):
        second.begin({"runs": ["a", "c"], "prompts": 3}, some_questions(3))
    assert second.questions() == some_questions(2) and second.settings == first.settings
    first.close()
    second.close()
