"""Whole runs to which keys are given in every way: none is in any file, whatever generates, judges, follows or ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.integrations import integration_utils

from adaptpo.config.secrets import MASK, known
from adaptpo.errors import AdaptpoError
from adaptpo.report import write_report
from tests.campaign.commands import Train, train, write_recipe
from tests.chatty import chatty_tokenizer, save_chatty
from tests.planted import KEYS, PLAIN, files_with_keys
from tests.runs import SETTINGS, start
from tests.stub import Reply, by_length, serving
from tests.tiny import save_policy
from tests.vllm_stub import VllmStub

TRAINING = SETTINGS["training"] | {"run_name": f"run {KEYS['github']}", "save_steps": 1}
GIVEN: dict[str, Any] = {
    "model_init_kwargs": {"token": KEYS["hf"]},
    "training": TRAINING,
    "num_iterations": 1,
    "rows": 6,
    "held_out": 0,
}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    before = set(known)
    yield
    known.clear()
    known.update(before)


@pytest.fixture(autouse=True)
def _in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_VARIABLE", KEYS["openai"])


def judge(url: str) -> dict[str, Any]:
    options = {"user_token": PLAIN}
    return {"judge": "m", "base_url": url, "api_key_env": "PLANTED_VARIABLE", "options": options}


def test_engine_transformers_with_a_judge(tmp_path: Path, undrawn: None) -> None:
    """The keys are used: the judge gets its own, and transformers the hub's."""
    with serving(by_length) as stub:
        start(save_policy(tmp_path / "policy"), tmp_path / "run", judge(stub.url), **GIVEN)
    assert stub.headers[0]["authorization"] == f"Bearer {KEYS['openai']}"
    assert any(body.get("user_token") == PLAIN for body in stub.bodies)
    page = write_report(tmp_path / "run")
    assert files_with_keys(tmp_path) == {}
    names = {path.name for path in (tmp_path / "run").rglob("*")}
    assert {"config.yaml", "answers.sqlite", "training_args.bin", page.name} <= names


def refusing(body: Any, number: int) -> Reply:
    """As OpenAI does, which shows the key."""
    return Reply({"error": {"message": f"Incorrect API key provided: {KEYS['openai']}, {PLAIN}"}}, 401)


def test_judge_that_quotes_the_key_and_refuses_it(tmp_path: Path, undrawn: None) -> None:
    with serving(refusing) as stub, pytest.raises(AdaptpoError, match="Incorrect API key provided") as caught:
        start(save_policy(tmp_path / "policy"), tmp_path / "run", judge(stub.url), **GIVEN)
    assert not any(key in str(caught.value) for key in (*KEYS.values(), PLAIN)), caught.value
    assert files_with_keys(tmp_path) == {}


def test_running_server(tmp_path: Path, undrawn: None) -> None:
    policy = save_chatty(tmp_path / "policy")
    stub = VllmStub("policy", AutoModelForCausalLM.from_pretrained(policy), chatty_tokenizer())
    with serving(stub) as server:
        generation = {"engine": "server", "base_url": f"{server.url}/v1", "api": "vllm", "served_model": "policy"}
        generation |= {"api_key_env": "PLANTED_VARIABLE", "max_new_tokens": 10, "reload": False}
        reward = "python:tests.tiny:vowel_reward"
        start(policy, tmp_path / "run", reward, "online_dpo", **GIVEN, generation=generation, warmup_epochs=0)
    assert server.headers[0]["authorization"] == f"Bearer {KEYS['openai']}"
    write_report(tmp_path / "run")
    assert files_with_keys(tmp_path) == {}


SHOWS_ALL = """#!/bin/sh
echo "arguments: $@"
env
exec {python} -m tests.vllm_stub serve "$1" --port "$2" --host 127.0.0.1 --generation-config vllm --dtype float32 \\
  --max-model-len 512 --tensor-parallel-size 1 --data-parallel-size 1 --enable-prefix-caching
"""


@pytest.mark.engines
def test_started_server_that_shows_its_arguments_and_its_environment(tmp_path: Path, undrawn: None) -> None:
    program = tmp_path / "server"
    program.write_text(SHOWS_ALL.format(python=sys.executable))
    program.chmod(0o755)
    command = f"{program} {{model}} {{port}} --api-key {KEYS['google']}"
    generation = {"engine": "server", "command": command, "api": "vllm", "max_new_tokens": 10}
    reward = "python:tests.tiny:vowel_reward"
    policy = save_chatty(tmp_path / "policy")
    start(policy, tmp_path / "run", reward, "online_dpo", **GIVEN, generation=generation, warmup_epochs=0)
    write_report(tmp_path / "run")
    assert files_with_keys(tmp_path) == {}
    logs = [path.read_text() for path in (tmp_path / "run").rglob("*.log")]
    assert any(f"PLANTED_VARIABLE={MASK}" in log and "arguments:" in log for log in logs)


class Stub(TrainerCallback):
    """A tracker that writes all that it is told, settings included, to a file, as several do."""

    file: Path

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        Stub.file.write_text(
            f"{args.to_json_string()} {args.to_dict()} {args.to_sanitized_dict()} {args} {args.run_name}"
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        with Stub.file.open("a") as file:
            file.write(f"{logs}\n")


@pytest.mark.parametrize("tracker", ["tensorboard", "stub"])
def test_trackers(tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "stub", Stub)
    monkeypatch.setattr(Stub, "file", tmp_path / "told", raising=False)
    given = GIVEN | {"training": TRAINING | {"report_to": tracker}}
    start(save_policy(tmp_path / "policy"), tmp_path / "run", "python:tests.tiny:vowel_reward", "dpo", **given)
    assert (tmp_path / "told").exists() == (tracker == "stub")
    assert any((tmp_path / "run").rglob("events.out*")) == (tracker == "tensorboard")
    assert files_with_keys(tmp_path) == {}


def quoting_reward(prompts: list, completions: list, **columns: Any) -> list[float]:
    raise RuntimeError(f"the service refused {os.environ['HF_TOKEN']} and {os.environ['SERVICE_PASSWORD']}")


def crashing_reward(prompts: list, completions: list, **columns: Any) -> list[float]:
    os.kill(os.getpid(), 11)
    raise AssertionError


def test_runs_that_crash_leave_no_key(tmp_path: Path) -> None:
    """Killed while a checkpoint is saved, in C code, in a reward function, and in adaptpo itself; what each wrote, the
    messages too."""
    recipe = write_recipe(
        tmp_path / "given" / "recipe",
        save_policy(tmp_path / "given" / "policy"),
        rows=6,
        held_out=0,
        model_init_kwargs={"token": KEYS["hf"]},
        training=TRAINING | {"report_to": "tensorboard"},
        num_iterations=1,
    )
    variables = {"HF_TOKEN": KEYS["hf"], "SERVICE_PASSWORD": PLAIN}
    left = tmp_path / "left"
    left.mkdir()

    def ends(name: str, *sets: str, point: str | None = None) -> int:
        return train(Train(recipe, left / name, left / f"{name}.log", sets, variables=variables, point=point))

    here = "reward=python:tests.test_planted_keys"
    assert ends("killed", point="saved:iterations/0:1") == -9
    assert ends("quoting", f"{here}:quoting_reward") == 2
    assert ends("crashing", f"{here}:crashing_reward") == -11
    assert ends("defect", point="defect") == 1
    logs = {path.stem: path.read_text() for path in left.glob("*.log")}
    assert f"the service refused {MASK} and {MASK}" in logs["quoting"] and "Segmentation fault" in logs["crashing"]
    assert "Traceback" in logs["defect"] and f"a defect that quotes {MASK}" in logs["defect"]
    assert [*left.rglob("optimizer.pt")] and [*left.rglob("events.out*")]
    assert files_with_keys(left) == {}
