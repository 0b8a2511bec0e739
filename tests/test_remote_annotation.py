"""Remote annotators against a local server: what they ask, what they make of odd answers, and what they pay for."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import multiprocessing
import os
import signal
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptpo.annotation.base import Request
from adaptpo.annotation.judge import RATINGS, VERDICTS, ComparingJudge, Judge, ScoringJudge, verdict_of
from adaptpo.annotation.server import RewardServer, VllmRewardServer
from adaptpo.annotation.tournament import Tournament
from adaptpo.errors import AnnotationError, RunError
from adaptpo.remote.endpoint import Access, Endpoint
from adaptpo.remote.store import AnswerStore, content_key, seal
from adaptpo.run.file_locks import is_across_machines, refuse_without_locks
from adaptpo.types import Prompt, Response
from tests.stub import Reply, Stub, by_length, completion, serving

FAST = {"first_wait": 0.01, "timeout": 5.0, "retries": 3}


def access(stub: Stub, **changes: Any) -> Access:
    return Access(stub.url, **(FAST | changes))


def judge(stub: Stub, store: AnswerStore | None = None, **changes: Any) -> Judge:
    return Judge("m", access(stub, **changes), store or AnswerStore(), {"temperature": 0.0})


def request(text: str, number: int = 0, prompt: Any = "say tea") -> Request:
    return Prompt(number, prompt, []), Response(text, [])


RESPONSES = [request(text) for text in ("tea", "a long cup of tea", "no")]


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[[A]]", 1.0),
        ("B is clearly better.\n\n[[B]]\n", -1.0),
        ("[[ C ]].", 0.0),
        ("A", None),
        ("[[A]] because it is longer", None),
        ("[[A]] or rather [[B]]", None),
        ("[[A]] ... [[A]]", None),
        ("[[D]]", None),
        ("[[A or B]]", None),
        ("[A]", None),
        ('{"verdict": "A"', None),
        ("I cannot compare these answers.", None),
        ("", None),
    ],
)
def test_verdicts_are_read_strictly(text: str, verdict: float | None) -> None:
    assert verdict_of(text, VERDICTS) == verdict


@pytest.mark.parametrize(
    ("text", "rating"),
    [("[[1]]", 1.0), ("Good. [[10]]", 10.0), ("[[0]]", None), ("[[11]]", None), ("[[7.5]]", None), ("7/10", None)],
)
def test_ratings_are_read_strictly(text: str, rating: float | None) -> None:
    assert verdict_of(text, RATINGS) == rating


# --- what a judge is asked, and what comes of it ---------------------------------------------------------------------


def test_requests_of_a_comparison() -> None:
    """Both orders, the settings, and no key where none is given."""
    with serving(by_length) as stub:
        rewards = Tournament(ComparingJudge(judge(stub), "brevity")).rewards(RESPONSES[:2])
    assert rewards == [-1.0, 1.0]
    questions = sorted(body["messages"][0]["content"] for body in stub.bodies)
    assert "<answer_a>\na long cup of tea\n</answer_a>\n\n<answer_b>\ntea\n</answer_b>" in questions[0]
    assert "<answer_a>\ntea\n</answer_a>\n\n<answer_b>\na long cup of tea\n</answer_b>" in questions[1]
    assert all("What counts is brevity." in question for question in questions)
    assert {(body["model"], body["temperature"]) for body in stub.bodies} == {("m", 0.0)}
    assert {headers["path"] for headers in stub.headers} == {"/chat/completions"}
    assert {headers["authorization"] for headers in stub.headers} == {"Bearer none"}


def test_the_key_goes_into_the_header() -> None:
    with serving(by_length) as stub:
        Tournament(ComparingJudge(judge(stub, api_key="sesame"))).rewards(RESPONSES[:2])
    assert {headers["authorization"] for headers in stub.headers} == {"Bearer sesame"}


@pytest.mark.parametrize(("opponents", "requests"), [("all", 6), ("first", 4)])
def test_best_and_worst_of_several(opponents: Any, requests: int) -> None:
    with serving(by_length) as stub:
        tournament = Tournament(ComparingJudge(judge(stub)), opponents)
        rewards = tournament.rewards(RESPONSES)
    assert rewards.index(max(rewards)) == 1 and rewards.index(min(rewards)) == 2
    used = tournament.take_usage()
    assert used["requests"] == requests == len(stub.bodies)
    assert (used["prompt_tokens"], used["completion_tokens"]) == (100 * requests, 5 * requests)


def test_rating_one_by_one() -> None:
    def rate(body: Any, number: int) -> Reply:
        answer = body["messages"][0]["content"].split("<answer>\n")[1].split("\n</answer>")[0]
        return Reply(completion(f"[[{min(len(answer), 11)}]]"))

    with serving(rate) as stub:
        annotator = ScoringJudge(judge(stub))
        assert annotator.rewards(RESPONSES) == [3.0, None, 2.0]
    assert annotator.take_usage()["invalid"] == 1


# --- odd answers -----------------------------------------------------------------------------------------------------


def always(*replies: Reply) -> Callable[[Any, int], Reply]:
    """These in turn, the last one for ever."""
    return lambda body, number: replies[min(number, len(replies) - 1)]


@pytest.mark.parametrize(
    ("reply", "counted"),
    [
        (completion("I'm sorry, but I can't help with that."), "invalid"),
        (completion(None), "invalid"),
        (completion('{"verdict": "[[A'), "invalid"),
        (completion("Let me think [[A]]", finish="length"), "truncated"),
        (completion("[[A]]\ud83d"), "invalid"),
    ],
    ids=["refusal", "no content", "cut JSON", "cut by length", "half a character"],
)
def test_invalid_verdicts_are_counted_and_not_asked_for_again(reply: Any, counted: str, tmp_path: Path) -> None:
    with serving(always(Reply(reply))) as stub:
        tournament = Tournament(ComparingJudge(judge(stub, AnswerStore(tmp_path))))
        for attempt in (1, 2):
            assert tournament.rewards(RESPONSES[:2]) == [None, None]
            used = tournament.take_usage()
            assert (used[counted], used["matches_without_verdict"]) == (2, 1)
            assert used["reused"] == (0 if attempt == 1 else 2)
    assert len(stub.bodies) == 2


def test_a_judge_that_always_prefers_the_first_place() -> None:
    with serving(always(Reply(completion("[[A]]")))) as stub:
        tournament = Tournament(ComparingJudge(judge(stub)))
        assert tournament.rewards(RESPONSES) == [0.0, 0.0, 0.0]
    assert tournament.take_usage()["orders_disagree"] == 3


@pytest.mark.parametrize(
    "fault",
    [
        Reply({"error": {"message": "slow down"}}, 429, {"retry-after": "0.02"}),
        Reply({"error": {"message": "oops"}}, 500),
        Reply(b"<html>bad gateway</html>", 502),
        Reply(b'{"choices": [{"mess'),
        Reply({"error": "no choices in it"}),
        Reply(b"[1, 2]"),
        Reply(b"", headers={"content-length": "50"}),
        Reply(completion("[[A]]"), pause=0.02),
    ],
    ids=["429", "500", "502", "torn JSON", "another object", "a list", "broken off", "slow stream"],
)
def test_passing_faults_are_tried_again(fault: Reply) -> None:
    """A slow stream never pauses for long and still has to end within the timeout."""
    with serving(always(fault, fault, Reply(completion("[[4]]")))) as stub:
        annotator = ScoringJudge(judge(stub, timeout=0.6, concurrency=1))
        assert annotator.rewards(RESPONSES[:1]) == [4.0]
    used = annotator.take_usage()
    assert (used["requests"], used["retries"]) == (3, 2) and len(stub.bodies) == 3


def test_a_server_that_stays_down_ends_the_run_with_a_remedy() -> None:
    with (
        serving(always(Reply({"error": {"message": "down"}}, 503))) as stub,
        pytest.raises(AnnotationError, match=r"no answer in 4 attempts: .*503.*start the same command again"),
    ):
        ScoringJudge(judge(stub, concurrency=1)).rewards(RESPONSES)
    assert len(stub.bodies) == 4


def test_nobody_listens() -> None:
    with serving(by_length) as stub:
        pass
    with pytest.raises(AnnotationError, match="no answer in 1 attempts"):
        ScoringJudge(judge(stub, retries=0)).rewards(RESPONSES)


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "status 401.*the environment variable that api_key_env names"), (404, "status 404.*the model's name")],
)
def test_faults_that_stay_are_not_tried_again(status: int, message: str) -> None:
    with (
        serving(always(Reply({"error": {"message": "no"}}, status))) as stub,
        pytest.raises(AnnotationError, match=message),
    ):
        ScoringJudge(judge(stub, concurrency=1)).rewards(RESPONSES)
    assert len(stub.bodies) == 1


def test_a_refused_request_has_no_reward_and_the_others_go_on(tmp_path: Path) -> None:
    """It was not paid for, so it is not kept."""

    def reply(body: Any, number: int) -> Reply:
        too_long = "long" in body["messages"][0]["content"]
        return Reply({"error": {"message": "too long"}}, 400) if too_long else Reply(completion("[[4]]"))

    with serving(reply) as stub:
        annotator = ScoringJudge(judge(stub, AnswerStore(tmp_path)))
        assert annotator.rewards(RESPONSES) == [4.0, None, 4.0]
        assert annotator.take_usage()["refused"] == 1
        assert annotator.rewards(RESPONSES) == [4.0, None, 4.0]
    assert len(stub.bodies) == 4


def test_one_text_too_long_costs_the_others_of_its_request_nothing(tmp_path: Path) -> None:
    def reply(body: Any, number: int) -> Reply:
        texts = [item["response"] for item in body["items"]]
        if any("long" in text for text in texts):
            return Reply({"error": {"message": "too long"}}, 413)
        return Reply({"rewards": [float(len(text)) for text in texts]})

    texts = ["a", "too long", "abc", *("b" * n for n in range(1, 20))]
    with serving(reply) as stub:
        annotator = RewardServer(access(stub), AnswerStore(tmp_path), {})
        found = annotator.rewards([request(text) for text in texts])
        assert found == [1.0, None, 3.0, *map(float, range(1, 20))]
        assert annotator.take_usage()["refused"] == 1
    assert sorted(len(body["items"]) for body in stub.bodies) == [*[1] * 16, 6, 16]


def test_many_texts_too_long_do_not_end_a_run_that_gets_other_answers(tmp_path: Path) -> None:
    def reply(body: Any, number: int) -> Reply:
        texts = [item["response"] for item in body["items"]]
        if any("long" in text for text in texts):
            return Reply({"error": {"message": "too long"}}, 413)
        return Reply({"rewards": [1.0] * len(texts)})

    requests = [request(f"too long {number}") for number in range(16)] + [request("ab")]
    with serving(reply) as stub:
        for _ in range(2):  # The second time, all but those are in the store.
            annotator = RewardServer(access(stub), AnswerStore(tmp_path), {})
            assert annotator.rewards(requests) == [None] * 16 + [1.0]
            assert annotator.take_usage()["refused"] == 16
        with pytest.raises(AnnotationError, match="refused all 16 requests"):
            RewardServer(access(stub), AnswerStore(tmp_path), {}).rewards(requests[:16])


def test_many_refusals_and_no_answer_end_the_run() -> None:
    with (
        serving(always(Reply({"error": {"message": "unknown field"}}, 400))) as stub,
        pytest.raises(AnnotationError, match=r"refused all 8 requests: .*unknown field"),
    ):
        ScoringJudge(judge(stub)).rewards([request(f"text {n}") for n in range(8)])


def test_a_probe_asks_one_small_question_once(tmp_path: Path) -> None:
    with serving(by_length) as stub:
        for _ in range(2):
            ScoringJudge(judge(stub, AnswerStore(tmp_path))).probe()
            Tournament(ComparingJudge(judge(stub, AnswerStore(tmp_path)))).probe()
    assert [body["messages"][0]["content"] for body in stub.bodies] == ["Answer with [[A]]."]


def test_a_probe_finds_a_field_that_the_model_does_not_take() -> None:
    with (
        serving(always(Reply({"error": {"message": "max_tokens is not supported"}}, 400))) as stub,
        pytest.raises(AnnotationError, match=r"refuses every request: .*max_tokens is not supported.*max_tokens: null"),
    ):
        ScoringJudge(judge(stub)).probe()


def test_concurrency_is_bounded_and_used() -> None:
    def slow(body: Any, number: int) -> Reply:
        time.sleep(0.1)
        return Reply(completion("[[4]]"))

    with serving(slow) as stub:
        ScoringJudge(judge(stub, concurrency=3)).rewards([request(f"text {n}") for n in range(9)])
    assert stub.most_at_once == 3


def test_inside_a_running_loop_as_in_a_notebook() -> None:
    async def cell() -> list[float | None]:
        return ScoringJudge(judge(stub)).rewards(RESPONSES[:1])

    with serving(always(Reply(completion("[[4]]")))) as stub:
        assert asyncio.run(cell()) == [4.0]


@pytest.mark.parametrize(("attempt", "asked", "bounds"), [(0, None, (0.75, 1)), (3, None, (6, 8)), (0, 5.0, (5, 5)),
                                                          (20, None, (45, 60)), (0, 9999.0, (600, 600))])  # fmt: skip
def test_waits_double_and_follow_the_server(attempt: int, asked: float | None, bounds: tuple[float, float]) -> None:
    wait = Endpoint(Access("http://localhost"), "", Counter())._wait(attempt, asked)
    assert bounds[0] <= wait <= bounds[1]


# --- a reward model behind an address --------------------------------------------------------------------------------


def lengths(body: Any, number: int) -> Reply:
    texts = [item["response"] for item in body["items"]]
    return Reply({"rewards": [len(t if isinstance(t, str) else t[-1]["content"]) for t in texts]})


def test_reward_server_gets_batches() -> None:
    requests = [request("x" * n, prompt=[{"role": "user", "content": "hi"}]) for n in range(1, 6)]
    with serving(lengths) as stub:
        server = RewardServer(access(stub), AnswerStore(), {"model": "rm"}, batch_size=2)
        assert server.rewards(requests) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert sorted(len(body["items"]) for body in stub.bodies) == [1, 2, 2]
    assert all(body["model"] == "rm" for body in stub.bodies)
    item = next(item for body in stub.bodies for item in body["items"] if item["response"][0]["content"] == "x")
    assert item == {"prompt": [{"role": "user", "content": "hi"}], "response": [{"role": "assistant", "content": "x"}]}


def test_equal_questions_are_asked_once() -> None:
    with serving(lengths) as stub:
        assert RewardServer(access(stub), AnswerStore(), {}).rewards([request("tea")] * 3) == [3.0] * 3
    assert [len(body["items"]) for body in stub.bodies] == [1]


def test_null_and_infinite_are_no_reward() -> None:
    with serving(always(Reply(b'{"rewards": [null, Infinity, 2]}'))) as stub:
        assert RewardServer(access(stub), AnswerStore(), {}).rewards(RESPONSES) == [None, None, 2.0]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"rewards": [1.0]}, "1 answers to 3 questions"),
        ({"scores": [1.0, 2.0, 3.0]}, "it has no rewards"),
        ({"rewards": 1.0}, "rewards must be a list"),
        ({"rewards": [1.0, "good", 2.0]}, "a reward must be a number or null; found good"),
        ({"rewards": [1.0, True, 2.0]}, "a reward must be a number or null; found True"),
    ],
)
def test_answers_against_the_contract(body: Any, problem: str) -> None:
    with serving(always(Reply(body))) as stub, pytest.raises(AnnotationError, match=problem):
        RewardServer(access(stub, retries=1), AnswerStore(), {}).rewards(RESPONSES)


def test_vllm_pooling() -> None:
    """Chats go as messages, for the server's own chat template; texts as input."""
    with serving(always(Reply({"data": [{"index": 0, "object": "pooling", "data": [[-1.5]]}]}))) as stub:
        server = VllmRewardServer(access(stub, concurrency=1), AnswerStore(), {"model": "rm"})
        chat = request("tea", prompt=[{"role": "user", "content": "hi"}])
        assert server.rewards([chat, request(" tea")]) == [-1.5, -1.5]
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "tea"}]
    assert stub.bodies == [{"messages": messages, "model": "rm"}, {"input": "say tea tea", "model": "rm"}]


def test_vllm_with_several_numbers_is_no_reward_model() -> None:
    with (
        serving(always(Reply({"data": [{"data": [0.1, 0.9]}]}))) as stub,
        pytest.raises(AnnotationError, match="a reward must be a number"),
    ):
        VllmRewardServer(access(stub, retries=0), AnswerStore(), {}).rewards(RESPONSES[:1])


# --- nothing is paid for twice ---------------------------------------------------------------------------------------


def test_answers_are_kept_on_disk_and_shared(tmp_path: Path) -> None:
    """A second annotator, as another run has one, asks for what is new alone; another model asks anew."""
    with serving(by_length) as stub:
        first = Tournament(ComparingJudge(judge(stub, AnswerStore(tmp_path))))
        second = Tournament(ComparingJudge(judge(stub, AnswerStore(tmp_path))))
        rewards = first.rewards(RESPONSES[:2])
        assert len(stub.bodies) == 2
        assert second.rewards(RESPONSES[:2]) == rewards
        assert len(stub.bodies) == 2 and second.take_usage()["reused"] == 2
        second.rewards(RESPONSES)
        assert len(stub.bodies) == 6
        other = Judge("another", access(stub), AnswerStore(tmp_path), {"temperature": 0.0})
        Tournament(ComparingJudge(other)).rewards(RESPONSES[:2])
        assert len(stub.bodies) == 8


def test_answers_that_came_before_a_fault_stay(tmp_path: Path) -> None:
    def reply(body: Any, number: int) -> Reply:
        return Reply(completion("[[4]]")) if number < 2 or up else Reply({"error": {"message": "no"}}, 403)

    up = False
    with serving(reply) as stub:
        with pytest.raises(AnnotationError, match="status 403"):
            ScoringJudge(judge(stub, AnswerStore(tmp_path), concurrency=1)).rewards(RESPONSES)
        up = True
        annotator = ScoringJudge(judge(stub, AnswerStore(tmp_path)))
        assert annotator.rewards(RESPONSES) == [4.0] * 3
    assert annotator.take_usage()["reused"] == 2 and len(stub.bodies) == 4


def keys(*numbers: object) -> list[str]:
    return [content_key(number) for number in numbers]


def test_answers_of_other_processes_are_seen(tmp_path: Path) -> None:
    ours, theirs = AnswerStore(tmp_path), AnswerStore(tmp_path)
    for number, key in enumerate(keys(0, 1, 2)):
        theirs.add({key: number})
        assert ours.find([key]) == {key: number}
    assert ours.find(keys(3)) == {}


def write_many(folder: Path, name: str) -> None:
    store = AnswerStore(folder)
    for number in range(25):
        store.add({content_key(name, number): "x" * 2000, content_key(name, number, "too"): None})


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(tmp_path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    asked = [content_key(name, number) for name in "ab" for number in range(25)]
    assert AnswerStore(tmp_path).find(asked) == dict.fromkeys(asked, "x" * 2000)
    assert AnswerStore(tmp_path).database.rows("SELECT count(*) AS n FROM answers") == [{"n": 100}]


def test_answers_are_on_disk_when_they_are_added(tmp_path: Path) -> None:
    """A process that is killed right afterwards has lost none."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=add_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert AnswerStore(tmp_path).find(keys("a", "b")) == {key: {"text": "sün"} for key in keys("a")}


def add_and_die(folder: Path) -> None:
    store = AnswerStore(folder)
    store.add({key: {"text": "sün"} for key in keys("a")})
    with store.database.transaction() as connection:
        connection.execute("INSERT INTO answers VALUES (x'00', '1', x'00')")
        os.kill(os.getpid(), signal.SIGKILL)


def test_memory_does_not_grow_with_the_answers(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.add(dict.fromkeys(keys(*range(1000)), "x" * 10000))
    again = AnswerStore(tmp_path)
    tracemalloc.start()
    assert again.find(keys(7, "none")) == dict.fromkeys(keys(7), "x" * 10_000)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_changed_bit_is_asked_for_again(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    (key,) = keys("a")
    store.add({key: {"text": "[[A]]"}})
    store.database.write("UPDATE answers SET answer = replace(answer, '[[A]]', '[[C]]')")
    assert AnswerStore(tmp_path).find([key]) == {}


def test_the_older_format_moves_into_the_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines that cannot be read are counted, and a later line wins."""
    a, b = keys("a", "b")
    lines = [{"key": a, "answer": 1}, {"key": b, "answer": {"text": "sün"}}, {"key": a, "answer": 2}, {"key": "zz"}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines) + '{"key": "' + a
    (tmp_path / "answers.jsonl").write_text(text, encoding="utf-8")
    assert AnswerStore(tmp_path).find([a, b]) == {a: 2, b: {"text": "sün"}}
    said = capsys.readouterr().out
    assert f"moved 3 paid answers from {tmp_path}/answers.jsonl to answers.sqlite" in said
    assert "2 lines could not be read" in said
    assert (tmp_path / "answers.jsonl.moved").exists() and not (tmp_path / "answers.jsonl").exists()
    assert AnswerStore(tmp_path).find([a]) == {a: 2} and capsys.readouterr().out == ""


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another folder for annotation_cache"):
        AnswerStore(tmp_path / "file").add(dict.fromkeys(keys("a"), 1))


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that gives a lock twice, and one that gives none."""
    refuse_without_locks(tmp_path)
    monkeypatch.setattr(fcntl, "fcntl", lambda *_: 0)
    with pytest.raises(RunError, match=r"gives one lock to two at once.*annotation_cache"):
        AnswerStore(tmp_path).find(keys("a"))

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with pytest.raises(RunError, match="gives no locks"):
        AnswerStore(tmp_path).find(keys("a"))


def test_file_systems_of_several_machines_share_no_memory() -> None:
    mounts = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / /mnt/my\\040home rw shared:3 - nfs4 server:/home rw\n"
    assert is_across_machines(Path("/mnt/my home/runs/1"), mounts)
    assert not is_across_machines(Path("/mnt/mine"), mounts)


# --- nothing odd is kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"rewards": [' + b"9" * 400 + b"]}",
        b'{"rewards": [' + b"9" * 5000 + b"]}",
        b'{"rewards": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"rewards": ["1"]}',
        b'{"rewards": [[1]]}',
        b'{"rewards": {"0": 1}}',
        b"[]",
        b"null",
        b'"rewards"',
        b"3",
        b"",
    ],
)
def test_an_odd_reward_is_asked_for_again_and_not_kept(body: bytes, tmp_path: Path) -> None:
    with serving(lambda _, number: Reply(body if number == 0 else {"rewards": [2]})) as stub:
        server = RewardServer(access(stub), AnswerStore(tmp_path), {})
        assert server.rewards(RESPONSES[:1]) == [2.0] and server.usage["retries"] == 1
        assert RewardServer(access(stub), AnswerStore(tmp_path), {}).rewards(RESPONSES[:1]) == [2.0]
    assert len(stub.bodies) == 2


@pytest.mark.parametrize("odd", ["null", '{"text": 3, "finish": "stop"}', '{"text": "[[4]]"', "4", '{"finish": null}'])
def test_a_poisoned_entry_is_asked_for_again(odd: str, tmp_path: Path) -> None:
    """As an older version may have kept it, or a disk changed it."""
    with serving(always(Reply(completion("[[4]]")))) as stub:
        annotator = ScoringJudge(judge(stub, AnswerStore(tmp_path)))
        assert annotator.rewards(RESPONSES[:1]) == [4.0]
        poison(tmp_path, odd)
        assert annotator.rewards(RESPONSES[:1]) == [4.0]
        assert ScoringJudge(judge(stub, AnswerStore(tmp_path))).rewards(RESPONSES[:1]) == [4.0]
    assert len(stub.bodies) == 2


def poison(folder: Path, answer: str) -> None:
    database = AnswerStore(folder).database
    (key,) = (row["key"] for row in database.rows("SELECT key FROM answers"))
    database.write("UPDATE answers SET answer = ?, seal = ?", answer, seal(key, answer))


def test_a_huge_reward_in_the_cache_does_not_stop_a_run(tmp_path: Path) -> None:
    with serving(always(Reply({"rewards": [2]}))) as stub:
        server = RewardServer(access(stub), AnswerStore(tmp_path), {})
        server.rewards(RESPONSES[:1])
        poison(tmp_path, "9" * 400)
        assert server.rewards(RESPONSES[:1]) == [2.0]


def odd_completion(choice: Any = None, **changes: Any) -> dict[str, Any]:
    whole = completion("[[4]]")
    return whole | {"choices": [whole["choices"][0] | (choice or {})]} | changes


@pytest.mark.parametrize(
    "body",
    [
        odd_completion({"message": {"content": 3}}),
        odd_completion({"message": {"content": ["[[4]]"]}}),
        odd_completion({"finish_reason": {}}),
        odd_completion(choices={"a": 1}),
        odd_completion(choices=[]),
        [1],
    ],
)
def test_an_odd_completion_is_asked_for_again(body: Any) -> None:
    with serving(lambda _, number: Reply(body if number == 0 else completion("[[4]]"))) as stub:
        assert ScoringJudge(judge(stub)).rewards(RESPONSES[:1]) == [4.0]
    assert len(stub.bodies) == 2


@pytest.mark.parametrize("usage", [None, 3, "many", [], {"prompt_tokens": "100", "completion_tokens": -5}])
def test_odd_token_counts_do_not_count(usage: Any) -> None:
    with serving(always(Reply(odd_completion(usage=usage)))) as stub:
        annotator = ScoringJudge(judge(stub))
        assert annotator.rewards(RESPONSES[:1]) == [4.0]
    assert annotator.take_usage().get("prompt_tokens", 0) == 0


def test_content_keys() -> None:
    assert content_key("u", {"a": 1, "b": 2}) == content_key("u", {"b": 2, "a": 1})
    assert len({content_key("u", 1), content_key("u", "1"), content_key("v", 1), content_key("u1", "")}) == 4
