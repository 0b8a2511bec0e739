"""Options of the command line, timeouts and retries: each is seen where it acts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from adaptpo.annotation.build import access as access_of_annotator
from adaptpo.cli import annotate as annotating
from adaptpo.cli import build_parser, main
from adaptpo.cli.vote import Options
from adaptpo.config.evaluation import JudgeSettings
from adaptpo.config.recipe import GenerationSettings
from adaptpo.config.reward import JudgeReward
from adaptpo.evaluation.folder import EvaluationFolder
from adaptpo.evaluation.judging import chat_of
from adaptpo.evaluation.suites import find_suite
from adaptpo.generation.build import access as access_of_engine
from adaptpo.remote.endpoint import Access, PassingFault, Refusal, fault_of
from adaptpo.remote.store import AnswerStore
from adaptpo.vote.questions import Plan
from tests.test_evaluation_judging import SHORT, generate
from tests.tiny import save_policy, write_jsonl

URL = "http://127.0.0.1:9/v1"


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    return int(stopped.value.code or 0)


# Evaluation


def test_generation_follows_preset_limit_and_split(tmp_path: Path) -> None:
    """The stages paper decodes by its Table 7."""
    questions = write_jsonl(tmp_path / "q.jsonl", [{"instruction": f"say {n}", "dataset": "d"} for n in range(3)])
    model = save_policy(tmp_path / "policy")
    generate(model, tmp_path / "e", "alpaca_eval_2", Path(questions), "--preset", "stages", "--limit", "1", *SHORT)
    folder = EvaluationFolder(tmp_path / "e")
    assert {name: folder.settings["decoding"][name] for name in ("temperature", "top_p", "top_k")} == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 50,
    }
    assert len(folder.answers()) == 1


def test_only_the_named_model_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "question_id": n,
            "model": model,
            "turn": 1,
            "judge": ["j", "single"],
            "judgment": f"[[{rating}]]",
            "score": -1,
        }
        for n in range(2)
        for model, rating in (("m", 7), ("n", 3))
    ]
    path = write_jsonl(tmp_path / "gpt-4_single.jsonl", rows)
    assert ended("eval", "score", path, "--suite", "mt_bench", "--model", "m", "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["model"] == "m" and result["numbers"][0]["value"] == 7


# Votes, plans, annotation


def test_a_vote_follows_its_options() -> None:
    given = build_parser().parse_args(["vote", "a", "b", "--seed", "3", "--overlap", "0.4", "--prompts", "7"])
    assert Options.of(given).plan == Plan(7, 3, 0.4)


def test_a_plan_reads_the_given_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Stop(Exception):  # noqa: N818
        pass

    def remember(recipe: Any, options: Any) -> None:
        seen.append(options)
        raise Stop

    monkeypatch.setattr("adaptpo.plan.command.read_job", remember)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: m\noutput_dir: {tmp_path}/run\nmethod: {{name: dpo}}\ndata: {{path: d.jsonl}}\n")
    ended("plan", str(recipe), "--sample", "6")
    assert seen[0].sample == 6


def test_annotation_keeps_its_answers_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(annotating, "annotate_file", lambda *given: seen.append(given) or {"annotated": 0})
    reward = json.dumps({"judge": "j", "base_url": URL})
    assert ended("annotate", "d.jsonl", "--reward", reward, "--out", "o.jsonl", "--cache", str(tmp_path / "c")) == 0
    assert str(seen[0][3]) == str(tmp_path / "c")


# Servers


SERVER = {"base_url": URL, "concurrency": 2, "retries": 1, "timeout": 3.0}
REACHED = Access(URL, None, 2, 1, 3.0)


def test_a_judges_limits_arrive(tmp_path: Path) -> None:
    part = TypeAdapter(JudgeReward).validate_python({"judge": "j", **SERVER})
    assert access_of_annotator(part, URL, None) == REACHED
    settings = JudgeSettings(judge="j", **SERVER)  # type: ignore[arg-type]
    chat = chat_of(settings, find_suite("mt_bench"), AnswerStore(tmp_path / "answers.sqlite"))
    assert chat.remote.endpoint.access == REACHED


def test_an_engines_limits_arrive() -> None:
    settings = GenerationSettings(engine="server", api="vllm", **SERVER)  # type: ignore[arg-type]
    assert access_of_engine(settings, URL) == REACHED


def status(code: int, **headers: str) -> Any:
    openai = pytest.importorskip("openai")
    response = SimpleNamespace(status_code=code, headers=headers, request=None)
    return openai.APIStatusError("no", response=response, body=None)


@pytest.mark.parametrize("code", [408, 409, 425, 429, 500, 503])
def test_a_fault_that_passes_is_tried_again(code: int) -> None:
    """After as long as the server asks for."""
    fault = fault_of(status(code, **{"retry-after": "7"}), REACHED)
    assert isinstance(fault, PassingFault) and fault.retry_after == 7.0


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_refused_text_ends_no_run(code: int) -> None:
    assert isinstance(fault_of(status(code), REACHED), Refusal)
