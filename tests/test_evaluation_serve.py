"""The whole chain on real servers: `transformers serve` as policy and as judge, killed in the middle and resumed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adaptpo.evaluation.folder import ANSWERS, JUDGMENTS, PAID, EvaluationFolder
from adaptpo.evaluation.scoring import score_path
from adaptpo.evaluation.suite import Scoring
from adaptpo.generation.process import StartedServer
from tests.chatty import save_chatty
from tests.tiny import byte_tokenizer, write_jsonl

for needed in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(needed, reason="needs transformers[serving]")

pytestmark = pytest.mark.engines
TRANSFORMERS = f"{Path(sys.executable).with_name('transformers')} serve {{model}} --device cpu --port {{port}}"
GENERATION = json.dumps({"engine": "server", "command": TRANSFORMERS, "max_new_tokens": 6, "top_k": 0})
QUESTIONS = 70
"""More than are answered at once, so that a kill falls between two writes."""


def save_judge_that_says(folder: Path, verdict: str) -> str:
    """A Llama that always says the verdict and stops: its head knows what follows a token."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([verdict])
    size = len(tokenizer) + len(tokenizer) % 2
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=8192, bos_token_id=1, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), size))
        model.lm_head.weight.zero_()
        for token, following in {"<|assistant|>": verdict, verdict: "<|end|>"}.items():
            before, after = tokenizer.convert_tokens_to_ids([token, following])
            model.lm_head.weight[after, before] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedServer]:
    folder = tmp_path_factory.mktemp("judge")
    server = StartedServer(TRANSFORMERS, save_judge_that_says(folder / "model", "[[A>B]]"), folder / "log", 300, 0)
    server.start()
    yield server
    server.stop()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "adaptpo", "eval", *arguments]


def run(*arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command(*arguments), env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


def killed_at(path: Path, lines: int, *arguments: str) -> int:
    """Lines of the file after the command was killed once it held so many."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command(*arguments), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as p:
        until = time.monotonic() + 300
        while count(path) < lines and time.monotonic() < until and p.poll() is None:
            time.sleep(0.02)
        p.send_signal(signal.SIGKILL)
        assert p.wait() == -signal.SIGKILL
    return count(path)


def count(path: Path) -> int:
    """Lines of a file, or rows of the store of paid answers."""
    if path.suffix == ".sqlite":
        return len(paid_keys(path))
    return path.read_bytes().count(b"\n") if path.exists() else 0


def paid_keys(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as store,
        suppress(sqlite3.OperationalError),
    ):
        return [key for (key,) in store.execute("SELECT key FROM answers")]
    return []  # The table is not there yet.


def test_generate_judge_and_score_with_kills(judge: StartedServer, tmp_path: Path) -> None:
    """A judge that always prefers what it sees first: each prompt is a win and a loss, and the score is 50."""
    policy = save_chatty(tmp_path / "policy")
    rows = [{"uid": str(n), "prompt": f"say tea {n}", "category": "c"} for n in range(QUESTIONS)]
    questions = write_jsonl(tmp_path / "q.jsonl", rows)
    baseline = [
        {"question_id": str(n), "model_id": "theirs", "content": f"tea {n}", "token_len": 3} for n in range(QUESTIONS)
    ]
    theirs = write_jsonl(tmp_path / "theirs.jsonl", baseline)
    out = tmp_path / "e"

    generating = ("generate", "arena_hard_v0.1", "--model", policy, "--out", str(out), "--questions", questions)
    generating += ("--generation", GENERATION)
    first = killed_at(out / ANSWERS, 64, *generating)
    kept = (out / ANSWERS).read_bytes()
    assert f"{QUESTIONS} answers, 0 without an answer" in run(*generating)
    assert first == 64 and (out / ANSWERS).read_bytes().startswith(kept) and count(out / ANSWERS) == QUESTIONS
    assert len({json.loads(line)["id"] for line in (out / ANSWERS).open()}) == QUESTIONS
    whole = tmp_path / "whole"
    run(*("--out" if a == "--out" else str(whole) if a == str(out) else a for a in generating))
    assert EvaluationFolder(whole).answers() == EvaluationFolder(out).answers()

    settings = json.dumps({"judge": judge.model, "base_url": judge.url, "concurrency": 2, "max_tokens": 16})
    judging = ("judge", str(out), "--judge", settings, "--baseline", theirs)
    paid = out / PAID / "answers.sqlite"
    answered = killed_at(paid, 20, *judging)
    assert 20 <= answered < 2 * QUESTIONS and not (out / JUDGMENTS).exists()
    said = run(*judging)
    assert f"{2 * QUESTIONS - answered} requests" in said and f"{answered} reused" in said
    assert len(set(paid_keys(paid))) == count(paid) == 2 * QUESTIONS
    assert f"{2 * QUESTIONS} reused" in run(*judging) and count(paid) == 2 * QUESTIONS

    (result,) = score_path(out, Scoring())
    assert (result.main.value, result.n, sum(result.invalid.values())) == (50, 2 * QUESTIONS, 0)
    assert result.origin.judge == judge.model and result.origin.baseline == "theirs"
    assert "bootstrap over prompts" in run("score", str(out))


def test_a_real_server_without_logprobs(judge: StartedServer, tmp_path: Path) -> None:
    """`[[A>B]]` names neither m nor M: every verdict is invalid, and the score says so."""
    rows = [{"instruction": f"say tea {n}"} for n in range(3)]
    questions = write_jsonl(tmp_path / "q.jsonl", rows)
    theirs = write_jsonl(tmp_path / "theirs.jsonl", [row | {"output": "tea", "generator": "theirs"} for row in rows])
    out = tmp_path / "e"
    run("generate", "alpaca_eval_2", "--model", save_chatty(tmp_path / "policy"), "--out", str(out), "--questions",
        questions, "--generation", '{max_new_tokens: 6}')  # fmt: skip
    settings = json.dumps({"judge": judge.model, "base_url": judge.url})
    said = run("judge", str(out), "--judge", settings, "--baseline", theirs)
    assert "3 judgments" in said
    rows = [json.loads(line) for line in (out / JUDGMENTS).open()]
    assert [row["preference"] for row in rows] == [None] * 3
    assert {row["problem"] for row in rows} == {"no verdict"}
