"""Generation engines: one contract for all, and what servers may do wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import GenerationConfig

from adaptpo.config.recipe import AlignmentConfig
from adaptpo.config.secrets import MASK
from adaptpo.data.tokenization import decode_response, stop_token_ids, tokenize_prompt
from adaptpo.errors import ConfigError, GenerationError
from adaptpo.generation.agreement import Expected, disagreement, expected_answers
from adaptpo.generation.answers import AnswerReader, prompt_text
from adaptpo.generation.base import Generator, Sampling
from adaptpo.generation.build import started_server
from adaptpo.generation.dialects import DIALECTS
from adaptpo.generation.lease import lease_of
from adaptpo.generation.process import RunningServer, Server, StartedServer, own_environment
from adaptpo.generation.server import ServerGenerator
from adaptpo.generation.server_log import STARTED, cause
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.generation.weights import Weights
from adaptpo.pipeline.boundary_measure import compared
from adaptpo.remote.endpoint import Access
from adaptpo.stage.preference import Comparison
from adaptpo.stage.tally import Tally
from adaptpo.types import PreferencePair, Prompt, Response
from tests.chatty import chatty_model, chatty_tokenizer, save_chatty
from tests.planted import KEYS, files_with_keys
from tests.ranks import assert_close_run, run_ranks
from tests.runs import SETTINGS, run_in_process, start, tables
from tests.stub import Reply, serving
from tests.tiny import preference_rows, vowel_reward
from tests.vllm_stub import VllmStub

pytest.importorskip("openai", reason="needs the openai client")

TOKENIZER = chatty_tokenizer()
STOPS = stop_token_ids(TOKENIZER)
SAMPLING = Sampling(1.0, 1.0, 0, 12, STOPS)
POLICY = "the policy"
TRANSFORMERS = f"{Path(sys.executable).with_name('transformers')} serve {{model}} --device cpu --port {{port}}"
engines = pytest.mark.engines
Make = Callable[..., Generator]


def chat_prompt(number: int, tokenizer: Any = TOKENIZER) -> Prompt:
    text = [{"role": "user", "content": f"say tea {number}"}]
    return Prompt(number, text, tokenize_prompt(tokenizer, text))


PROMPTS = [chat_prompt(number) for number in range(4)]
SEEDS = [11, 12, 13, 14]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return chatty_model(TOKENIZER)


def asking(
    server: Server,
    model: torch.nn.Module,
    api: Any = "vllm",
    sampling: Sampling = SAMPLING,
    usage: Counter[str] | None = None,
    **access: Any,
) -> ServerGenerator:
    """Of a server that is to answer as `model` does."""
    settings = {"concurrency": 1 if DIALECTS[api].shared_seed else 4, "retries": 0, "first_wait": 0.05} | access
    return ServerGenerator(
        opening=lambda: server,
        expect=lambda prompts: expected_answers(model, TOKENIZER, prompts, sampling, nullcontext, torch.float32),
        reach=lambda url: Access(url, **settings),
        dialect=DIALECTS[api],
        tokenizer=TOKENIZER,
        sampling=sampling,
        folder=POLICY,
        usage=Counter() if usage is None else usage,
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedServer]:
    """The policy in `transformers serve`."""
    folder = tmp_path_factory.mktemp("served")
    server = StartedServer(TRANSFORMERS, save_chatty(folder / "policy"), folder / "log", 300, 1)
    server.start()
    yield server
    server.stop()


VLLM = os.environ.get("VLLM") or str(Path(__file__).parents[1] / ".vllm" / "bin" / "vllm")
NO_VLLM = "there is no .vllm/: run `make vllm`, or set VLLM to the path of a program `vllm`"
needs_vllm = pytest.mark.skipif(shutil.which(VLLM) is None, reason=NO_VLLM)
ON_CPU = {
    "engine": "vllm", "program": VLLM,
    "arguments": "--enforce-eager --no-enable-chunked-prefill --max-num-batched-tokens 8192",
}  # fmt: skip
"""Without the last two, seeded sampling fails on a CPU."""


@pytest.fixture(scope="module")
def real_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedServer]:
    """The policy in vLLM, whose generation_config.json asks for what every request has to turn off."""
    folder = tmp_path_factory.mktemp("vllm")
    policy = save_chatty(folder / "policy")
    config = {
        "repetition_penalty": 3.0,
        "min_p": 0.9,
        "top_k": 2,
        "top_p": 0.5,
        "temperature": 0.1,
        "max_new_tokens": 3,
    }
    GenerationConfig(eos_token_id=TOKENIZER.eos_token_id, do_sample=True, **config).save_pretrained(policy)
    arguments = f"{ON_CPU['arguments']} --generation-config auto"
    settings = AlignmentConfig(output_dir="x", generation=ON_CPU | {"arguments": arguments}).generation
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        server = started_server(settings, policy, folder / "log", torch.float32, 256, kept=True)
    yield server
    server.stop()


@pytest.fixture(
    params=[
        "in process",
        "vllm",
        pytest.param("transformers", marks=engines),
        pytest.param("real vllm", marks=[engines, needs_vllm]),
    ]
)
def make(request: pytest.FixtureRequest, model: torch.nn.Module) -> Iterator[Make]:
    """Makes each engine, with the sampling given to it."""
    if request.param == "in process":
        yield lambda sampling=SAMPLING: TransformersGenerator(model, TOKENIZER, sampling)
    elif request.param == "vllm":
        with serving(VllmStub(POLICY, model, TOKENIZER)) as stub:
            yield lambda sampling=SAMPLING: asking(RunningServer(f"{stub.url}/v1", POLICY), model, sampling=sampling)
    else:
        served = request.getfixturevalue("served" if request.param == "transformers" else "real_vllm")
        running = RunningServer(served.url, served.model)
        api = "transformers" if request.param == "transformers" else "vllm"
        yield lambda sampling=SAMPLING: asking(running, model, api, sampling)


# The contract


def test_k_responses_with_their_ids_and_ends(make: Make) -> None:
    responses = make().generate(PROMPTS, 4, SEEDS)
    assert [len(several) for several in responses] == [4] * 4
    flat = [response for several in responses for response in several]
    assert {response.ended for response in flat} == {True, False}
    assert len({response.text for response in flat}) > 4
    for response in flat:
        assert response.text == decode_response(TOKENIZER, response.ids, STOPS)
        assert response.ended == (response.ids[-1] in STOPS) and not STOPS & {*response.ids[:-1]}
        assert len(response.ids) == 12 or response.ended


def test_seeds_reproduce_responses(make: Make) -> None:
    first = make().generate(PROMPTS[:2], 3, [5, 6])
    assert make().generate(PROMPTS[:2], 3, [5, 6]) == first
    assert make().generate(PROMPTS[:2], 3, [7, 8]) != first


def test_engines_continue_the_same_tokens(make: Make, model: torch.nn.Module) -> None:
    """Greedy answers are the policy's own, also where top_k 1 makes sampling greedy."""
    greedy = replace(SAMPLING, temperature=0.0)
    own = TransformersGenerator(model, TOKENIZER, greedy).generate(PROMPTS, 1, SEEDS)
    assert make(greedy).generate(PROMPTS, 1, SEEDS) == own
    assert make(replace(SAMPLING, top_k=1)).generate(PROMPTS, 1, SEEDS) == own


def test_no_prompts_start_no_server() -> None:
    def unexpected() -> Server:
        raise AssertionError("a server was started")

    generator = asking(RunningServer("http://nowhere", POLICY), torch.nn.Identity())
    generator.opening = unexpected
    assert generator.generate([], 4, []) == []


# Servers that disagree with training


def refused(reply: Any, model: torch.nn.Module, api: Any = "vllm") -> str:
    """What is said of a server that answers like this."""
    with serving(reply) as stub, pytest.raises(GenerationError) as caught:
        asking(RunningServer(f"{stub.url}/v1", POLICY), model, api).generate(PROMPTS, 2, SEEDS)
    return str(caught.value)


def test_a_second_bos_is_noticed(model: torch.nn.Module) -> None:
    problem = refused(VllmStub(POLICY, model, TOKENIZER, extra=(TOKENIZER.bos_token_id,)), model)
    assert "read prompt 0 as the tokens [1, 3," in problem and "training reads [3," in problem
    assert "serve the checkpoint's own folder" in problem


def text_reply(tokenizer: Any, usage: bool = True) -> Any:
    """A server that reads texts with its own tokenizer and always says `a`."""

    def reply(body: Any, number: int) -> Reply:
        counts = {"prompt_tokens": len(tokenizer(body["prompt"])["input_ids"]), "completion_tokens": 2}
        choice = {"index": 0, "text": "a", "finish_reason": "stop"}
        return Reply({"choices": [choice], **({"usage": counts} if usage else {})})

    return reply


def test_a_bos_that_the_servers_tokenizer_adds_to_a_text_is_noticed(model: torch.nn.Module) -> None:
    problem = refused(text_reply(chatty_tokenizer(adds_bos=True)), model, "openai")
    assert f"as {len(PROMPTS[0].ids) + 1} tokens, and training reads {len(PROMPTS[0].ids)}" in problem


def test_a_server_that_counts_no_prompt_tokens_is_refused(model: torch.nn.Module) -> None:
    assert "usage.prompt_tokens" in refused(text_reply(TOKENIZER, usage=False), model, "openai")


def test_another_policy_is_noticed(model: torch.nn.Module) -> None:
    """The checkpoint of another iteration, for instance."""
    problem = refused(VllmStub(POLICY, chatty_model(TOKENIZER, seed=1), TOKENIZER), model)
    assert "the policy's own most likely answer begins" in problem and f"serve the folder {POLICY}" in problem


def test_a_server_whose_answers_cannot_be_compared_is_not_trusted(model: torch.nn.Module) -> None:
    def reply(body: Any, number: int) -> Reply:
        said = {"index": 0, "text": "?", "token_ids": [100_000], "prompt_token_ids": body["prompt"]}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
        return Reply({"choices": [said | {"finish_reason": "length"}], "usage": usage})

    assert "answers could be compared, because their tokens" in refused(reply, model)


@dataclass
class Restarting:
    """A started server that was asked to take the policy's weights, and has them after a restart."""

    url: str
    stub: VllmStub
    policy: Any
    model: str = POLICY
    note: str = ""
    started_over: int = 0

    def start_over(self) -> bool:
        self.stub.model = self.policy
        self.started_over += 1
        return self.started_over == 1

    def revive(self) -> None: ...

    def rest(self) -> None: ...

    def stop(self) -> None: ...


def test_a_server_that_did_not_take_the_weights_is_restarted(model: torch.nn.Module) -> None:
    usage: Counter[str] = Counter()
    stub = VllmStub(POLICY, chatty_model(TOKENIZER, seed=1), TOKENIZER)
    with serving(stub) as served:
        server = Restarting(f"{served.url}/v1", stub, model)
        assert len(asking(server, model, usage=usage).generate(PROMPTS, 2, SEEDS)) == len(PROMPTS)
    assert (server.started_over, usage["reloads_that_failed"]) == (1, 1)


def test_greedy_answers_may_part_at_a_near_tie() -> None:
    logps = torch.full((2, 300), -9.0)
    logps[0, 70], logps[1, 71], logps[1, 72] = -0.1, -0.50, -0.54
    ours = Expected(PROMPTS[0], Response("ab", [70, 71]), logps, near_tie=0.05)
    assert disagreement(ours, Response("ac", [70, 72])) is None
    assert disagreement(ours, Response("bb", [71, 71])) is not None
    assert disagreement(replace(ours, near_tie=0.03), Response("ac", [70, 72])) is not None


def test_a_prompt_is_said_so_that_its_tokens_come_back() -> None:
    adding = chatty_tokenizer(adds_bos=True)
    template = f"<bos>{adding.chat_template}"
    with_bos = chatty_tokenizer(adds_bos=True)
    with_bos.chat_template = template
    prompt = chat_prompt(0, with_bos)
    assert prompt.ids[0] == adding.bos_token_id
    assert prompt_text(TOKENIZER, prompt) == "<bos><|user|>say tea 0<|end|><|assistant|>"
    assert prompt_text(adding, prompt) == "<|user|>say tea 0<|end|><|assistant|>"
    assert prompt_text(adding, PROMPTS[0]) is None
    assert prompt_text(TOKENIZER, Prompt(0, "plain", TOKENIZER("plain")["input_ids"])) == "plain"


# Answers


def read(choice: dict[str, Any], usage: Counter[str] | None = None, **counts: int) -> Response:
    answer = {"choices": [choice], "usage": {"prompt_tokens": len(PROMPTS[0].ids)} | counts}
    reader = AnswerReader(TOKENIZER, Counter() if usage is None else usage)
    return reader.responses(answer, PROMPTS[0], 1, SAMPLING)[0]


def test_a_text_gets_its_ids_and_the_stop_token_that_ended_it() -> None:
    usage: Counter[str] = Counter()
    end = TOKENIZER.eos_token_id
    ids = TOKENIZER("ab", add_special_tokens=False)["input_ids"]
    choice = {"text": "ab", "finish_reason": "stop"}
    assert read(choice, usage, completion_tokens=3) == Response("ab", [*ids, end], True)
    assert read(choice | {"finish_reason": "length"}, usage, completion_tokens=2) == Response("ab", ids, False)
    assert usage["retokenized_differently"] == 0
    read(choice, usage, completion_tokens=2)
    assert (usage["retokenized_differently"], usage["completion_tokens"]) == (1, 7)


def test_ids_of_the_server_are_taken_as_they_are() -> None:
    end = TOKENIZER.eos_token_id
    choice = {"text": "?", "token_ids": [70, 71, end], "finish_reason": "stop", "prompt_token_ids": PROMPTS[0].ids}
    assert read(choice) == Response("ab", [70, 71, end], True)
    assert read(choice | {"token_ids": [70, 71]}) == Response("ab", [70, 71, end], True)
    assert read(choice | {"token_ids": [70, 71], "finish_reason": "length"}) == Response("ab", [70, 71], False)


# Responses that never come


def refusing(body_is_refused: Callable[[Any], bool], stub: VllmStub) -> Any:
    def reply(body: Any, number: int) -> Reply:
        return Reply({"error": "too long"}, 400) if body_is_refused(body) else stub(body, number)

    return reply


def test_a_response_that_never_comes_is_missing_and_the_others_are_not(model: torch.nn.Module) -> None:
    usage: Counter[str] = Counter()
    reply = refusing(lambda body: body["prompt"] == PROMPTS[2].ids, VllmStub(POLICY, model, TOKENIZER))
    with serving(reply) as stub:
        generator = asking(RunningServer(f"{stub.url}/v1", POLICY), model, usage=usage)
        assert [len(several) for several in generator.generate(PROMPTS, 3, SEEDS)] == [3, 3, 0, 3]
    assert (usage["missing"], usage["refused"]) == (3, 1)


def test_an_answer_is_not_waited_for_beyond_its_deadline(model: torch.nn.Module) -> None:
    answering = VllmStub(POLICY, model, TOKENIZER)

    def reply(body: Any, number: int) -> Reply:
        return replace(answering(body, number), pause=0.05 if body["prompt"] == PROMPTS[3].ids else 0.0)

    usage: Counter[str] = Counter()
    with serving(reply) as stub:
        generator = asking(RunningServer(f"{stub.url}/v1", POLICY), model, usage=usage, timeout=3.0, retries=1)
        assert [len(several) for several in generator.generate(PROMPTS, 1, SEEDS)] == [1, 1, 1, 0]
    assert (usage["missing"], usage["retries"]) == (1, 1)


def test_a_server_that_answers_nothing_ends_the_run(model: torch.nn.Module) -> None:
    problem = refused(lambda body, number: Reply({}, 503), model)
    assert "answered none of 2 requests" in problem and "503" in problem


# Processes

HEALTHY = (
    f"{sys.executable} -c 'from tests.stub import serving; import time\nwith serving(None, {{port}}): time.sleep(300)'"
)


def healthy(tmp_path: Path, command: str = HEALTHY, **options: Any) -> StartedServer:
    return StartedServer(command, "{model}", tmp_path / "log", **{"start_timeout": 60, "restarts": 1, **options})


def served_processes(server: StartedServer) -> list[psutil.Process]:
    assert server.process is not None
    return psutil.Process(server.process.pid).children(recursive=True)


def test_a_server_that_dies_comes_back_a_bounded_number_of_times(tmp_path: Path) -> None:
    server = healthy(tmp_path)
    server.start()
    (first,) = served_processes(server)
    server.revive()
    assert served_processes(server) == [first]
    first.kill()
    server.process.wait()
    server.revive()
    (second,) = served_processes(server)
    second.kill()
    server.process.wait()
    with pytest.raises(GenerationError, match="keeps dying"):
        server.revive()


def test_a_server_that_does_not_start_says_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match=r"ended before it was up.*\n.*\n?.*no such model"):
        healthy(tmp_path, f"{sys.executable} -c 'raise SystemExit(\"no such model\")'").start()
    slow = healthy(tmp_path, f"{sys.executable} -c 'import time; time.sleep(99)'", start_timeout=0.5)
    with pytest.raises(GenerationError, match="start_timeout"):
        slow.start()
    assert slow.process is None


SHUTDOWN = "(APIServer pid=7) INFO 11-26 01:00:09 [launcher.py:110] Shutting down FastAPI HTTP server.\n" * 30
TRACEBACK = """(EngineCore pid=9) ERROR 11-26 01:00:05 [core.py:866] EngineCore failed to start.
(EngineCore pid=9) ERROR 11-26 01:00:05 [core.py:866] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-26 01:00:05 [core.py:866]   File "core.py", line 857, in run_engine_core
(EngineCore pid=9) ERROR 11-26 01:00:05 [core.py:866]     raise ValueError("
(EngineCore pid=9) ERROR 11-26 01:00:05 [core.py:866] ValueError: the cache holds 0 blocks
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above.
"""


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (TRACEBACK, "[core.py:866] ValueError: the cache holds 0 blocks"),
        ("pydantic.ValidationError: 1 validation error for M\n  Value error, no head\n", "Value error, no head"),
        ("usage: serve [--help]\nserve: error: unrecognized arguments: --nope\n", "unrecognized arguments: --nope"),
        ("run.sh: line 1:    7 Illegal instruction     vllm serve\n", "Illegal instruction"),
    ],
)
def test_a_dead_server_shows_its_first_error_not_its_shutdown(tmp_path: Path, printed: str, shown: str) -> None:
    log = tmp_path / "log"
    log.write_text(f"$ serve a\nOSError: of the start before\n$ serve b\nloading\n{printed}{SHUTDOWN}")
    found = cause(log)
    assert found.startswith(f"the first error in {log}:\n") and shown in found
    assert "the start before" not in found and len(found) < 2000


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_server_outlives_its_run(tmp_path: Path, how: signal.Signals) -> None:
    forked = multiprocessing.get_context("fork")
    receiver, sender = forked.Pipe(duplex=False)
    run = forked.Process(target=start_and_wait, args=(tmp_path, sender))
    run.start()
    (pid,) = receiver.recv()
    assert psutil.pid_exists(pid)
    os.kill(run.pid, how)
    run.join()
    assert run.exitcode == -how
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=20)
    assert not psutil.pid_exists(pid)


def start_and_wait(folder: Path, sender: Connection) -> None:
    """A run that has started its server, and sends the numbers of the server's processes."""
    server = healthy(folder)
    server.start()
    sender.send([process.pid for process in served_processes(server)])
    time.sleep(300)


# Settings


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"engine": "server"}, "either base_url"),
        ({"engine": "server", "base_url": "http://x/v1", "command": "vllm serve {model} --port {port}"}, "either"),
        ({"engine": "server", "command": "vllm serve {model}"}, "holds no {port}"),
        ({"engine": "server", "command": "my-server {model} {port}"}, "set api"),
        ({"engine": "server", "base_url": "http://me:key@x/v1"}, "must hold no key"),
        ({"engine": "server", "base_url": "http://x/v1", "restarts": 3}, "a server that command starts"),
        ({"engine": "vllm", "base_url": "http://x/v1"}, "base_url is not read by engine vllm, only by server"),
        ({"engine": "server", "base_url": "http://x/v1", "reload": False}, "reload applies only to engine vllm"),
        ({"engine": "vllm", "batch_size": 4}, "batch_size is not read by engine vllm, only by transformers"),
        ({"tensor_parallel_size": 2}, "not read by engine transformers, only by vllm"),
        ({"engine": "vllm", "tensor_paralel_size": 2}, "did you mean 'tensor_parallel_size'"),
        ({"engine": "vlm"}, "'vllm'"),
    ],
)
def test_settings_that_would_not_be_read_are_errors(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AlignmentConfig(output_dir="x", generation=settings)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "api"),
    [
        ({"engine": "vllm"}, "vllm"),
        ({"engine": "server", "command": TRANSFORMERS}, "transformers"),
        (
            {"engine": "server", "command": "python -m sglang.launch_server --model-path {model} --port {port}"},
            "sglang",
        ),
        ({"engine": "server", "base_url": "http://x/v1"}, "openai"),
        ({"engine": "server", "base_url": "http://x/v1", "api": "vllm"}, "vllm"),
    ],
)
def test_what_a_server_speaks(settings: dict[str, Any], api: str) -> None:
    assert AlignmentConfig(output_dir="x", generation=settings).generation.spoken == api


# Runs

SHORT = {"max_new_tokens": 10}
NO_RESPONSES = "0 responses with a valid reward, a pair needs 2"


def run_with(tmp_path: Path, generation: dict[str, Any], **settings: Any) -> Path:
    out = tmp_path / "run"
    start(save_chatty(tmp_path / "policy"), out, vowel_reward, "online_dpo", 12, generation=generation, **settings)
    return out


def dropped(out: Path, phase: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "dropped.jsonl").read_text().splitlines())
    return [line for line in lines if line["phase"] == phase]


def test_a_run_records_what_a_running_server_did_not_answer(tmp_path: Path, model: torch.nn.Module) -> None:
    """One prompt and one held-out prompt are refused: recorded, and the run goes on without their responses."""
    policy = str(tmp_path / "policy")
    unlucky = [preference_rows(12)[5]["prompt"], preference_rows(6, seed=9)[2]["prompt"]]
    ids = [tokenize_prompt(TOKENIZER, prompt) for prompt in unlucky]
    with serving(refusing(lambda body: body["prompt"] in ids, VllmStub(policy, model, TOKENIZER))) as stub:
        reached = {"base_url": f"{stub.url}/v1", "api": "vllm", "served_model": policy, "retries": 0}
        generation = SHORT | {"engine": "server"} | reached
        out = run_with(tmp_path, generation, num_iterations=1, training={"learning_rate": 0.0})
    (record,) = dropped(out, "iterations/0/generate")
    assert (record["missing"], "refused the request" in record["reason"]) == (4, True)
    assert {"prompt_id": record["prompt_id"], "reason": NO_RESPONSES} in [
        {name: line[name] for name in ("prompt_id", "reason")} for line in dropped(out, "iterations/0/pair")
    ]
    found = tables(out)
    assert sum(len(rows) for name, rows in found.items() if name.startswith("iterations/0/responses")) == 11 * 4
    missing = [row for row in found["evaluation/initial.parquet"] if row["length"] is None]
    assert [(row["prompt_id"], row["reward"], row["response"]) for row in missing] == [(2, None, "")]
    assert [line["prompt_id"] for line in dropped(out, "evaluate/initial")] == [2]


MOVING: dict[str, Any] = {
    "training": {"learning_rate": 0.1, "per_device_train_batch_size": 4}, "held_out": 0, "warmup_epochs": 0,
}  # fmt: skip
"""Training after which the policy's greedy answers are others."""


def by_running(stub: Any, tmp_path: Path) -> dict[str, Any]:
    reached = {"base_url": f"{stub.url}/v1", "api": "vllm", "served_model": str(tmp_path / "policy"), "retries": 0}
    return SHORT | {"engine": "server"} | reached


def test_a_running_vllm_takes_the_weights_of_each_iteration(tmp_path: Path) -> None:
    """The greedy check of the second iteration would end the run otherwise."""
    policy = VllmStub(str(tmp_path / "policy"), chatty_model(TOKENIZER, seed=1), TOKENIZER, loads="weights")
    with serving(policy) as stub:
        out = run_with(tmp_path, by_running(stub, tmp_path), **MOVING)
    taken = [body["kwargs"]["weights_path"] for body in stub.bodies if "method" in body]
    assert taken == [str(tmp_path / "policy"), str(out / "iterations/0/checkpoint")]


def test_a_second_run_loads_no_weights_into_a_server_that_answers_the_first(tmp_path: Path) -> None:
    policy = VllmStub(str(tmp_path / "policy"), chatty_model(TOKENIZER, seed=1), TOKENIZER, loads="weights")
    settings = {"num_iterations": 1, "held_out": 0, "warmup_epochs": 0}
    with serving(policy) as stub:
        first = lease_of(f"{stub.url}/v1")
        with pytest.raises(GenerationError, match="another run generates with the server at"):
            run_with(tmp_path, by_running(stub, tmp_path), **settings)
        assert not stub.bodies
        first.give_back()
        shutil.rmtree(tmp_path / "run")
        run_with(tmp_path, by_running(stub, tmp_path), **settings)
        lease_of(f"{stub.url}/v1").give_back()


@pytest.mark.parametrize(("loads", "said"), [(None, "started without VLLM_SERVER_DEV_MODE=1"), ("nothing", None)])
def test_a_running_vllm_with_other_weights_ends_the_run(tmp_path: Path, loads: Any, said: str | None) -> None:
    policy = VllmStub(str(tmp_path / "policy"), chatty_model(TOKENIZER, seed=1), TOKENIZER, loads=loads)
    with serving(policy) as stub, pytest.raises(GenerationError) as caught:
        run_with(tmp_path, by_running(stub, tmp_path), num_iterations=1, held_out=0, warmup_epochs=0)
    assert "the server's begins" in str(caught.value)
    assert (said or "") in str(caught.value)


def test_shards_are_in_flight_together_and_each_is_written_when_complete(
    tmp_path: Path, model: torch.nn.Module
) -> None:
    """The server holds back an answer of one shard until the other five are on disk. The responses are those of a
    server that gets one request at a time."""
    answering, folder = VllmStub(str(tmp_path / "policy"), model, TOKENIZER), tmp_path / "run/iterations/0/responses"
    held, waited = threading.Event(), list[int]()

    def reply(body: Any, number: int) -> Reply:
        if body.get("temperature") and not held.is_set():
            held.set()
            end = time.monotonic() + 20
            while len(waited) < 5 and time.monotonic() < end:
                waited[:] = [1 for _ in folder.glob("*.parquet")]
                time.sleep(0.01)
        return answering(body, number)

    settings = {"num_iterations": 1, "shard_size": 2, "held_out": 0, "warmup_epochs": 0}
    with serving(reply) as stub:
        out = run_with(tmp_path, by_running(stub, tmp_path) | {"concurrency": 8}, **settings)
    assert len(waited) == 5 and stub.most_at_once <= 8
    found = tables(out)
    shutil.rmtree(out)
    with serving(answering) as stub:
        run_with(tmp_path, by_running(stub, tmp_path) | {"concurrency": 1}, **settings)
    assert stub.most_at_once == 1 and tables(out) == found


def test_a_measurement_counts_prompts_whose_responses_never_came() -> None:
    class Undecided:
        def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
            return [0.5] * len(comparisons)

    pair = PreferencePair(0, "offline", Response("a", [70]), Response("b", [71]))
    contests = [(PROMPTS[0], pair, [Response("c", [72])]), (PROMPTS[1], pair, [])]
    assert Tally.of(compared(Undecided(), contests)).incomplete == {0: 2, 1: 0}


def test_grpo_would_not_ask_the_server(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inside TRL's trainer"):
        start(
            save_chatty(tmp_path / "policy"), tmp_path / "run", vowel_reward, "grpo", 12,
            generation=SHORT | {"engine": "server", "base_url": "http://127.0.0.1:9/v1"},
        )  # fmt: skip


@engines
def test_a_run_serves_each_iterations_checkpoint_with_its_adapter_by_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the stand-in: the greedy check of each phase shows that the adapter was merged and the checkpoint is new."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.vllm_stub "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    settings = MOVING | {"peft": {"r": 4, "target_modules": ["lm_head"]}}
    out = run_with(tmp_path, SHORT | {"engine": "vllm", "gpu_memory_utilization": 0.8, "reload": False}, **settings)
    logs = {path.name: path.read_text() for path in (out / "servers").iterdir()}
    assert f"vllm serve {tmp_path / 'policy'} " in logs["iterations-0-generate.log"]
    assert f"vllm serve {out / 'served'} " in logs["iterations-1-generate.log"]
    assert not (out / "served").exists()


@engines
@needs_vllm
def test_vllm_takes_weights_while_it_runs_and_gives_them_back(
    real_vllm: StartedServer, model: torch.nn.Module, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Its greedy answers are the new policy's, and the check tells both apart."""
    first, other = real_vllm.model, chatty_model(TOKENIZER, seed=1)
    started, pid = time.monotonic(), real_vllm.process.pid
    real_vllm.serve(save_chatty(tmp_path / "other", seed=1), real_vllm.log, restarts=1)
    record_property("show", f"new weights in a running vLLM: {time.monotonic() - started:.1f} s")
    running = RunningServer(real_vllm.url, real_vllm.model)
    greedy = replace(SAMPLING, temperature=0.0)
    own = TransformersGenerator(other, TOKENIZER, greedy).generate(PROMPTS, 1, SEEDS)
    assert asking(running, other, sampling=greedy).generate(PROMPTS, 1, SEEDS) == own
    with pytest.raises(GenerationError, match="serves a model other than the policy"):
        asking(running, model).generate(PROMPTS, 1, SEEDS)
    real_vllm.serve(first, real_vllm.log, restarts=1)
    assert real_vllm.process.pid == pid and real_vllm.note == ""
    asking(running, model).generate(PROMPTS, 1, SEEDS)


def vllm_processes() -> list[psutil.Process]:
    """Those that runs of this process have started, without what they have started themselves."""
    watchers = [child for child in psutil.Process().children() if VLLM in child.cmdline()]
    return [process for watcher in watchers for process in watcher.children()]


@engines
@needs_vllm
def test_a_run_on_one_vllm_that_is_killed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two iterations: one start, weights of the first checkpoint while it runs, and one start after the kill. vLLM logs
    its arguments, and the run keeps no key of them."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    posting, posts, others = Weights.load, list[str](), vllm_processes()

    def load_then_die(self: Weights, folder: str) -> None:
        posting(self, folder)
        posts.append(folder)
        if len(posts) == 1:
            (process,) = set(vllm_processes()) - set(others)
            process.kill()

    monkeypatch.setattr(Weights, "load", load_then_die)
    arguments = f"{ON_CPU['arguments']} --hf-token {KEYS['hf']}"
    out = run_with(tmp_path, SHORT | ON_CPU | {"retries": 6, "arguments": arguments}, **MOVING)
    (log,) = (out / "servers").iterdir()
    assert sum(line.startswith("$ ") for line in log.read_text().splitlines()) == 2
    assert f"'hf_token': '{MASK}'" in log.read_text() and files_with_keys(out) == {}
    assert posts == [str(out / "iterations/0/checkpoint")] * 2
    responses = [rows for name, rows in tables(out).items() if "/responses/" in name]
    assert sum(map(len, responses)) == 12 * 4 and not dropped(out, "iterations/1/generate")
    assert not set(vllm_processes()) - set(others)


@engines
def test_generation_goes_on_when_the_server_is_killed(
    served: StartedServer, model: torch.nn.Module, tmp_path: Path
) -> None:
    """With the same responses as if nothing had happened."""
    whole = asking(RunningServer(served.url, served.model), model, "transformers").generate(PROMPTS, 8, SEEDS)
    server = StartedServer(TRANSFORMERS, served.model, tmp_path / "log", 300, 1)
    server.start()
    generator = asking(server, model, "transformers", retries=6, first_wait=0.5)
    killed = threading.Event()

    def kill_in_the_middle() -> None:
        while server.log.read_text().count("200 OK") < 12:
            time.sleep(0.02)
        served_processes(server)[0].kill()
        killed.set()

    killer = threading.Thread(target=kill_in_the_middle, daemon=True)
    killer.start()
    try:
        assert generator.generate(PROMPTS, 8, SEEDS) == whole
    finally:
        generator.close()
    assert killed.is_set() and server.restarts == 0


@engines
def test_a_run_by_transformers_serve(tmp_path: Path) -> None:
    out = run_with(
        tmp_path, SHORT | {"engine": "server", "command": TRANSFORMERS}, num_iterations=1, warmup_epochs=0, held_out=0
    )
    assert (out / "final").exists()
    assert not dropped(out, "iterations/0/generate")


@engines
def test_one_server_generates_for_two_processes(tmp_path: Path) -> None:
    """Process 0 alone starts it and asks it; it ends with the run."""
    policy = save_chatty(tmp_path / "policy")
    training = SETTINGS["training"] | {"use_cpu": True, "learning_rate": 5e-4}
    run = {"model": policy, "rows": 12, "held_out": 0, "reward": vowel_reward, "num_iterations": 1, "warmup_epochs": 0}
    run["generation"] = SHORT | {"engine": "server", "command": TRANSFORMERS}
    assert run_in_process(out=tmp_path / "one", training=training, **run) == 0
    halves = training | {"per_device_train_batch_size": 2}
    assert run_ranks(2, out=tmp_path / "two", training=halves, **run) == [0, 0]
    assert_close_run(tmp_path / "one", tmp_path / "two")
    (log,) = (tmp_path / "two" / "servers").glob("*.log")
    assert log.read_text().count(STARTED) == 1


def test_a_server_is_not_told_of_the_run_s_launcher() -> None:
    """With torchrun's variables, a server's own processes would look for those of the run."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "FSDP_VERSION")
    kept = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0,1", "HF_HOME": "/hub"}
    assert own_environment(kept | dict.fromkeys(launched, "1")) == kept
