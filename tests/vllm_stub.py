"""A stand-in for vLLM: it answers in vLLM's form from a model in its process, and fails at anything that vLLM was not
documented to take. As a program it takes the words of `vllm serve`."""

from __future__ import annotations

import argparse
import os
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from adaptpo.generation.base import Sampling
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.types import Prompt
from tests.stub import Reply, serving

FIELDS = {
    "model": str, "prompt": list, "n": int, "seed": int, "max_tokens": int, "temperature": float, "top_p": float,
    "top_k": int, "stop_token_ids": list, "return_token_ids": bool, "presence_penalty": float,
    "frequency_penalty": float, "repetition_penalty": float, "min_p": float, "min_tokens": int,
}  # fmt: skip


@dataclass
class VllmStub:
    """`extra` ids are put before every prompt, as by a server that reads prompts in its own way. `loads`: it takes new
    weights as in development mode; "nothing" says that it did, and did not."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    extra: tuple[int, ...] = ()
    loads: Literal["weights", "nothing"] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, body: Any, number: int) -> Reply:
        if not body or "method" in body:
            return self.develop(body)
        assert {name: type(value) for name, value in body.items()} == FIELDS, body
        assert body["model"] == self.name
        assert body["top_k"] == -1 or body["top_k"] > 0
        assert all(type(token) is int for token in body["prompt"])
        with self.lock:
            return Reply(self.completion(body, [*self.extra, *body["prompt"]]))

    def develop(self, body: Any) -> Reply:
        """`/collective_rpc` and `/reset_prefix_cache`."""
        if self.loads is None:
            return Reply({"detail": "Not Found"}, 404)
        if not body:
            return Reply({"success": True})
        assert body["method"] == "reload_weights" and [*body["kwargs"]] == ["weights_path"], body
        if self.loads == "weights":
            with self.lock:
                self.model = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"])
        return Reply({"results": [None]})

    def completion(self, body: Any, ids: list[int]) -> dict[str, Any]:
        stops = frozenset(body["stop_token_ids"])
        limits = {"top_k": max(body["top_k"], 0), "max_new_tokens": body["max_tokens"], "stop_ids": stops}
        sampling = Sampling(body["temperature"], body["top_p"], **limits)
        generator = TransformersGenerator(self.model, self.tokenizer, sampling)
        prompt = Prompt(0, "", ids)
        # vLLM adds a response's index to the seed.
        made = [generator.generate([prompt], 1, [body["seed"] + index])[0][0] for index in range(body["n"])]
        choices = [
            {
                "index": index, "text": response.text, "token_ids": response.ids, "prompt_token_ids": ids,
                "finish_reason": "stop" if response.ended else "length", "stop_reason": None, "logprobs": None,
            }
            for index, response in enumerate(made)
        ]  # fmt: skip
        usage = {"prompt_tokens": len(ids), "completion_tokens": sum(len(response.ids) for response in made)}
        return {"id": "cmpl-x", "object": "text_completion", "model": self.name, "choices": choices, "usage": usage}


def words() -> argparse.Namespace:
    """The arguments of `vllm serve` that a run uses; any other ends the program."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("what", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--generation-config", choices=["vllm"], required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--tensor-parallel-size", type=int, required=True)
    parser.add_argument("--data-parallel-size", type=int, required=True)
    parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, required=True)
    parser.add_argument("--gpu-memory-utilization", type=float)
    return parser.parse_args()


if __name__ == "__main__":
    said = words()
    model = AutoModelForCausalLM.from_pretrained(said.model, dtype=said.dtype)
    loads = "weights" if os.environ.get("VLLM_SERVER_DEV_MODE") == "1" else None
    stub = VllmStub(said.model, model, AutoTokenizer.from_pretrained(said.model), loads=loads)
    with serving(stub, said.port):
        threading.Event().wait()
