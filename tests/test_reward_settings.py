"""The key `reward` in all its forms: what is refused, what is built, and runs and files annotated by it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from adaptpo.annotation.base import Annotator
from adaptpo.annotation.build import Workplace, build_annotator
from adaptpo.annotation.combined import CombinedAnnotator
from adaptpo.annotation.reward_model import RewardModelAnnotator
from adaptpo.cli import main
from adaptpo.config.recipe import Recipe, load_recipe
from adaptpo.config.reward import KINDS, FunctionReward, ModelReward, reward_parts
from adaptpo.errors import AdaptpoError, AnnotationError, ConfigError, DataError, RunError
from adaptpo.models.loading import reading_dtype
from adaptpo.pipeline.inputs import reward_digest
from adaptpo.run.directory import open_run
from adaptpo.types import Prompt, Response
from tests.runs import start
from tests.stub import Reply, by_length, serving
from tests.test_pairwise import save_pairwise_model
from tests.tiny import CHAT_TEMPLATE, byte_tokenizer, save_policy, save_reward_model, vowel_reward, write_jsonl

NEEDED = {"model": "m", "data": "d.jsonl", "output_dir": "o"}
REQUESTS = [(Prompt(0, "say tea", []), Response(text, [])) for text in ("tea", "a cup of tea", "no")]


def length(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(c if isinstance(c, str) else c[-1]["content"])) for c in completions]


# --- what is refused -------------------------------------------------------------------------------------------------

WRONG = {
    "{pairwse: p}": "'reward' names no annotator: did you mean 'pairwise'?; it takes exactly one of reward_model, "
    "function, pairwise, judge, server",
    "{judge: m, pairwise: p}": "'reward' names judge and pairwise; it takes exactly one of reward_model, function, "
    "pairwise, judge, server",
    "{judge: m, mod: all}": "unknown key 'reward.mod': did you mean 'mode'?",
    "{judge: m, mode: every}": "'reward.mode': Input should be 'first', 'all' or 'score' (found 'every')",
    "[r, {judge: m, temprature: 1}]": "unknown key 'reward.1.temprature': did you mean 'temperature'?",
    "{server: 'localhost:8000'}": "'reward.server': Value error, an address must begin with http:// or https:// "
    "(found 'localhost:8000')",
    "[{reward_model: train}]": "'reward.0': `reward: train` must stand alone; train the model in a separate run and "
    "name its folder here",
    "[3]": "'reward.0' is a int; give a path, or one of reward_model, function, pairwise, judge, server: ...",
    "[]": "reward is an empty list; name at least one of reward_model, function, pairwise, judge, server",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_settings_are_named_with_the_remedy(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(**NEEDED, reward=yaml.safe_load(text))
    assert str(caught.value) == WRONG[text]


@pytest.mark.parametrize(
    "url", ["https://me:sesame@host/v1", "https://host/v1?api_key=sesame", "http://h/?token=sesame"]
)
def test_keys_in_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="name an environment variable in api_key_env"):
        reward_parts({"server": url})


def test_key_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another vendor's address never gets the key for OpenAI unasked."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    place = Workplace(torch.device("cpu"), 1000, None)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        build_annotator(reward_parts({"judge": "m"}), place)
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        build_annotator(reward_parts({"judge": "m", "base_url": "http://h/v1", "api_key_env": "MY_KEY"}), place)
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    elsewhere: Any = build_annotator(reward_parts({"judge": "m", "base_url": "http://h/v1"}), place)
    assert elsewhere.comparer.judge.remote.endpoint.access.api_key is None


# --- what is read ----------------------------------------------------------------------------------------------------


def test_texts_and_functions_are_parts() -> None:
    assert reward_parts("org/rm") == (ModelReward(reward_model="org/rm"),)
    assert reward_parts("python:a:f") == (FunctionReward(function="python:a:f"),)
    assert reward_parts(length) == (FunctionReward(function=length),)
    parts = reward_parts(["org/rm", {"function": "a:f", "weight": 0.3}, length])
    assert [part.weight for part in parts] == [1.0, 0.3, 1.0]


def test_paths_are_looked_up_beside_the_recipe(tmp_path: Path) -> None:
    for name in ("rm", "pair"):
        (tmp_path / name).mkdir()
    reward = [{"reward_model": "rm"}, {"pairwise": "pair", "weight": 2}, "rm", "org/rm", {"function": "rm:f"}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(NEEDED | {"reward": reward}))
    rm, pair = str(tmp_path / "rm"), str(tmp_path / "pair")
    assert load_recipe(tmp_path / "recipe.yaml").reward == [
        {"reward_model": rm}, {"pairwise": pair, "weight": 2}, rm, "org/rm", {"function": "rm:f"},
    ]  # fmt: skip


def test_digest_knows_what_decides_the_rewards(tmp_path: Path) -> None:
    """Neither where a model lies nor how a server is reached counts; weights and prompts of a judge do."""
    same, other = save_reward_model(tmp_path / "a"), save_reward_model(tmp_path / "c", seed=2)
    moved = save_reward_model(tmp_path / "b")
    assert reward_digest([{"reward_model": same}]) == reward_digest([{"reward_model": moved}])
    assert reward_digest([{"reward_model": same}]) != reward_digest([{"reward_model": other}])
    assert reward_digest([{"function": length}]) != reward_digest([{"function": vowel_reward}])
    judge = {"judge": "m", "base_url": "http://h/v1"}
    for change in ({"base_url": "http://g/v1"}, {"concurrency": 2}, {"retries": 1}, {"timeout": 3}):
        assert reward_digest(judge | change) == reward_digest(judge)
    for change in ({"judge": "n"}, {"mode": "all"}, {"criteria": "wit"}, {"temperature": 1.0}, {"weight": 2}):
        assert reward_digest(judge | change) != reward_digest(judge)


# --- several annotators ----------------------------------------------------------------------------------------------


class Fixed(Annotator):
    def __init__(self, rewards: list[float | None], relative: bool = False) -> None:
        self.values, self.relative = rewards, relative

    def rewards(self, requests: Any) -> list[float | None]:
        return self.values

    def take_usage(self) -> dict[str, int]:
        return {"requests": 2}


def test_weighted_sum_by_hand() -> None:
    """0.7 * 2 + 0.3 * -1 = 1.1; what one annotator gives no reward has none."""
    combined = CombinedAnnotator([(Fixed([2.0, None, 1.0]), 0.7), (Fixed([-1.0, 5.0, None]), 0.3)])
    assert combined.rewards(REQUESTS) == [pytest.approx(1.1), None, None]
    assert combined.take_usage() == {"requests": 4}
    assert not combined.relative
    assert CombinedAnnotator([(Fixed([]), 1), (Fixed([], relative=True), 1)]).relative


def test_settings_build_the_sum() -> None:
    rewards = [{"function": length, "weight": 0.5}, {"function": vowel_reward, "weight": -2}]
    annotator = build_annotator(reward_parts(rewards), Workplace(torch.device("cpu"), 1000, None))
    vowels = vowel_reward([], ["tea", "a cup of tea", "no"])
    assert annotator.rewards(REQUESTS) == pytest.approx(
        [0.5 * n - 2 * v for n, v in zip((3, 12, 2), vowels, strict=True)]
    )


def test_a_reward_model_in_bfloat16_scores_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does on CUDA. In bfloat16, whose numbers of this size are 2^-9 of it apart, close scores would be equal."""
    path, place = save_reward_model(tmp_path / "reward"), Workplace(torch.device("cpu"), 1000, None)
    settings = {"reward_model": path, "model_init_kwargs": {"dtype": "bfloat16"}}
    full, half = (build_annotator(reward_parts(s), place) for s in (path, settings))
    assert isinstance(half, RewardModelAnnotator) and half.model.model.embed_tokens.weight.dtype == torch.bfloat16
    scores = half.rewards(REQUESTS)
    assert scores == pytest.approx(full.rewards(REQUESTS), abs=0.02)
    assert [torch.tensor(score).bfloat16().item() == score for score in scores] == [False] * 3
    assert reading_dtype(torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert reading_dtype(torch.device("cuda")) == torch.bfloat16


def test_a_lone_weight_counts() -> None:
    annotator = build_annotator(
        reward_parts({"function": length, "weight": -1}), Workplace(torch.device("cpu"), 1000, None)
    )
    assert annotator.rewards(REQUESTS) == [-3.0, -12.0, -2.0]


# --- runs ------------------------------------------------------------------------------------------------------------

RUN = {"method": "online_dpo", "rows": 8, "num_iterations": 1, "warmup_epochs": 0, "shard_size": 4}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"), num_hidden_layers=1)


def judged_by(url: str, **changes: Any) -> dict[str, Any]:
    return {"judge": "m", "base_url": url, "retries": 0, "concurrency": 2, **changes}


def test_a_run_judged_by_comparisons(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest meets the shortest; the evaluation compares with the initial policy; the key is written nowhere."""
    monkeypatch.setenv("JUDGE_KEY", "sesame-1234")
    with serving(by_length) as stub:
        start(policy, tmp_path / "run", judged_by(stub.url, mode="all", api_key_env="JUDGE_KEY"), **RUN)
    assert {headers["authorization"] for headers in stub.headers} == {"Bearer sesame-1234"}
    assert (tmp_path / "run/annotation_cache/answers.sqlite").exists()
    kept = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(b"sesame-1234" in content for content in kept)

    pairs = pq.read_table(tmp_path / "run/iterations/0/pairs.parquet").to_pylist()
    assert pairs and all(len(json.loads(p["chosen"])) > len(json.loads(p["rejected"])) for p in pairs)
    with open_run(tmp_path / "run") as run:
        spent = run.state["phases"]["iterations/0/annotate"]
        evaluated = [line for line in run.metrics.read() if line["phase"] == "evaluate/iteration-0"]
    assert spent["annotation/prompt_tokens"] == 100 * spent["annotation/requests"] > 0
    initial, final = (
        pq.read_table(tmp_path / f"run/evaluation/{stage}.parquet") for stage in ("initial", "iteration-0")
    )
    assert set(initial["reward"].to_pylist()) == {0.0}
    longer = [
        (len(new) > len(old)) - (len(new) < len(old))
        for new, old in zip(final["response"].to_pylist(), initial["response"].to_pylist(), strict=True)
    ]
    # Of two responses the better one is ahead of the other by 1 - (-1).
    assert final["reward"].to_pylist() == [2.0 * sign for sign in longer]
    assert evaluated[0]["win_rate"] == sum((sign + 1) / 2 for sign in longer) / len(longer)


def test_a_function_beside_a_judge_sees_the_tokens_of_both_responses(policy: str, tmp_path: Path) -> None:
    """The initial policy's stored responses have theirs, too: a penalty on length must not spare them."""
    seen: list[tuple[Any, list[int]]] = []

    def count_tokens(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.extend(zip((said[0]["content"] for said in completions), completion_ids, strict=True))
        return [float(len(ids)) for ids in completion_ids]

    with serving(by_length) as stub:
        reward = [judged_by(stub.url, mode="all"), {"function": count_tokens}]
        start(policy, tmp_path / "run", reward, **RUN)
    rows = pq.read_table(tmp_path / "run/evaluation/initial.parquet").to_pylist()
    initial = {(row["response"], tuple(row["response_ids"])) for row in rows}
    assert initial <= {(text, tuple(ids)) for text, ids in seen}
    assert all(len(row["response_ids"]) == row["length"] for row in rows) and all(ids for _, ids in seen)


def test_a_file_has_no_tokens_for_a_function(folder: Path) -> None:
    from adaptpo.cli.annotate import annotate_file

    def count_tokens(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    write_jsonl(folder / "in.jsonl", [{"prompt": "p", "response": "abc"}])
    with pytest.raises(AnnotationError, match="missing 1 required positional argument: 'completion_ids'"):
        annotate_file("in.jsonl", count_tokens, folder / "out.jsonl")


def test_usage_of_a_measurement_stays_in_the_metrics(policy: str, tmp_path: Path) -> None:
    with serving(by_length) as stub:
        settings = RUN | {"method": "stage_blend", "stage": {"prompts": 4}}
        start(policy, tmp_path / "run", judged_by(stub.url), **settings)
    with open_run(tmp_path / "run") as run:
        lines = [line for line in run.metrics.read() if line["phase"].endswith("/stage")]
    assert (
        sum("stage/score" in line for line in lines)
        == sum(line.get("annotation/requests", 0) > 0 for line in lines)
        > 0
    )


def test_an_interrupted_run_pays_nothing_twice(policy: str, tmp_path: Path) -> None:
    """It ends as one that was never interrupted, which finds every answer in the cache that both share."""

    def fails_once(body: Any, number: int) -> Reply:
        return Reply({"error": {"message": "no credit"}}, 403) if number == 9 else by_length(body, number)

    settings = RUN | {"annotation_cache": str(tmp_path / "answers")}
    with serving(fails_once) as stub:
        reward = judged_by(stub.url, concurrency=1)
        with pytest.raises(AnnotationError, match=r"status 403: .*no credit"):
            start(policy, tmp_path / "torn", reward, **settings)
        assert len(stub.bodies) == 10
        start(policy, tmp_path / "torn", reward, **settings)
        asked = [json.dumps(body) for body in stub.bodies]
        assert len(set(asked)) == len(asked) - 1 > 10
        start(policy, tmp_path / "whole", reward, **settings)
        assert len(stub.bodies) == len(asked)
    weights = [load_file(tmp_path / name / "final/model.safetensors") for name in ("torn", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_with_a_sum_of_rewards(policy: str, tmp_path: Path) -> None:
    """One part is relative, so the evaluation is too. It is resumed by the same sum alone."""
    reward: list[Any] = [
        {"reward_model": save_reward_model(tmp_path / "rm"), "weight": 0.5},
        {"pairwise": save_pairwise_model(tmp_path / "pair")},
        {"function": vowel_reward},
    ]
    start(policy, tmp_path / "run", reward, **RUN)
    rows = pq.read_table(tmp_path / "run/iterations/0/annotations/00000.parquet").to_pylist()
    assert len(rows) == 16 and None not in {row["reward"] for row in rows}
    evaluated = pq.read_table(tmp_path / "run/evaluation/initial.parquet")["reward"].to_pylist()
    assert set(evaluated) == {0.0}
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["reward"][0]["weight"] == 0.5
    start(policy, tmp_path / "run", reward, **RUN)
    reward[0] = reward[0] | {"weight": 0.7}
    with pytest.raises(RunError, match=r"inputs\.reward"):
        start(policy, tmp_path / "run", reward, **RUN)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "file_rewards.py").write_text(
        "def length(completions, **_):\n    return [len(c) for c in completions]\n"
    )
    yield tmp_path
    sys.modules.pop("file_rewards", None)


def annotate(*arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["annotate", *arguments])
    assert caught.value.code == 0


def test_annotate_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "say tea", "response": "tea", "id": 3}, {"prompt": "p", "response": "maybe"}]
    write_jsonl(folder / "in.jsonl", rows)
    annotate("in.jsonl", "--reward", "python:file_rewards:length", "--out", "out.jsonl")
    written = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert written == [rows[0] | {"reward": 3.0}, rows[1] | {"reward": 5.0}]
    assert "out.jsonl: 2 rewards, 0 without a reward" in capsys.readouterr().out
    annotate("out.jsonl", "--reward", "{function: 'file_rewards:length', weight: 2}", "--out", "out.parquet")
    assert pq.read_table(folder / "out.parquet")["reward"].to_pylist() == [6.0, 10.0]


def test_annotate_says_what_the_reward_models_template_leaves_out(folder: Path) -> None:
    from adaptpo.cli.annotate import annotate_file

    path = save_reward_model(folder / "reward")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("in messages", "in messages if m['role'] != 'system'")
    tokenizer.save_pretrained(path)
    asked = [{"role": "user", "content": "say tea"}]
    rows = [{"prompt": asked, "response": "tea"}, {"prompt": asked, "system": "Be brief.", "response": "tea"}]
    write_jsonl(folder / "in.jsonl", rows)
    counts = annotate_file("in.jsonl", path, folder / "out.jsonl")
    assert counts["judged in part: the chat template renders nothing of the system's words"] == 1
    assert counts["rewards"] == 2


def test_responses_to_one_prompt_meet_wherever_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = [{"role": "user", "content": "say tea"}]
    rows = [{"prompt": prompt, "responses": ["tea", "tea please"]}, {"prompt": "alone", "responses": ["x"]},
            {"prompt": prompt, "responses": ["t"]}]  # fmt: skip
    write_jsonl(folder / "in.jsonl", rows)
    with serving(by_length) as stub:
        for _ in range(2):
            reward = f"{{judge: m, mode: all, base_url: '{stub.url}'}}"
            annotate("in.jsonl", "--reward", reward, "--out", "out.jsonl")
            found = [json.loads(line)["rewards"] for line in (folder / "out.jsonl").read_text().splitlines()]
            assert found == [[0.0, 1.0], [None], [-1.0]]
        assert len(stub.bodies) == 7 and (folder / "out.jsonl.answers/answers.sqlite").exists()
    assert "3 rewards, 1 without a reward, 7 reused" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("row", "arguments", "error", "message"),
    [
        ({"prompt": "p"}, {}, DataError, r"row 0 has no `prompt` .* found prompt"),
        ({"note": "p", "response": "a"}, {}, DataError, "row 0 has no `prompt`"),
        ({"prompt": "p", "responses": ["a", None]}, {}, DataError, "row 0 has no `prompt`"),
        ({"prompt": "p", "response": "a", "input": "b"}, {}, DataError, "column `input` holds text.*rename the column"),
        ({"prompt": "p", "responses": "abc"}, {}, DataError, "row 0 has no `prompt`"),
        ({"prompt": "p", "response": "a"}, {"out": Path("o.csv")}, ConfigError, "must end with .jsonl or .parquet"),
        ({"prompt": "p", "response": "a"}, {"reward": "train"}, ConfigError, "name a trained reward model"),
    ],
)
def test_what_cannot_be_annotated(
    row: Any, arguments: dict[str, Any], error: type[AdaptpoError], message: str, folder: Path
) -> None:
    from adaptpo.cli.annotate import annotate_file

    write_jsonl(folder / "in.jsonl", [row])
    with pytest.raises(error, match=message):
        annotate_file(**({"data": "in.jsonl", "reward": length, "out": folder / "out.jsonl"} | arguments))


SYSTEM, ASKED = {"role": "system", "content": "be brief"}, {"role": "user", "content": "say tea"}
REPLY = {"role": "assistant", "content": "tea"}
PARTS = [{"role": "user", "content": [{"type": "text", "text": "say "}, {"type": "text", "text": "tea"}]}]


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "say tea", "response": "tea"}, "say tea", "tea"),
        ({"prompt": "say tea", "system": "be brief", "response": "tea"}, [SYSTEM, ASKED], [REPLY]),
        ({"instruction": "say tea", "history": [["a", "b"]], "response": "tea"},
         [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, ASKED], [REPLY]),
        ({"prompt": PARTS, "response": [{"role": "assistant", "content": [{"type": "text", "text": "tea"}]}]},
         [ASKED], [REPLY]),
        ({"prompt": "say tea", "response": [REPLY]}, [ASKED], [REPLY]),
        ({"prompt": [ASKED], "response": [ASKED, REPLY]}, [ASKED], [REPLY]),
        ({"conversations": [{"from": "human", "value": "say tea"}], "response": "tea"}, [ASKED], [REPLY]),
        ({"prompt": "\n\nHuman: say tea\n\nAssistant:", "response": "tea"}, [ASKED], [REPLY]),
        ({"prompt": "\n\nHuman: say tea\n\nAssistant:", "response": "\n\nHuman: say tea\n\nAssistant: tea"},
         [ASKED], [REPLY]),
        ({"prompt": "say tea", "system": "be brief", "response": [ASKED, REPLY]}, [SYSTEM, ASKED], [REPLY]),
        ({"prompt": [SYSTEM, ASKED], "response": [SYSTEM, ASKED, REPLY]}, [SYSTEM, ASKED], [REPLY]),
        ({"prompt": "say tea", "response": "tea", "chosen": True, "rejected": 0}, "say tea", "tea"),
    ],
)  # fmt: skip
def test_annotate_reads_prompts_as_a_run_does(row: Any, prompt: Any, completion: Any, folder: Path) -> None:
    from adaptpo.cli.annotate import annotate_file

    asked: list[Any] = []

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        asked.extend(zip(prompts, completions, strict=True))
        return [1.0] * len(completions)

    write_jsonl(folder / "in.jsonl", [row])
    assert annotate_file("in.jsonl", reward, folder / "out.jsonl") == {"rewards": 1, "without a reward": 0}
    assert asked == [(prompt, completion)]
    assert json.loads((folder / "out.jsonl").read_text()) == row | {"reward": 1.0}


def test_annotate_reads_a_dialogue_as_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(folder / "in.jsonl", [{"prompt": "\n\nHuman: say tea\n\nAssistant:", "response": "tea", "reward": 5.0}])
    options = ("--reward", "python:file_rewards:length", "--out", "out.jsonl")
    annotate("in.jsonl", *options, "--text-format", "text")
    assert json.loads((folder / "out.jsonl").read_text())["reward"] == 3.0
    assert "1 rewards, 0 without a reward, 1 replaced in the column `reward`" in capsys.readouterr().out


def test_a_row_without_responses_has_no_rewards(folder: Path) -> None:
    write_jsonl(folder / "in.jsonl", [{"prompt": "p", "responses": []}, {"prompt": "p", "responses": ["ab"]}])
    annotate("in.jsonl", "--reward", "python:file_rewards:length", "--out", "out.jsonl")
    assert [json.loads(line)["rewards"] for line in (folder / "out.jsonl").read_text().splitlines()] == [[], [2.0]]


def test_annotate_reads_responses_of_a_csv_file(folder: Path) -> None:
    (folder / "in.csv").write_text('prompt,responses\nsay tea,"[\'tea\', ""it\'s tea""]"\n')
    annotate("in.csv", "--reward", "python:file_rewards:length", "--out", "out.jsonl")
    assert json.loads((folder / "out.jsonl").read_text())["rewards"] == [3.0, 8.0]


def test_parquet_refuses_mixed_columns_before_anything_is_paid_for(folder: Path) -> None:
    from adaptpo.cli.annotate import annotate_file

    write_jsonl(
        folder / "in.jsonl", [{"prompt": "p", "response": "a", "n": 1}, {"prompt": "p", "response": "a", "n": "b"}]
    )
    with pytest.raises(DataError, match=r"Parquet cannot hold; let --out end with \.jsonl"):
        annotate_file("in.jsonl", lambda **_: 1 / 0, folder / "out.parquet")


# --- the documentation -----------------------------------------------------------------------------------------------

EXAMPLES = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[1] / "docs/annotation.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_the_documentation_are_valid(text: str) -> None:
    reward = Recipe(**NEEDED, **yaml.safe_load(text)).reward
    assert reward == "train" or reward_parts(reward)


def test_the_documentation_has_examples_of_every_kind() -> None:
    assert all(any(kind in text for text in EXAMPLES) for kind in KINDS)
