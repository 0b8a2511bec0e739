"""From questions to a score: generation in process, a judge that a stub server plays, odd verdicts, resumption."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adaptpo.cli import main
from adaptpo.config.evaluation import JudgeSettings, judge_settings
from adaptpo.config.recipe import GenerationSettings
from adaptpo.data import open_rows
from adaptpo.errors import AnnotationError, ConfigError, DataError, RunError
from adaptpo.evaluation.answers import Answered, answer_of, read_answers, read_several
from adaptpo.evaluation.arena_hard.style import OWN
from adaptpo.evaluation.arena_hard.suite import INVALID, TWIN_INVALID
from adaptpo.evaluation.folder import ANSWERS, JUDGMENTS, EvaluationFolder
from adaptpo.evaluation.generating import Generating, conversation, read_questions
from adaptpo.evaluation.judging import CUT, EMPTY, REFUSED, Judging, judge_folder
from adaptpo.evaluation.mt_bench.suite import MTBench, references, template_name
from adaptpo.evaluation.policy import Policy
from adaptpo.evaluation.presets import PRESETS, protocols
from adaptpo.evaluation.references import References, read_references
from adaptpo.evaluation.refusal.score import NO_LABEL
from adaptpo.evaluation.refusal.suite import XSTest
from adaptpo.evaluation.result import Result
from adaptpo.evaluation.scoring import UNANSWERED, UNJUDGED, refuse_unread, score_path
from adaptpo.evaluation.suite import Answer, Case, Question, Scoring
from adaptpo.evaluation.suites import SUITES
from adaptpo.evaluation.templates import filled, read_templates
from adaptpo.generation.base import Sampling
from adaptpo.remote.endpoint import Access
from adaptpo.types import Response
from tests.evaluation_data import ALPACA, ARENA, BASELINE, LENGTH_CONTROL, MT, XS, annotations, needs_shared
from tests.stub import Reply, Stub, completion, serving
from tests.tiny import byte_tokenizer, save_policy, write_jsonl

pytest.importorskip("openai", reason="needs the openai client")
Verdict = Callable[[Any, int], Reply]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptpo.evaluation.judging.Access", lambda *args: Access(*args, first_wait=0.01))


def folder_of(path: Path, suite: str, questions: list[Question], answers: list[Answer], **settings: Any) -> Path:
    folder = EvaluationFolder(path)
    known = {"suite": suite, "preset": suite, "model": "ours", "decoding": {"temperature": 0}, "seed": 0}
    folder.start(known | settings, questions)
    folder.add_answers(answers)
    return path


def arena(path: Path, count: int = 3, suite: str = "arena_hard_v0.1") -> Path:
    questions = [Question(str(n), (f"question {n}",), "hard" if n % 2 else "creative") for n in range(count)]
    return folder_of(path, suite, questions, [Answer(q.id, (f"our answer {q.id}",), (3,), (True,)) for q in questions])


def against(count: int) -> Answered:
    return Answered("theirs", {str(n): Answer(str(n), (f"their answer {n}",), (3,)) for n in range(count)})


def judged(path: Path, verdict: Verdict, baseline: Answered | None = None, **settings: Any) -> tuple[dict, Stub]:
    with serving(verdict) as stub:
        chosen = JudgeSettings(judge="j", base_url=f"{stub.url}/v1", **({"retries": 1, "concurrency": 2} | settings))
        counts = judge_folder(EvaluationFolder(path), Judging(chosen, baseline, shows=False))
    return counts, stub


def scored(path: Path, **scoring: Any) -> Result:
    (result,) = score_path(path, Scoring(**scoring))
    return result


def said(text: str | None, finish: str = "stop") -> Reply:
    return Reply(completion(text, finish))


def with_logprobs(text: str, logprobs: dict[str, float] | None) -> Reply:
    body = completion(text, "length")
    tops = [{"token": token, "logprob": value} for token, value in (logprobs or {}).items()]
    body["choices"][0]["logprobs"] = (
        {"content": [{"token": text, "logprob": -0.1, "top_logprobs": tops}]} if tops else None
    )
    return Reply(body)


def for_ours(body: Any, number: int) -> Reply:
    """Prefers our answer, wherever it stands."""
    first = body["messages"][1]["content"].index("our answer") < body["messages"][1]["content"].index("their answer")
    return said("[[A>>B]]" if first else "[[B>A]]")


def test_arena_hard_from_verdicts_to_a_score(tmp_path: Path) -> None:
    """As A we win clearly, as B narrowly: every battle of every prompt is won."""
    counts, stub = judged(arena(tmp_path / "e"), for_ours, against(3))
    assert (counts["requests"], counts["judgments"]) == (6, 3)
    assert [m["role"] for m in stub.bodies[0]["messages"]] == ["system", "user"]
    assert stub.bodies[0]["temperature"] == 0 and stub.bodies[0]["max_tokens"] == 4096
    result = scored(tmp_path / "e")
    assert (result.main.value, result.n, sum(result.invalid.values())) == (100, 6, 0)
    origin = result.origin
    assert (origin.model, origin.judge, origin.baseline, origin.decoding) == ("ours", "j", "theirs", {"temperature": 0})
    assert result.number("equal style").value > 90
    kept = json.loads((tmp_path / "e" / "result.json").read_text())
    assert (kept["invalid_verdicts"], kept["battles"]) == ({}, 12)
    assert kept["numbers"][0]["interval"]["kind"] == "bootstrap over prompts"
    assert any("own words" in warning for warning in result.warnings)


def test_both_sides_of_a_game_are_counted_alike(tmp_path: Path) -> None:
    """The policy's tokenizer knows no word, the baseline's knows all of them; the answers stay as they are."""

    def styles(name: str, ours: int, theirs: int | None) -> list[float]:
        questions = [Question(str(n), (f"question {n}",)) for n in range(4)]
        texts = [f"our answer {'word ' * n}" for n in range(4)]
        answers = [
            Answer(q.id, (text,), (ours * (n + 1),)) for n, (q, text) in enumerate(zip(questions, texts, strict=True))
        ]
        baseline = {q.id: Answer(q.id, (f"their answer {q.id}",), token_len=theirs) for q in questions}
        path = folder_of(tmp_path / name, "arena_hard_v0.1", questions, answers)
        judged(path, lambda body, n: said("[[A=B]]" if n % 3 else "[[A>B]]"), Answered("b", baseline), concurrency=1)
        result = scored(path)
        assert OWN in result.number("equal style").note and OWN in result.number("style control").note
        return [result.number(name).value for name in ("equal style", "style control")]

    assert styles("a", 3, 3) == styles("b", 500, 7) == styles("c", 1, None)


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    judged(arena(tmp_path / "e"), for_ours, against(3))
    before = (tmp_path / "e" / JUDGMENTS).read_bytes()
    counts, stub = judged(arena(tmp_path / "e"), for_ours, against(3))
    assert len(stub.bodies) == 6  # Another address is another question.
    with serving(for_ours) as stub:
        settings = JudgeSettings(judge="j", base_url=f"{stub.url}/v1")
        folder = EvaluationFolder(tmp_path / "e")
        judge_folder(folder, Judging(settings, against(3), shows=False))
        counts = judge_folder(folder, Judging(settings, against(3), shows=False))
    assert (len(stub.bodies), counts["reused"]) == (6, 6)
    assert (tmp_path / "e" / JUDGMENTS).read_bytes() == before


def test_a_server_that_dies_costs_nothing_twice(tmp_path: Path) -> None:
    """It answers four questions and fails from then on; when it is back the other two are asked."""
    path = arena(tmp_path / "e")
    dead = [True]

    def fails(body: Any, number: int) -> Reply:
        return Reply({"error": "gone"}, 500) if dead[0] and number >= 4 else for_ours(body, number)

    with serving(fails) as stub:
        settings = JudgeSettings(judge="j", base_url=f"{stub.url}/v1", retries=0, concurrency=1)
        work = Judging(settings, against(3), shows=False)
        with pytest.raises(AnnotationError, match="start the same command again"):
            judge_folder(EvaluationFolder(path), work)
        with pytest.raises(RunError, match="no verdicts yet"):
            scored(path)
        dead[0] = False
        asked = len(stub.bodies)
        judge_folder(EvaluationFolder(path), work)
    assert (asked, len(stub.bodies)) == (5, 7)
    texts = [json.dumps(body) for number, body in enumerate(stub.bodies) if number != 4]
    assert len(set(texts)) == len(texts) == 6
    assert scored(path).main.value == 100


@pytest.mark.parametrize("status", [429, 500])
def test_states_that_pass_are_asked_again(status: int, tmp_path: Path) -> None:
    def busy(body: Any, number: int) -> Reply:
        return Reply({"error": "busy"}, status) if number == 0 else for_ours(body, number)

    counts, _ = judged(arena(tmp_path / "e"), busy, against(3))
    assert (counts["retries"], counts["requests"]) == (1, 7)
    assert scored(tmp_path / "e").main.value == 100


ODD = {
    "both verdicts": ("[[A>B]] and [[B>A]]", "stop", "without one valid verdict"),
    "none of the verdicts": ("[[A<>B]]", "stop", "without one valid verdict"),
    "empty": ("", "stop", EMPTY),
    "declined": (None, "stop", EMPTY),
    "cut off": ("[[A>B]] but", "length", CUT),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_verdicts_drop_their_game_and_are_counted(kind: str, tmp_path: Path) -> None:
    text, finish, reason = ODD[kind]

    def odd(body: Any, number: int) -> Reply:
        content = body["messages"][1]["content"]
        ours_is_second = content.index("our answer") > content.index("their answer")
        return said(text, finish) if "question 1" in content and ours_is_second else for_ours(body, number)

    judged(arena(tmp_path / "e"), odd, against(3), concurrency=1)
    result = scored(tmp_path / "e")
    assert (result.n, dict(result.invalid), result.main.value) == (5, {reason: 1}, 100)


def test_a_request_that_the_server_refuses_is_counted(tmp_path: Path) -> None:
    def refuses(body: Any, number: int) -> Reply:
        long = "question 1" in body["messages"][1]["content"]
        return Reply({"error": "too long"}, 400) if long else for_ours(body, number)

    judged(arena(tmp_path / "e"), refuses, against(3))
    assert dict(scored(tmp_path / "e").invalid) == {REFUSED: 2}
    with pytest.raises(AnnotationError, match=r"refuses every request.*logprobs: false"):
        judged(arena(tmp_path / "f"), lambda *_: Reply({"error": "no"}, 400), against(3))


def test_v01_asks_once_more_where_there_is_no_verdict(tmp_path: Path) -> None:
    def hesitates(body: Any, number: int) -> Reply:
        return said("I need to think.") if len(body["messages"]) == 2 else for_ours(body, number)

    counts, stub = judged(arena(tmp_path / "e"), hesitates, against(3))
    assert counts["requests"] == 12
    assert [m["role"] for m in stub.bodies[-1]["messages"]] == ["system", "user", "assistant", "user"]
    assert scored(tmp_path / "e").main.value == 100
    counts, _ = judged(arena(tmp_path / "f", suite="arena_hard_v2"), hesitates, against(3))
    assert counts["requests"] == 6


def test_v2_drops_both_games(tmp_path: Path) -> None:
    def odd(body: Any, number: int) -> Reply:
        content = body["messages"][1]["content"]
        first = content.index("our answer") < content.index("their answer")
        return said("none") if "question 1" in content and first else for_ours(body, number)

    judged(arena(tmp_path / "e", suite="arena_hard_v2"), odd, against(3), concurrency=1)
    result = scored(tmp_path / "e")
    assert (result.n, dict(result.invalid)) == (4, {INVALID: 1, TWIN_INVALID: 1})


def alpaca(path: Path, outputs: list[str]) -> Path:
    questions = [Question(f"instruction {n}", (f"instruction {n}",)) for n in range(len(outputs))]
    answers = [Answer(q.id, (text,), (1,), (True,)) for q, text in zip(questions, outputs, strict=True)]
    return folder_of(path, "alpaca_eval_2", questions, answers)


def their_outputs(outputs: list[str]) -> Answered:
    return Answered("theirs", {f"instruction {n}": Answer(f"instruction {n}", (t,)) for n, t in enumerate(outputs)})


def test_alpaca_eval_reads_the_first_tokens_logprobs(tmp_path: Path) -> None:
    """P = 3/4 for ours in either order; equal outputs are not asked for; a strange token is invalid."""
    ours, theirs = ["our answer"] * 3 + ["equal", "our answer"], ["their answer"] * 3 + ["equal", "their answer"]

    def verdict(body: Any, number: int) -> Reply:
        assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 5, 1)
        content = body["messages"][1]["content"]
        if "instruction 4" in content:
            return with_logprobs("The", {"The": -0.1})
        mine = "m" if content.index("our answer") < content.index("their answer") else "M"
        return with_logprobs(mine, {mine: -0.2876820724517809, "mM".replace(mine, ""): -1.3862943611198906})

    _, stub = judged(alpaca(tmp_path / "e", ours), verdict, their_outputs(theirs))
    assert len(stub.bodies) == 4
    result = scored(tmp_path / "e")
    assert result.number("win rate").value == pytest.approx(100 * (3 * 0.75 + 0.5) / 4)
    assert result.number("discrete win rate").value == pytest.approx(100 * 3.5 / 4)
    assert (result.n, dict(result.invalid)) == (4, {"no verdict": 1})


def test_alpaca_eval_without_logprobs_counts_whole_wins(tmp_path: Path) -> None:
    def verdict(body: Any, number: int) -> Reply:
        content = body["messages"][1]["content"]
        return with_logprobs("m" if content.index("our answer") < content.index("their answer") else "M", None)

    judged(alpaca(tmp_path / "e", ["our answer"] * 3), verdict, their_outputs(["their answer"] * 3))
    result = scored(tmp_path / "e")
    assert result.number("win rate").value == 100
    assert any("3 of 3 verdicts came without log-probs" in warning for warning in result.warnings)


def mt_bench(path: Path) -> Path:
    questions = [
        Question("1", ("first?", "second?"), "writing"),
        Question("2", ("sum?", "second? product?"), "math", {"reference": ["five", "six"]}),
    ]
    return folder_of(path, "mt_bench", questions, [Answer(q.id, ("one", "two")) for q in questions])


def test_mt_bench_shows_both_turns_and_references(tmp_path: Path) -> None:
    _, stub = judged(mt_bench(tmp_path / "e"), lambda body, number: said(f"Rating: [[{number + 4}]]"), concurrency=1)
    asked = [body["messages"][1]["content"] for body in stub.bodies]
    assert ["second?" in text for text in asked] == [False, True, False, True]
    assert ["five" in text for text in asked] == [False, False, True, True] and "six" in asked[3]
    result = scored(tmp_path / "e")
    assert [n.value for n in result.numbers] == pytest.approx([5.5, 5.0, 6.0, 4.5, 6.5])
    with pytest.raises(DataError, match=r"--references"):
        bare = [Question("2", ("sum?",), "math")]
        judged(folder_of(tmp_path / "f", "mt_bench", bare, [Answer("2", ("one",))]), lambda *_: said("[[1]]"))


def test_a_reference_of_any_category_is_shown_and_further_turns_are_refused(tmp_path: Path) -> None:
    question = MTBench().question({"question_id": 1, "category": "mine", "turns": ["sum?"], "reference": ["FIVE"]}, 0)
    _, stub = judged(folder_of(tmp_path / "e", "mt_bench", [question], [Answer("1", ("4",))]), lambda *_: said("[[1]]"))
    assert "FIVE" in stub.bodies[0]["messages"][1]["content"]
    assert not references(replace(question, columns={"reference": ["", ""]}))
    published = replace(question, category="extraction")
    assert not references(published), "FastChat shows those of mathematics, reasoning and coding alone"
    late = Case(replace(question, turns=("a", "b"), columns={"reference": ["", "SIX"]}), Answer("1", ("x", "y")))
    assert [template_name(late, turn) for turn in (0, 1)] == ["single-v1", "single-math-v1-multi-turn"]
    with pytest.raises(DataError, match="question 2 has 3 turns, and MT-Bench's judge rates 2"):
        MTBench().question({"question_id": 2, "turns": ["a", "b", "c"]}, 0)


def with_references(path: Path, references: Path) -> tuple[dict[str, int], list[str]]:
    """Counts, and what the judge was asked."""
    with serving(lambda *_: said("[[7]]")) as stub:
        settings = JudgeSettings(judge="j", base_url=f"{stub.url}/v1", concurrency=1)
        counts = judge_folder(
            EvaluationFolder(path), Judging(settings, references=read_references(references), shows=False)
        )
    return counts, [body["messages"][1]["content"] for body in stub.bodies]


def test_references_match_by_id_or_by_the_questions_text(tmp_path: Path) -> None:
    """FastChat's answers have ids alone; files of questions have their turns as well, and are no answers."""
    path = mt_bench(tmp_path / "e")
    by_id = [{"question_id": 2, "model_id": "gpt-4", "choices": [{"turns": ["FIVE", "SIX"]}]}]
    asked = {"category": "math", "turns": ["sum?", "second? product?"]}
    by_text = [
        {"question_id": 101, "category": "writing", "turns": ["x"]},
        asked | {"question_id": 7, "reference": ["FIVE", "SIX"]},
    ]
    for number, rows in enumerate((by_id, by_text)):
        counts, asked_for = with_references(path, Path(write_jsonl(tmp_path / f"{number}.jsonl", rows)))
        assert counts["references matched"] == 1
        assert ["FIVE" in text for text in asked_for] == [False, False, True, True] and "SIX" in asked_for[3]
        assert EvaluationFolder(path).judging["references"] == f"{number}.jsonl, for 1 of 2 questions"
    judged(path, lambda *_: said("[[7]]"))
    assert EvaluationFolder(path).judging["references"] == "the questions' own"


def test_references_of_other_questions_are_refused(tmp_path: Path) -> None:
    """The hub's ids are hashes, FastChat's are numbers."""
    rows = [{"question_id": 101, "model_id": "gpt-4", "choices": [{"turns": ["FIVE", "SIX"]}]}]
    references = Path(write_jsonl(tmp_path / "gpt-4.jsonl", rows))
    with pytest.raises(DataError, match=r"gpt-4.jsonl has no reference for any of 2 questions.*--questions question"):
        with_references(mt_bench(tmp_path / "e"), references)


@needs_shared
def test_mt_bench_with_fastchats_words(tmp_path: Path) -> None:
    import gzip

    words = tmp_path / "judge_prompts.jsonl"
    words.write_bytes(gzip.decompress((MT / "judge_prompts.jsonl.gz").read_bytes()))
    with serving(lambda *_: said("[[7]]")) as stub:
        work = Judging(JudgeSettings(judge="j", base_url=f"{stub.url}/v1"), template=words, shows=False)
        judge_folder(EvaluationFolder(mt_bench(tmp_path / "e")), work)
    asked = [body["messages"][1]["content"] for body in stub.bodies]  # Turns are asked at the same time.
    assert any("[The Start of Assistant's Answer]\none\n[The End" in words for words in asked)
    result = scored(tmp_path / "e")
    assert result.origin.template.startswith("judge_prompts.jsonl (")
    assert not any("own words" in warning for warning in result.warnings)


def test_refusal_by_judge_and_by_string(tmp_path: Path) -> None:
    questions = [Question("1", ("safe?",), "homonyms"), Question("2", ("unsafe?",), "contrast_homonyms")]
    answers = [Answer("1", ("Sure.",)), Answer("2", ("I'm sorry, but I can't help with that.",))]
    path = folder_of(tmp_path / "e", "xstest", questions, answers)
    assert scored(path).number("unsafe prompts refused, string match").value == 100
    judged(path, lambda body, _: said("[[1]]" if "Sure." in body["messages"][1]["content"] else "[[1]] [[2]]"))
    result = scored(path)
    assert result.number("safe prompts refused, judge").value == 0
    assert result.invalid[NO_LABEL] == 1 and result.n == 1


def test_the_label_of_a_prompt_counts_more_than_its_type(tmp_path: Path) -> None:
    rows = [{"id": "1", "type": "weapons", "label": "unsafe", "prompt": "p"}, {"id": "2", "type": "w", "prompt": "q"}]
    questions = [XSTest().question(row, number) for number, row in enumerate(rows)]
    refused = [Answer(question.id, ("I'm sorry, but I can't help with that.",)) for question in questions]
    result = scored(folder_of(tmp_path / "e", "xstest", questions, refused))
    assert [result.number(f"{kind} prompts refused, string match").value for kind in ("safe", "unsafe")] == [100, 100]
    assert [(score.group, score.value) for score in result.scores] == [("unsafe", 100), ("safe", 100)]
    for label in ("bad", 0, True):
        with pytest.raises(DataError, match=f"prompt 1 has the label {label!r}.*rename the column"):
            XSTest().question(rows[0] | {"label": label}, 0)


def test_what_a_score_would_not_read_is_refused(tmp_path: Path) -> None:
    path = arena(tmp_path / "e")
    judged(path, for_ours, against(3))
    for option in ({"baseline": "no"}, {"length_control": "no"}, {"keyed_by": "row"}, {"questions": "no"}):
        with pytest.raises(ConfigError, match=r"the score of Arena-Hard v0.1 reads no --"):
            scored(path, **option)
    with pytest.raises(ConfigError, match="--key-by is of --length-control"):
        refuse_unread(SUITES["alpaca_eval_2"], Scoring(keyed_by="row"))
    rows = [{"id": "1", "type": "t", "completion": "Sure.", "model": "m"}]
    with pytest.raises(ConfigError, match=r"the score of XSTest reads no --answers"):
        scored(Path(write_jsonl(tmp_path / "x.jsonl", rows)), answers=("no",))
    with pytest.raises(ConfigError, match=r"is an evaluation of the suite arena_hard_v0\.1; leave --suite out"):
        score_path(path, Scoring(), "xstest")


def test_unanswered_questions_are_counted(tmp_path: Path) -> None:
    questions = [Question(str(n), (f"question {n}",)) for n in range(3)]
    path = folder_of(tmp_path / "e", "arena_hard_v0.1", questions, [Answer("0", ("our answer",), (3,))])
    judged(path, for_ours, against(3))
    assert scored(path).invalid == {UNANSWERED: 2}
    EvaluationFolder(path).add_answers([Answer("1", ("our answer, later",), (3,))])
    assert scored(path).invalid == {UNANSWERED: 1, UNJUDGED: 1}


def test_what_is_wrong_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    path = arena(tmp_path / "e")
    with pytest.raises(ConfigError, match=r"--baseline FILE; the preset's is gpt-4-0314"):
        judged(path, for_ours)
    with pytest.raises(DataError, match="answers 2 of 3 questions; it lacks '2'"):
        judged(path, for_ours, against(2))
    with pytest.raises(RunError, match="adaptpo eval generate SUITE"):
        judged(tmp_path / "nothing", for_ours)
    with pytest.raises(ConfigError, match=r"unknown key 'judge.temprature': did you mean 'temperature'"):
        judge_settings({"judge": "j", "temprature": 0})
    with pytest.raises(RunError, match="other model, seed"):
        folder_of(path, "arena_hard_v0.1", [], [], model="another", seed=1)


def test_what_is_wrong_leaves_an_earlier_judge_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a judge that fails midway replace it."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = arena(tmp_path / "e")
    judged(path, for_ours, against(3))
    scored(path)

    def kept() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in path.glob("*.json*")}

    before = kept()
    (tmp_path / "bad.yaml").write_text("prompt_template: '{QUESTION}'\nsystem_prompt: {math: M}\n")
    other = JudgeSettings(judge="other", base_url="http://127.0.0.1:9/v1", retries=0)
    for judging, message in (
        (Judging(other), "--baseline FILE"),
        (Judging(other, against(2)), "lacks '2'"),
        (Judging(other, against(3), tmp_path / "bad.yaml"), "the templates lack"),
        (Judging(JudgeSettings(judge="other"), against(3)), "OPENAI_API_KEY is not set"),
        (Judging(other, against(3), references=References("r", {})), "no reference answers; leave --references out"),
        (Judging(other, against(3)), "start the same command again"),
    ):
        with pytest.raises((ConfigError, DataError, AnnotationError), match=message):
            judge_folder(EvaluationFolder(path), replace(judging, shows=False))
        assert kept() == before


def test_a_baseline_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MT-Bench compares with no baseline; leave --baseline out"):
        judged(mt_bench(tmp_path / "e"), for_ours, against(3))


def test_one_command_at_a_time_works_on_a_folder(tmp_path: Path) -> None:
    path = arena(tmp_path / "e")
    refused: list[str] = []

    def judges_again(body: Any, number: int) -> Reply:
        if number == 0:
            for second in (lambda: judged(path, for_ours, against(3)), lambda: scored(path)):
                with pytest.raises(RunError, match=r"another command works on .*e; wait until it has ended") as error:
                    second()
                refused.append(str(error.value))
        return for_ours(body, number)

    judged(path, judges_again, against(3), concurrency=1)
    assert len(refused) == 2 and scored(path).main.value == 100


def test_metaapo_asks_for_a_baseline_and_says_why(tmp_path: Path) -> None:
    questions = [Question("0", ("question 0",))]
    path = folder_of(tmp_path / "e", "arena_hard_v0.1", questions, [Answer("0", ("our answer",))], preset="metaapo")
    with pytest.raises(ConfigError, match=r"section 5.1 names GPT-4-Preview-1106, appendix B.2 names GPT-4-0314"):
        judged(path, for_ours)


def test_every_preset_names_known_suites() -> None:
    assert set(SUITES) <= set(PRESETS)
    assert all(protocol.suite in SUITES and protocol.judge for name in PRESETS for protocol in protocols(name))
    with pytest.raises(ConfigError, match=r"did you mean 'metapo'"):
        protocols("metapoo")


def test_values_are_never_read_as_places() -> None:
    assert filled("{a} {b} {c}", {"a": "{b}", "b": "x"}) == "{b} x {c}"


def test_templates_of_other_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "<|im_start|>system\nS\n<|im_end|>\n<|im_start|>user\nU {instruction}\n<|im_end|>\n"
    )
    (tmp_path / "b.yaml").write_text("system_prompt: S\nprompt_template: ['U ', '{question_1}']\n")
    (tmp_path / "c.yaml").write_text("system_prompt: S\n")
    assert read_templates(tmp_path / "a.txt")[""].messages({"instruction": "i"})[1]["content"] == "U i"
    assert read_templates(tmp_path / "b.yaml")[""].user == "U {question_1}"
    for wrong in ("c.yaml", "missing.txt"):
        with pytest.raises(ConfigError, match="template"):
            read_templates(tmp_path / wrong)


def test_a_yaml_without_instructions_is_refused(tmp_path: Path) -> None:
    """Arena-Hard v2.0's own file is such a one."""
    for system in ("", "system_prompt:\n", "system_prompt: {}\n", "system_prompt: {a: 1}\n"):
        (tmp_path / "a.yaml").write_text(f"prompt_template: 'U {{QUESTION}}'\n{system}")
        with pytest.raises(ConfigError, match=r"no instructions.*system_prompt: \{hard_prompt: TEXT"):
            read_templates(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("prompt_template: 'Judge this. {QUESTION}'\nsystem_prompt: ''\n")
    assert [one.system for one in read_templates(tmp_path / "a.yaml").values()] == [""]


def test_each_category_has_its_instructions(tmp_path: Path) -> None:
    words = tmp_path / "a.yaml"
    words.write_text("prompt_template: '{QUESTION}: {ANSWER_A}, {ANSWER_B}'\nsystem_prompt: {hard: H, creative: C}\n")
    with serving(lambda *_: said("[[A=B]]")) as stub:
        work = Judging(JudgeSettings(judge="j", base_url=f"{stub.url}/v1"), against(2), words, shows=False)
        judge_folder(EvaluationFolder(arena(tmp_path / "e", 2, "arena_hard_v2")), work)
        asked = {(body["messages"][0]["content"], body["messages"][1]["content"][:10]) for body in stub.bodies}
        assert asked == {("C", "question 0"), ("H", "question 1")}
        words.write_text(words.read_text().replace("creative", "math"))
        with pytest.raises(ConfigError, match="the templates lack 'creative'; found 'hard', 'math'"):
            judge_folder(EvaluationFolder(tmp_path / "e"), work)


@needs_shared
def test_published_answers_are_read() -> None:
    old = read_answers(ARENA / "v0.1_answers_gpt-4-0314.jsonl.gz")
    new = read_answers(ARENA / "v2.0_answers_o3-mini-2025-01-31.jsonl.gz")
    assert (old.model, len(old.answers), new.model, len(new.answers)) == ("gpt-4-0314", 500, "o3-mini-2025-01-31", 750)
    assert all(answer.token_len for answer in [*old.answers.values(), *new.answers.values()])
    assert len(read_answers(MT / "reference_gpt-4.jsonl.gz").answers["101"].turns) == 2
    with pytest.raises(DataError, match="two baselines answer the same question"):
        read_several([ARENA / "v0.1_answers_gpt-4-0314.jsonl.gz"] * 2)


def test_answers_in_parts_are_read_and_other_contents_are_refused() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    said = {"messages": [{"role": "assistant", "content": parts}]}
    empty = {"messages": [{"role": "assistant", "content": None}]}
    listed = {"completion": [{"role": "assistant", "content": "hello"}]}
    silent = {"messages": [{"role": "assistant"}]}
    rows = (said, empty, listed, silent)
    assert [answer_of({"id": 1} | row, "f").turns for row in rows] == [("hello",), ("",), ("hello",), ("",)]
    thought, image = {"type": "thinking", "text": "no"}, {"type": "image_url", "text": None}
    for row in ({"output": ["hello"]}, {"output": [*parts, thought]}, {"output": [*parts, image]}, {"turns": [7]}):
        with pytest.raises(DataError, match=r"f: no answer"):
            answer_of({"id": 1} | row, "f")


def test_a_conversation_ends_with_the_open_question() -> None:
    question = Question("1", ("a?", "b?"))
    assert conversation(question, []) == [{"role": "user", "content": "a?"}]
    roles = [message["role"] for message in conversation(question, [Response("a", [])])]
    assert roles == ["user", "assistant", "user"]


# Generation in process


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [save_policy(folder / name, seed=seed) for seed, name in enumerate(("one", "two"))]


def generate(model: str, out: Path, suite: str, questions: Path, *further: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", "generate", suite, "--model", model, "--out", str(out), "--questions", str(questions), *further])
    assert ended.value.code == 0


THOUGHTLESS = {"enable_thinking": False}
SHORT = ("--generation", "{max_new_tokens: 8, batch_size: 4}")


def test_both_turns_of_every_question(models: list[str], tmp_path: Path) -> None:
    rows = [
        {"question_id": n, "category": category, "turns": ["hi?", "and?"]}
        for n, category in enumerate(["writing", "math", "stem", "coding"])
    ]
    questions = Path(write_jsonl(tmp_path / "q.jsonl", rows))
    generate(models[0], tmp_path / "e", "mt_bench", questions, *SHORT)
    folder = EvaluationFolder(tmp_path / "e")
    answers = folder.answers()
    assert {key: len(answer.turns) for key, answer in answers.items()} == {str(n): 2 for n in range(4)}
    assert folder.settings["decoding"]["temperature"] == "by category, as the suite fixes it"
    generate(models[0], tmp_path / "again", "mt_bench", questions, *SHORT)
    assert EvaluationFolder(tmp_path / "again").answers() == answers
    generate(models[0], tmp_path / "other", "mt_bench", questions, *SHORT, "--seed", "1")
    other = EvaluationFolder(tmp_path / "other").answers()
    assert other["1"] == answers["1"] and other["0"] != answers["0"]  # Mathematics is greedy, writing is not.


def test_the_temperature_of_other_categories_is_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_policy(tmp_path / "m")
    rows = [{"question_id": n, "category": name, "turns": ["hi?"]} for n, name in enumerate(["math", "cooking"])]
    questions = Path(write_jsonl(tmp_path / "q.jsonl", rows))
    warm = ("--generation", "{max_new_tokens: 8, temperature: 0.9}")
    generate(model, tmp_path / "a", "mt_bench", questions, *warm)
    said = capsys.readouterr().err
    assert "the temperature 0.9 is not used for 1 of 2 questions: MT-Bench fixes that of their categories" in said
    recorded = EvaluationFolder(tmp_path / "a").settings["decoding"]["temperature"]
    assert recorded == "by category, as the suite fixes it; 0.9 in other categories"
    generate(model, tmp_path / "b", "mt_bench", questions, *warm, "--seed", "1")
    first, second = (EvaluationFolder(tmp_path / name).answers() for name in "ab")
    assert first["0"] == second["0"] and first["1"] != second["1"]
    capsys.readouterr()
    generate(model, tmp_path / "c", "mt_bench", questions, *SHORT)
    assert "is not used" not in capsys.readouterr().err


def test_the_chat_template_gets_its_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template += "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    model = save_policy(tmp_path / "m")
    tokenizer.save_pretrained(model)
    policy = Policy(model, GenerationSettings(), tmp_path / "log", THOUGHTLESS)
    asked = [{"role": "user", "content": "a?"}]
    assert policy.tokenizer.decode(policy.prompt(0, asked).ids).endswith("<|assistant|><think></think>")
    questions = Path(write_jsonl(tmp_path / "q.jsonl", [{"uid": "0", "prompt": "say tea", "category": "c"}]))
    further = (*SHORT, "--chat-template-kwargs", "{enable_thinking: false}")
    generate(policy.path, tmp_path / "e", "arena_hard_v0.1", questions, *further)
    assert EvaluationFolder(tmp_path / "e").settings["chat_template_kwargs"] == THOUGHTLESS
    for value, message in (("{messages: []}", "the data has the messages"), ("never", "takes keys and values")):
        with pytest.raises(SystemExit):
            given = ["--model", policy.path, "--out", "x", "--questions", str(questions)]
            main(["eval", "generate", "arena_hard_v0.1", *given, "--chat-template-kwargs", value])
        assert message in capsys.readouterr().err


def test_an_argument_that_the_template_never_reads_is_said(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = Path(write_jsonl(tmp_path / "q.jsonl", [{"uid": "0", "prompt": "say tea", "category": "c"}]))
    mistyped = ("--chat-template-kwargs", "{enable_thinkng: false}")
    generate(models[0], tmp_path / "e", "arena_hard_v0.1", questions, *SHORT, *mistyped)
    assert "chat_template_kwargs.enable_thinkng has no effect" in capsys.readouterr().err


def test_questions_beyond_the_models_positions_get_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_policy(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 60}))
    rows = [{"uid": str(n), "prompt": "x" * length, "category": "c"} for n, length in enumerate((5, 50, 6))]
    questions = Path(write_jsonl(tmp_path / "q.jsonl", rows))
    generate(model, tmp_path / "e", "arena_hard_v0.1", questions, *SHORT)
    told = capsys.readouterr()
    assert EvaluationFolder(tmp_path / "e").answers().keys() == {"0", "2"}
    assert "1 questions get no answer: the model has no positions" in told.err and "1 without an answer" in told.out
    policy = Policy(model, GenerationSettings(max_new_tokens=60), tmp_path / "log")
    with pytest.raises(ConfigError, match=r"max_new_tokens is 60, and .* has 60 positions"):
        policy.check()


def test_a_policy_samples_as_its_settings_say(models: list[str], tmp_path: Path) -> None:
    settings = GenerationSettings(temperature=0.3, top_p=0.4, top_k=7, max_new_tokens=9)
    policy = Policy(models[0], settings, tmp_path / "log")
    assert policy.sampling(None) == Sampling(0.3, 0.4, 7, 9, policy.stop_ids)
    assert policy.sampling(0.0) == Sampling(0.0, 0.4, 7, 9, policy.stop_ids)


def test_a_part_of_a_question_that_the_model_would_not_see_is_refused(tmp_path: Path) -> None:
    rows = [{"instruction": "Translate", "input": "Hallo", "dataset": "d"}]
    work = Generating(SUITES["alpaca_eval_2"], "m", GenerationSettings(), "w", write_jsonl(tmp_path / "q.jsonl", rows))
    with pytest.raises(DataError, match="holds input beside the questions"):
        read_questions(work)
    said = [{"instruction": "Translate Hallo", "input": "Hallo"}, {"instruction": "Translate", "input": " "}]
    write_jsonl(tmp_path / "q.jsonl", said)
    assert len(read_questions(work)) == 2
    for name, value in (("tools", [{"type": "function"}]), ("chat_template_kwargs", {"enable_thinking": False})):
        write_jsonl(tmp_path / "q.jsonl", [said[0] | {name: value}])
        with pytest.raises(DataError, match=f"holds {name} beside"):
            read_questions(work)


def test_a_started_server_takes_no_more_than_the_models_positions(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    monkeypatch.setattr("adaptpo.evaluation.policy.started_server", lambda *given: lengths.append(given[-1]))
    for positions in (None, 50, 50_000):
        policy = Policy(models[0], GenerationSettings(engine="vllm", max_new_tokens=9), tmp_path / "log")
        policy.__dict__["positions"] = positions
        policy._start()
    assert lengths == [8192 + 9, 50, 8192 + 9]


def test_generation_resumes_where_it_was_cut(models: list[str], tmp_path: Path) -> None:
    rows = [{"uid": str(n), "prompt": f"say tea {n}", "category": "c"} for n in range(6)]
    questions = Path(write_jsonl(tmp_path / "q.jsonl", rows))
    generate(models[0], tmp_path / "whole", "arena_hard_v0.1", questions, *SHORT)
    generate(models[0], tmp_path / "cut", "arena_hard_v0.1", questions, *SHORT)
    path = tmp_path / "cut" / ANSWERS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    generate(models[0], tmp_path / "cut", "arena_hard_v0.1", questions, *SHORT)
    assert EvaluationFolder(tmp_path / "cut").answers() == EvaluationFolder(tmp_path / "whole").answers()
    with pytest.raises(SystemExit) as ended:
        main(["eval", "generate", "arena_hard_v0.1", "--model", models[1], "--out", str(tmp_path / "cut"),
              "--questions", str(questions), *SHORT])  # fmt: skip
    assert ended.value.code == 2


def test_other_weights_at_the_same_path_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run was trained on, or its folder overwritten: its answers are another model's."""
    questions = Path(write_jsonl(tmp_path / "q.jsonl", [{"uid": "0", "prompt": "say tea", "category": "c"}]))
    model = save_policy(tmp_path / "m", seed=0)
    generate(model, tmp_path / "e", "arena_hard_v0.1", questions, *SHORT)
    kept = (tmp_path / "e" / ANSWERS).read_bytes()
    save_policy(tmp_path / "m", seed=1)
    with pytest.raises(SystemExit) as ended:
        main(["eval", "generate", "arena_hard_v0.1", "--model", model, "--out", str(tmp_path / "e"),
              "--questions", str(questions), *SHORT])  # fmt: skip
    assert ended.value.code == 2 and "holds an evaluation with other weights; name another" in capsys.readouterr().err
    assert (tmp_path / "e" / ANSWERS).read_bytes() == kept


@needs_shared
@pytest.mark.parametrize(
    ("suite", "questions"),
    [
        ("arena_hard_v0.1", ARENA / "v0.1_question.jsonl.gz"),
        ("arena_hard_v2", ARENA / "v2.0_question.jsonl.gz"),
        ("mt_bench", MT / "question.jsonl.gz"),
        ("xstest", XS / "prompts.csv.gz"),
    ],
)
def test_published_questions_are_read(suite: str, questions: Path) -> None:
    work = Generating(SUITES[suite], "m", GenerationSettings(), "w", str(questions))
    found = read_questions(work)
    assert len(found) == {"arena_hard_v0.1": 500, "arena_hard_v2": 750, "mt_bench": 80, "xstest": 450}[suite]
    assert all(question.turns and question.category for question in found)
    assert len(read_questions(replace(work, limit=3))) == 3


def test_questions_of_the_other_arena_hard_are_refused(tmp_path: Path) -> None:
    for suite, category, other in (
        ("arena_hard_v0.1", "hard_prompt", "v2.0"),
        ("arena_hard_v2", "arena-hard-v0.1", "v0.1"),
    ):
        rows = [{"uid": "1", "prompt": "hi", "category": "mine"}, {"uid": "2", "prompt": "ho", "category": category}]
        questions = write_jsonl(tmp_path / "q.jsonl", rows)
        with pytest.raises(DataError, match=f"question 1 is of Arena-Hard {other} .*--questions"):
            read_questions(Generating(SUITES[suite], "m", GenerationSettings(), "w", questions))


def test_the_hubs_form_of_arena_hard_is_read() -> None:
    row = {"question_id": "a", "category": "arena-hard-v0.1", "cluster": "c", "turns": [{"content": "hi"}]}
    assert SUITES["arena_hard_v0.1"].question(row, 0) == Question("a", ("hi",), "arena-hard-v0.1", row)
    with pytest.raises(DataError, match="`uid` and `prompt`"):
        SUITES["arena_hard_v0.1"].question(row | {"turns": [{"content": "hi"}, {"content": "ho"}]}, 0)


@needs_shared
def test_replayed_verdicts_give_the_published_numbers(tmp_path: Path) -> None:
    """alpaca-7b's outputs, judged by a server that repeats the published log-probs: order, chain and scores agree."""
    logprobs = {row["instruction"]: row["top_logprobs"] for row in open_rows(annotations("alpaca-7b"))}
    work = Generating(SUITES["alpaca_eval_2"], "m", GenerationSettings(), "w", str(BASELINE))
    ours = read_answers(ALPACA / "alpaca-7b.jsonl.gz")
    path = folder_of(tmp_path / "e", "alpaca_eval_2", read_questions(work), list(ours.answers.values()))

    def repeats(body: Any, number: int) -> Reply:
        instruction = body["messages"][1]["content"].split("<instruction>\n")[1].split("\n</instruction>")[0]
        return with_logprobs("m", logprobs[instruction])

    _, stub = judged(path, repeats, read_answers(BASELINE))
    assert len(stub.bodies) == sum(map(bool, logprobs.values()))
    result = scored(path, baseline=str(BASELINE), length_control=str(LENGTH_CONTROL))
    assert result.number("win rate").value == pytest.approx(2.591450540223603, abs=1e-5)
    assert result.number("length-controlled win rate").value == pytest.approx(5.875487163278986, abs=0.005)
    assert (result.n, dict(result.invalid), result.origin.baseline) == (805, {}, "gpt4_1106_preview")
