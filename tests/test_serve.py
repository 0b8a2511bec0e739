"""A judge served by `transformers serve`, as any OpenAI-compatible server would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adaptpo.annotation.build import Workplace, build_annotator
from adaptpo.config.reward import reward_parts
from adaptpo.types import Prompt, Response
from tests.tiny import byte_tokenizer

pytestmark = pytest.mark.engines
for needed in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(needed, reason="needs transformers[serving]")


def save_stubborn_judge(folder: Path) -> str:
    """A Llama that always says `[[A]]` and stops: its layers are silent, and the head knows what follows a token."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["[[A]]"])
    size = len(tokenizer) + len(tokenizer) % 2
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    follows = {"<|assistant|>": "[[A]]", "[[A]]": "<|end|>"}
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), size))
        model.lm_head.weight.zero_()
        for token, following in follows.items():
            before, after = tokenizer.convert_tokens_to_ids([token, following])
            model.lm_head.weight[after, before] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(url: str, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    raise RuntimeError(f"the server ended with {process.poll()}" if process.poll() else "the server did not come up")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Address and model of a running server."""
    model, port = save_stubborn_judge(tmp_path / "judge"), free_port()
    command = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        model,
        "--device",
        "cpu",
        "--port",
        str(port),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            wait_until_up(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}/v1", model
        finally:
            process.kill()


def test_a_served_model_judges(server: tuple[str, str], tmp_path: Path) -> None:
    """`[[A]]` to both orders is a draw, and as a rating no rating."""
    url, model = server
    place = Workplace(torch.device("cpu"), 1000, tmp_path / "answers")
    requests = [(Prompt(0, [{"role": "user", "content": "say tea"}], []), Response(text, [])) for text in ("tea", "no")]
    settings = {"judge": model, "base_url": url, "retries": 0}

    annotator = build_annotator(reward_parts(settings), place)
    assert annotator.rewards(requests) == [0.0, 0.0]
    used = annotator.take_usage()
    assert (used["requests"], used["orders_disagree"]) == (2, 1)
    assert used["prompt_tokens"] > 200 and 2 <= used["completion_tokens"] <= 4

    annotator = build_annotator(reward_parts(settings | {"mode": "score"}), place)
    assert annotator.rewards(requests) == [None, None]
    assert annotator.take_usage()["invalid"] == 2
